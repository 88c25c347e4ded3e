"Attention over frames, tiles, ordinal bins, losses, draws and rates of CardiacCLIP and NumCLIP against what the published code gave for inputs by formula."
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from echo_lit.core import EchoError
from echo_lit.models.backbone import Backbone
from echo_lit.models.ejection import UpstreamEF
from echo_lit.models.multiframe import FrameAttention, batch_statistics, enlarged, tile_boxes, tiles, upstream_zoom
from echo_lit.models.ordinal import OrdinalBins, Refine, bin_of, bin_sentences, check_sentences, expected_value
from echo_lit.training.ranking import UPSTREAM_WEIGHTS, EFLoss, class_to_clips_loss, distance_weights, ranking_clips_loss, ranking_loss
from echo_lit.training.shots import upstream_shots, upstream_window
from echo_lit.training.tuning import upstream_rates

FOLDER = Path(__file__).parent/'golden'/'cardiacclip'


def golden(name): return json.loads((FOLDER/f'{name}.json').read_text())


def wave(shape, a, b, c, a2=0., b2=0., c2=0.):
    k = np.arange(np.prod(shape), dtype=np.float64)
    return torch.from_numpy((a*np.sin(b*k + c) + a2*np.cos(b2*k + c2)).astype(np.float32)).view(*shape)


def hashed(shape, salt):
    k = np.arange(np.prod(shape), dtype=np.uint64)
    return torch.from_numpy((((k*2654435761 + salt*40503) % 2**32)/2**32 - .5).astype(np.float32)).view(*shape)


@pytest.mark.parametrize('size, shape, hidden', [('small', (2, 5, 8), 4), ('full', (2, 48, 512), 64)])
def test_frame_attention(size, shape, hidden):
    net, g = FrameAttention(shape[2], hidden, 'upstream'), np.load(FOLDER/'mfl.npz')
    gains = (4, 4, 4, 1)
    for i, (layer, gain) in enumerate(zip((*net.score[::2], net.out), gains)):
        fan = layer.weight.shape[1]
        w = hashed(layer.weight.shape, 10 + 2*i)*gain*(12/fan)**.5
        b = .1*np.cos(.5*np.arange(len(layer.bias)) + 2*i + 1)
        layer.weight.data, layer.bias.data = w, torch.from_numpy(b.astype(np.float32))
    x = 2*hashed(shape, 1)
    with torch.no_grad(): out, alpha = net(x)
    np.testing.assert_allclose(alpha, g[f'{size}_alpha'], atol=1e-5)
    np.testing.assert_allclose(out, g[f'{size}_out'], atol=1e-4)
    assert sum(p.numel() for p in net.parameters()) == {'small': 133, 'full': 299_713}[size]
    with torch.no_grad(): np.testing.assert_allclose(net(x.flip(1))[0], out, atol=1e-5)


def test_batch_statistics():
    g, x = golden('batchstat_norm'), wave((6, 4, 1, 1), 3, .9, .1, 1, .31, .4)
    assert batch_statistics(x).flatten().tolist() == pytest.approx(g['y_all6'], abs=1e-5)
    assert batch_statistics(x[:3]).flatten().tolist() == pytest.approx(g['y_first3_alone'], abs=1e-5)
    assert batch_statistics(wave((3, 4, 2, 3), 3, .9, .1, 1, .31, .4)).flatten().tolist() == pytest.approx(g['y_3x4x2x3'], abs=1e-5)
    assert batch_statistics(x[:1]).isnan().all() == g['n1_is_nan']


def test_bins_and_expectation():
    g, bins = golden('bins'), OrdinalBins()
    assert bin_of(bins, torch.tensor(g['ef'], dtype=torch.float64), 'upstream').tolist() == g['label']
    assert list(bins.centres) == g['prompt_values']
    assert expected_value(torch.tensor(g['logits_3x5']), torch.tensor(bins.centres))[0].tolist() == pytest.approx(g['expected_ef'], abs=1e-4)
    test = wave((3, 5), 4, 1.1, .2)
    assert test.tolist() == [pytest.approx(r, abs=1e-6) for r in g['logits_3x5']]


@pytest.mark.parametrize('case', ['six', 'two_diff', 'two_same', 'one'])
def test_losses(case):
    g, bins = golden('losses')[case], OrdinalBins()
    logits, ef = torch.tensor(g['logits'], requires_grad=True), torch.tensor(g['ef'])
    out = dict(ef=expected_value(logits, torch.tensor(bins.centres))[0], logits=logits)
    loss = EFLoss(bins, **UPSTREAM_WEIGHTS)
    parts, total = loss.parts(out, ef), loss(out, ef)
    assert [parts[k].item() for k in ('classes', 'clips', 'number')] == pytest.approx([g['ce'], g['kl'], g['reg']], abs=1e-4)
    assert total.item() == pytest.approx(g['total'], abs=1e-4)
    total.backward()
    np.testing.assert_allclose(logits.grad, g['grad_total'], atol=1e-4)
    again = torch.tensor(g['logits'], requires_grad=True)
    class_to_clips_loss(again, torch.tensor(g['label'])).backward()
    np.testing.assert_allclose(again.grad, g['grad_kl'], atol=1e-5)


