"EchoPrime's towers against numbers of the published ones: small files in the published layout always, full size in the slow checks."
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM

from echo_lit.models.echoprime import (
    ECHOPRIME_FILES, echoprime_contract, encode_study, load_echoprime, write_stand_in_weights)
from echo_lit.models.hub import load_model
from echo_lit.models.weights import WeightsError, read_weights

GOLDEN = np.load(Path(__file__).parent/'golden'/'echoprime'/'towers.npz')


def pattern(B, T, H, W):
    "Whole-numbered clips float [B,3,T,H,W] in 0..255."
    b, c, t, h, w = np.meshgrid(*map(np.arange, (B, 3, T, H, W)), indexing='ij')
    return torch.from_numpy(((13*b + 37*c + 11*t + 3*h + 5*w + h*w//7) % 256).astype(np.uint8))


def clips(n=2): return echoprime_contract().normalise(pattern(n, 16, 224, 224))


def close(x, name, n=2, atol=1e-4): torch.testing.assert_close(x, torch.from_numpy(GOLDEN[name])[:n], atol=atol, rtol=0)


@pytest.fixture(scope='module')
def small(tmp_path_factory): return write_stand_in_weights(tmp_path_factory.mktemp('small'))


@pytest.fixture(scope='module')
def full(tmp_path_factory):
    yield write_stand_in_weights(root := tmp_path_factory.mktemp('full'), sizes=None)
    shutil.rmtree(root)


def rewritten(source, target, part, change):
    "The download with one weight file changed."
    (target/'weights').mkdir(parents=True, exist_ok=True)
    for p in (source/'weights').iterdir():
        if p.name != ECHOPRIME_FILES[part][0]: (target/'weights'/p.name).write_bytes(p.read_bytes())
    state = change({k: t.clone() for k, t in read_weights(source/'weights'/ECHOPRIME_FILES[part][0]).items()})
    torch.save(state, target/'weights'/ECHOPRIME_FILES[part][0])
    return target


WRAPS = dict(
    bare=lambda s: s, hub=lambda s: {f'encoder.{k}': t for k, t in s.items()}, views=lambda s: {f'convnext.{k}': t for k, t in s.items()},
    lightning=lambda s: {'state_dict': {f'model.{k}': t for k, t in s.items()}, 'epoch': 9, 'global_step': 7, 'lr_schedulers': []},
    parallel=lambda s: {f'module.{k}': t for k, t in s.items()}, half=lambda s: {k: t.half() for k, t in s.items()})


@pytest.mark.parametrize('part', ['video', 'views', 'text'])
@pytest.mark.parametrize('wrap', WRAPS)
def test_every_published_wrapping(small, tmp_path, wrap, part):
    want = getattr(load_echoprime(small, parts=(part,)), part).state_dict()
    got = getattr(load_echoprime(rewritten(small, tmp_path, part, WRAPS[wrap]), parts=(part,)), part).state_dict()
    for k in want: torch.testing.assert_close(got[k], want[k], atol=1e-3 if wrap == 'half' else 0, rtol=0)


def test_text_files_of_old_and_new_transformers(small, tmp_path):
    want = load_echoprime(small, parts=('text',)).text.state_dict()
    v, w = want['bert.embeddings.word_embeddings.weight'].shape
    changes = dict(ids=lambda s: {**s, 'backbone.bert.embeddings.position_ids': torch.arange(512)[None]},
                   headless=lambda s: {k: t for k, t in s.items() if '.cls.' not in k})
    for name, change in changes.items():
        got = load_echoprime(rewritten(small, tmp_path/name, 'text', change), parts=('text',)).text.state_dict()
        assert all(torch.equal(got[k], want[k]) for k in want)
    published = BertForMaskedLM(BertConfig(vocab_size=v, hidden_size=w, num_hidden_layers=1, num_attention_heads=2, intermediate_size=4*w))
    def theirs(s): return {**{f'backbone.{k}': t.clone() for k, t in published.state_dict().items()}, **{k: t for k, t in s.items() if k[:4] == 'text'}}
    got = load_echoprime(rewritten(small, tmp_path/'new', 'text', theirs), parts=('text',)).text.state_dict()
    for k, t in published.state_dict().items(): assert k.startswith('cls.') or torch.equal(got[k], t)


@pytest.mark.parametrize('part,change,message', [
    ('video', lambda s: {k: t for k, t in s.items() if k != 'norm.bias'}, r'1 missing \(norm.bias\)'),
    ('video', lambda s: {**s, 'head.2.weight': torch.ones(1)}, r'1 unexpected \(head.2.weight\)'),
    ('views', lambda s: {**s, 'classifier.2.weight': torch.ones(58, 64), 'classifier.2.bias': torch.ones(58)}, '2 misshapen'),
    ('text', lambda s: {k: t for k, t in s.items() if k != 'text_projection.bias'}, r'1 missing \(text_projection.bias\)')])
def test_other_tensors_are_named(small, tmp_path, part, change, message):
    with pytest.raises(WeightsError, match=message): load_echoprime(rewritten(small, tmp_path, part, change))


def test_published_sizes_are_asked_for_unless_told(small, tmp_path):
    (folder := rewritten(small, tmp_path, 'video', lambda s: s)/'weights'/'sizes.json').unlink()
    with pytest.raises(WeightsError, match='missing'): load_echoprime(tmp_path)
    folder.write_text('{')
    with pytest.raises(WeightsError, match='not JSON'): load_echoprime(tmp_path)


def test_safetensors_under_the_same_name(small, tmp_path):
    folder = rewritten(small, tmp_path, 'video', lambda s: s)
    file = folder/'weights'/'echo_prime_encoder.pt'
    save_file(read_weights(file), file.with_suffix('.new'))
    file.with_suffix('.new').replace(file)
    assert load_echoprime(folder, parts=('video',)).video.embed_dim == 512


def test_licence_is_said_and_stamped(small, tmp_path, capsys, monkeypatch):
    from echo_lit.models.hub import licences, load_bundle, origins, save_bundle
    monkeypatch.setattr('echo_lit.models.hub.USED', [])
    bundle = load_model('echoprime', path=small)
    load_model('echoprime', path=small, parts=('video',))
    assert capsys.readouterr().err.count('\n') == 1
    assert 'not to be passed on' in bundle.config['licence'] and 'echoprime' in set(licences().name)
    again = load_bundle(save_bundle(bundle, tmp_path/'mine'))
    assert [o.name for o in origins(again)] == ['echoprime'] and 'not to be passed on' in (tmp_path/'mine'/'LICENSE').read_text()
    x = pattern(1, 16, 224, 224)
    with torch.inference_mode(): torch.testing.assert_close(again.video(x), bundle.video(x), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize('n', [1, 2, 51])
def test_study_rows(small, n):
    bundle = load_echoprime(small, parts=('video', 'views'))
    x = clips(1)[0, ..., :96, :96]
    rows = encode_study(bundle, (x for _ in range(n)), batch_size=8)
    assert rows.shape == (n, 523) and (rows[:, 512:].sum(1) == 1).all()
    torch.testing.assert_close(rows, rows[:1].expand(n, -1), atol=1e-5, rtol=0)


def test_clips_travel_as_uint8_to_the_same_numbers(small):
    bundle, x = load_echoprime(small), pattern(2, 16, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(bundle.video(x), bundle.video.encode_normalised(clips()))
        assert bundle.views.predict(x)[0].shape == (2, 11)


@pytest.mark.slow
def test_full_size_files(full):
    "The number of tensors in each published file, and the published numbers behind them."
    counts = {p: len(read_weights(full/'weights'/n[0])) for p, n in ECHOPRIME_FILES.items()}
    assert counts == dict(video=397, text=206, views=344)
    bundle = load_model('echoprime', path=full)
    assert {k: sum(p.numel() for p in m.parameters()) for k, m in bundle.parts().items() if k != 'text'} == dict(video=34_623_872, views=87_577_739)
    x = clips()
    rows = encode_study(bundle, x)
    close(rows[:, :512], 'echoprime_video_embedding')
    assert rows[:, 512:].argmax(1).tolist() == [9, 9]
    with torch.inference_mode(): close(bundle.views.frame_logits(x[:, :, 0]), 'echoprime_view_logits')
    ids = torch.arange(512)*37 % 30000 + 5
    ids[0], ids[511] = 2, 3
    ids = ids.repeat(2, 1)
    ids[1, 40], ids[1, 41:] = 3, 0
    mask = torch.ones(2, 512, dtype=torch.bool)
    mask[1, 41:] = False
    with torch.inference_mode(): close(bundle.text(ids, mask), 'echoprime_text_embedding')


@pytest.mark.slow
def test_full_size_video_tower_is_torchvisions(full):
    from torchvision.models.video import MViT
    tower, x = load_echoprime(full, parts=('video',)).video, clips(1)
    with torch.inference_mode(): torch.testing.assert_close(tower.encode_normalised(x), MViT.forward(tower, x), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_mixed_precision_keeps_the_direction(full):
    bundle, x = load_echoprime(full, parts=('video', 'views')), clips(1)
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16): z = bundle.video.encode_normalised(x).float()
    assert torch.cosine_similarity(z, torch.from_numpy(GOLDEN['echoprime_video_embedding'][:1])).min() > .999
