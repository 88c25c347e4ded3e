"What published few-shot code got wrong without a sign: sentences that share a vector, answers that depend on a neighbour, on luck or on part of a film."
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from echo_lit.core import Clip, EchoError
from echo_lit.data.contract import InputContract
from echo_lit.models.backbone import Backbone, backbone, clip_moments
from echo_lit.models.ejection import EFModel, EFReader, Trust, mean_moment
from echo_lit.models.multiframe import FrameAttention
from echo_lit.models.ordinal import OrdinalBins, bin_of, bin_sentences, check_sentences
from echo_lit.models.prompts import LearntPrompts
from echo_lit.models.vit import FrameViTTower


@pytest.fixture(scope='module')
def text(): return backbone('phantom-tiny').text


def film(seed=0, n=60):
    x = np.random.default_rng(seed).integers(0, 255, (n, 40, 40, 3), dtype=np.uint8)
    return Clip(f'{seed:012x}', n, 40, 40, lambda i: x[i], 50., 'file')


@pytest.fixture(scope='module')
def reader():
    torch.manual_seed(0)
    b = Backbone(FrameViTTower(InputContract(frames=8, size=32, seconds=.3, crop='centre', mask=False), width=16, depth=1, heads=2, patch=16), 'toy').eval()
    model = EFModel(16).eval()
    torch.nn.init.normal_(model.pool.score[4].weight)
    x, mask = (torch.stack(v) for v in zip(*(clip_moments(b, film(s), 3) for s in range(3))))
    return EFReader(b, model, mean_moment(x, mask), Trust(8., .9, 99, 0., 100., 2.), windows=3)


def test_sentences_are_pairwise_distinct_and_equal_to_the_towers_own(text):
    said = bin_sentences(OrdinalBins())
    x, own = check_sentences(text, said), F.normalize(text.encode(said), dim=-1)
    assert torch.pdist(x).min() > .01
    torch.testing.assert_close(x, own, atol=1e-5, rtol=0)


def test_a_sentence_does_not_depend_on_the_others(text):
    said = bin_sentences(OrdinalBins())
    x = check_sentences(text, said)
    for i in range(5): torch.testing.assert_close(check_sentences(text, [said[i], 'The pericardium is normal.'])[0], x[i], atol=1e-4, rtol=0)
    torch.testing.assert_close(check_sentences(text, said[::-1]).flip(0), x, atol=1e-4, rtol=0)


def test_twins_and_mixers_are_refused(text):
    with pytest.raises(EchoError, match='same vector'): check_sentences(text, ['One.', 'One.'])
    class Mixer:
        def encode(self, said): return text.encode(said) + text.encode(said).mean(0)
    with pytest.raises(EchoError, match='beside it'): check_sentences(Mixer(), bin_sentences(OrdinalBins()))


def test_learnt_prompts_do_not_see_each_other(text):
    torch.manual_seed(0)
    names = OrdinalBins().names
    learnt = LearntPrompts(text, names).eval()
    with torch.no_grad(): x = learnt()
    assert torch.pdist(F.normalize(x, dim=-1)).min() > 1e-3


def test_every_sentence_says_the_range_of_its_own_class():
    bins = OrdinalBins()
    for k, (low, high) in enumerate(zip((bins.low, *bins.edges), (*bins.edges, bins.high))):
        said = bin_sentences(bins)[k]
        assert all(f'{v:g}' in said for v in (low, high) if v in bins.edges)
        assert bin_of(bins, torch.tensor([float(low), high - .01])).tolist() == [k, k]


def test_the_same_film_gives_the_same_answer(reader):
    first = reader.read(film(1))
    np.random.seed(5), torch.manual_seed(5)
    assert reader.read(film(1)) == first and first.ef is not None


def test_the_whole_film_is_read(reader):
    x = film(1)
    starts = reader.backbone.contract.starts(x, reader.windows)
    assert starts[0] == 0 and starts[-1] + round(.3*50) >= len(x) - 4 and len(starts) == 3
    late = replace(x, read=lambda i: np.where((np.asarray(i) >= 45)[:, None, None, None], 255 - x.read(i), x.read(i)))
    assert abs(reader.read(late).ef - reader.read(x).ef) > 1e-4


def test_nobody_depends_on_the_batch(reader):
    x, mask = (torch.stack(v) for v in zip(*(clip_moments(reader.backbone, film(s), 3) for s in range(4))))
    together = reader.model(x, mask)['ef']
    for i in range(4): torch.testing.assert_close(reader.model(x[i:i + 1], mask[i:i + 1])['ef'], together[i:i + 1], atol=1e-3, rtol=0)
    clips = torch.randint(0, 256, (3, 3, 8, 32, 32), dtype=torch.uint8)
    with torch.no_grad(): torch.testing.assert_close(reader.backbone(clips)[1:2], reader.backbone(clips[1:2]), atol=1e-5, rtol=0)


def test_one_frame_is_no_nan_and_padding_has_no_say():
    model = EFModel(16).eval()
    assert model(torch.randn(1, 1, 16))['ef'].isfinite().all()
    x, mask = torch.randn(1, 5, 16), torch.tensor([[True]*3 + [False]*2])
    far = x.clone()
    far[:, 3:] = 1e6
    torch.testing.assert_close(model(x, mask)['ef'], model(far, mask)['ef'], atol=1e-4, rtol=0)


def test_frames_stay_frames(reader):
    clips = torch.zeros(1, 3, 8, 32, 32, dtype=torch.uint8)
    clips[:, :, 5] = 200
    with torch.no_grad(): moved = (reader.backbone(clips) - reader.backbone(torch.zeros_like(clips))).abs().amax(-1)[0]
    assert moved.argmax() == 5 and (moved[torch.arange(8) != 5] < 1e-5).all()


def test_attention_starts_as_the_mean_and_does_not_know_the_order():
    x = torch.randn(2, 6, 16)
    torch.testing.assert_close(FrameAttention(16)(x)[0], x.mean(1), atol=1e-5, rtol=0)
    net = FrameAttention(16, preset='upstream')
    torch.testing.assert_close(net(x.flip(1))[0], net(x)[0], atol=1e-5, rtol=0)