@pytest.mark.parametrize('case', ['six', 'two', 'same'])
def test_ranking(case):
    g = golden('numclip_rank')[case]
    y = torch.tensor(g['labels'])
    np.testing.assert_allclose(distance_weights(y, 5), g['ce_weight'], atol=1e-6)
    for loss, name in ((ranking_loss, 'ce_dis'), (ranking_clips_loss, 'kl_dis')):
        logits = torch.tensor(g['logits'], requires_grad=True)
        value = loss(logits, y, 'upstream')
        assert value.item() == pytest.approx(g[name], abs=1e-5)
        value.backward()
        np.testing.assert_allclose(logits.grad, g[f'grad_{name}'], atol=1e-5)
    logits = torch.tensor(g['logits'])
    assert F.cross_entropy(logits, y).item() == pytest.approx(g['ce_plain'], abs=1e-5)
    assert class_to_clips_loss(logits, y).item() == pytest.approx(g['kl_plain'], abs=1e-5)


def test_ranking_weights_of_every_class():
    np.testing.assert_allclose(distance_weights(torch.arange(5), 5), golden('numclip_rank')['weight_rows_d5'], atol=1e-6)
    ages = golden('numclip_rank')['age_bins']
    bins = OrdinalBins((13., 19., 35., 65.), (6., 16., 27., 50., 80.), ('a', 'b', 'c', 'd', 'e'), 0., 100.)
    assert bin_of(bins, torch.tensor(ages['age'])).tolist() == ages['label']


def test_refinement_adds_nothing_at_first():
    refine = Refine(OrdinalBins((13., 19., 35., 65.), (6., 16., 27., 50., 80.), ('a', 'b', 'c', 'd', 'e'), 0., 100.), 'upstream')
    np.testing.assert_allclose(refine(torch.randn(4, 5)).detach(), np.tile([0, 13, 19, 35, 65], (4, 1)), atol=1e-2)
    assert sum(p.numel() for p in refine.parameters()) == 115


@pytest.mark.parametrize('name, side, tile', [('S112', 112, None), ('S224_split112', 224, 112), ('S224_split224', 224, 224), ('S112_three_scales', 112, None)])
def test_tile_boxes(name, side, tile):
    for g in golden('echozoom_boxes')[name]:
        assert tile_boxes(side, g['scale'], tile) == [tuple(b) for b in g['boxes_source_yxyx']]


def test_tile_order_and_sizes():
    g = golden('echozoom_boxes')
    x = torch.arange(2.).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    assert tiles(x)[:6, 0, 0, 0].tolist() == pytest.approx(g['split_batch_order_for_B2_n2'][:6], abs=1e-5)
    assert len(tile_boxes(168, tile=112)) == 9 and g['validity'] == {'S168': 'ok', 'S140': 'AssertionError'}
    with pytest.raises(EchoError): tile_boxes(140, tile=112)


def test_zoomed_features():
    g = np.load(FOLDER/'echozoom.npz')
    b, c, i, j = np.ogrid[:2, :3, :112, :112]
    v = torch.from_numpy((127.5 + 90*np.sin(.11*i + .7*b)*np.cos(.07*j - .9*c)).astype(np.float32))
    np.testing.assert_allclose(enlarged(v, 224)[:, :, :6, :6], g['bicubic_corner'], atol=1e-2)
    w = hashed((1024, 3, 32, 32), 7)/32
    def encode(x): return (.05*F.conv2d(x, w, stride=32)).tanh()
    whole, closer = encode(v), encode(tiles(v))
    fused = upstream_zoom(whole, closer)
    np.testing.assert_allclose(fused[:, :8], g['up_spatial_ch0_7'], atol=1e-4)
    np.testing.assert_allclose(fused.mean((-2, -1)), g['gap_upstream'], atol=1e-4)
    pooled = torch.cat([whole.mean((-2, -1)), closer.mean((-2, -1)).unflatten(0, (4, 2)).mean(0)], 1)
    np.testing.assert_allclose(pooled, g['gap_s2'], atol=1e-4)


@pytest.mark.parametrize('k', [1, 2, 4])
def test_shots_per_whole_number(k):
    g = golden('fewshot_sampler')
    rows = upstream_shots(np.array(g['ef']), k)
    assert [f'v{i:02d}' for i in rows] == g[f'k{k}']['files'] and np.floor(np.array(g['ef'])[rows]).tolist() == g[f'k{k}']['labels']


def test_windows():
    for g in golden('sampling'):
        idx, shift = upstream_window(g['n_frames'], np.random.RandomState(g['seed']), g['split'] == 'train')
        assert (idx[0], list(shift) if shift else None, (idx < 0).sum()) == (g['start'], g['pad_offset'], g['trailing_zero_frames'])


def test_rates():
    rates = upstream_rates(5e-5, epochs=100, steps=1)
    assert [rates(e) for e in range(101)] == pytest.approx(golden('schedule')['cosine_T100_lr5e-5'], abs=1e-12)


def test_rectified_adam_waits_five_steps():
    p = torch.tensor([1., -2., .5], requires_grad=True)
    opt, rate, seen = torch.optim.RAdam([p], lr=5e-3, betas=(.9, .999), eps=1e-8), upstream_rates(5e-3, wait=5), []
    for t in range(12):
        opt.param_groups[0]['lr'] = rate(t)
        p.grad = torch.stack([p[0].detach() + np.sin(.3*t), .5*p[1].detach(), torch.tensor(np.cos(.2*t), dtype=torch.float32)])
        opt.step()
        seen.append(p.tolist())
    np.testing.assert_allclose(seen, golden('radam')['upstream'], atol=2e-6)


def hashed_attention(net):
    for i, (layer, gain) in enumerate(zip((*net.score[::2], net.out), (4, 4, 4, 1))):
        layer.weight.data = hashed(layer.weight.shape, 10 + 2*i)*gain*(12/layer.weight.shape[1])**.5
        layer.bias.data = torch.from_numpy((.1*np.cos(.5*np.arange(len(layer.bias)) + 2*i + 1)).astype(np.float32))


def expected_fraction(looks, proj, net, words, scale, clips):
    "Steps d to g of the published flow in numpy, from the vectors of looks on."
    x = looks.astype(np.float64)
    x = (x - x.mean(0))/(x.std(0, ddof=1) + 1e-6)
    x = (x @ proj.T).reshape(clips, -1, len(proj))
    w = [(m.weight.detach().double().numpy(), m.bias.detach().double().numpy()) for m in (*net.score[::2], net.out)]
    s = np.tanh(np.tanh(x @ w[0][0].T + w[0][1]) @ w[1][0].T + w[1][1]) @ w[2][0].T + w[2][1]
    a = np.exp(s - s.max(1, keepdims=True))
    v = (a/a.sum(1, keepdims=True)*x).sum(1) @ w[3][0].T + w[3][1]
    p = np.exp(scale*(v/np.linalg.norm(v, axis=1, keepdims=True)) @ (words/np.linalg.norm(words, axis=1, keepdims=True)).T)
    return (p/p.sum(1, keepdims=True)) @ np.array([15, 37, 50, 62, 85.])


@pytest.mark.parametrize('clips', [1, 2])
def test_published_flow_from_clips_to_numbers(clips):
    g, w = np.load(FOLDER/'echozoom.npz'), hashed((1024, 3, 32, 32), 7)/32
    b, c, i, j = np.ogrid[:2, :3, :112, :112]
    pictures = torch.from_numpy((127.5 + 90*np.sin(.11*i + .7*b)*np.cos(.07*j - .9*c)).astype(np.float32))
    model = UpstreamEF(lambda x: (.05*F.conv2d(x, w, stride=32)).tanh(), 1024, hashed((5, 512), 3)).eval()
    hashed_attention(model.pool)
    model.proj.weight.data = hashed((512, 2048), 5)/10
    with torch.no_grad():
        np.testing.assert_allclose(model.looks(pictures), g['gap_upstream'], atol=1e-4)
        ef = model(pictures.view(clips, 3, 2//clips, 112, 112))['ef']
    # two pictures normalised against each other have columns of plus or minus one: the sign is what the golden decides
    wanted = expected_fraction(g['gap_upstream'], model.proj.weight.double().detach().numpy(), model.pool, hashed((5, 512), 3).double().numpy(), 1/.07, clips)
    assert ef.tolist() == pytest.approx(wanted.tolist(), abs=.05)


def test_published_flow_on_a_backbone_with_its_own_sentences():
    from echo_lit.data.contract import InputContract
    from echo_lit.models.echoclip import ClipImageTower
    from echo_lit.models.hub import Bundle, load_model
    torch.manual_seed(0)
    toy = dict(embed_dim=128, vision_cfg=dict(timm_model_name='test_convnext', timm_model_pretrained=False, timm_pool='', timm_proj='linear', image_size=64),
               text_cfg=dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=1))
    backbone = Backbone(Bundle('toy', video=ClipImageTower(InputContract(frames=4, size=64), toy), text=load_model('phantom-tiny').text)).eval()
    words = check_sentences(backbone.text, bin_sentences(OrdinalBins()))
    model = UpstreamEF(backbone.tower.visual.trunk.forward_features, 64, words).eval()
    clips = torch.randint(0, 256, (2, 3, 4, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        looks, out = model.looks(clips.float().reshape(8, 3, 64, 64)).numpy(), model(clips)
    wanted = expected_fraction(looks, model.proj.weight.double().detach().numpy(), model.pool, words.double().numpy(), 1/.07, 2)
    assert out['ef'].tolist() == pytest.approx(wanted.tolist(), abs=.05)
    assert (15 <= out['ef']).all() and (out['ef'] <= 85).all() and out['logits'].shape == (2, 5)
