"Encoders, positions, clips, checkpoint names, masks, losses and gradients of DISCOVR against what the published code gave for inputs by formula."
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, precision_recall_fscore_support

from echo_lit.data.contract import InputContract
from echo_lit.models.discovr import _BESIDE, _WHICH, DiscovrTower, discovr_indices, without_positions
from echo_lit.models.videomae import PHOTOGRAPHS, encoder_part, vit_names, vit_sizes
from echo_lit.models.vit import ViT, sine_table
from echo_lit.training.collapse import knn_votes
from echo_lit.training.discovr import Discovr, discovr_config, discovr_state, mismatched, standardised
from echo_lit.training.distillation import cluster_distillation_loss, prototype_scores, sinkhorn
from echo_lit.training.masks import Seen, crop_corners, crop_sizes, draw_views, lowest, region_patches, visible_count
from echo_lit.training.teacher import cosine_values, follow, held_values

FOLDER = Path(__file__).parent/'golden'/'discovr'


def golden(name): return json.loads((FOLDER/f'{name}.json').read_text())


@pytest.mark.parametrize('name', ['1568x768', '1569x384', '49x768', '6272x768', '8x24'])
def test_positions(name):
    g, (n, width) = golden('pos_embed')['tables'][name], map(int, name.split('x'))
    table = sine_table(n, width).double()
    assert table.sum().item() == pytest.approx(g['sum'], abs=1e-2) and table.abs().sum().item() == pytest.approx(g['abs_sum'], abs=1e-2)
    for row, first in ((1, 'row1_first8'), (-1, 'last_row_first8')): assert table[row, :8].tolist() == pytest.approx(g[first], abs=1e-6)
    assert table[-1, -4:].tolist() == pytest.approx(g['last_row_last4'], abs=1e-6)


def test_small_table_whole():
    table = next(iter(np.load(FOLDER/'pos_embed_8x24.npz').values()))
    np.testing.assert_allclose(sine_table(8, 24).numpy(), table.reshape(8, 24), atol=1e-6)


@pytest.mark.parametrize('which', ['teacher', 'student'])
def test_every_name_of_the_paper_checkpoint(which):
    state = {k: torch.empty(s, device='meta') for k, s in golden('checkpoint_keys_paper_config').items()}
    assert len(state) == 693
    found = vit_names(encoder_part(state, _WHICH[which], _BESIDE))
    assert found.pop('pos_embed').shape == (1, 1569, 768)
    sizes = vit_sizes(found)
    assert {k: sizes[k] for k in ('width', 'depth', 'heads', 'tubelet', 'patch', 'cls', 'qkv_bias')} == dict(
        width=768, depth=12, heads=12, tubelet=2, patch=16, cls=True, qkv_bias=True)
    with torch.device('meta'): own = DiscovrTower(**sizes).vit.state_dict()
    assert {k: t.shape for k, t in found.items()} == {k: t.shape for k, t in own.items()}


def test_a_name_that_is_not_in_the_paper_checkpoint():
    state = {k: torch.empty(s, device='meta') for k, s in golden('checkpoint_keys_paper_config').items()}
    with pytest.raises(ValueError, match='unknown .video_gate.weight'):
        encoder_part(state | {'video_gate.weight': torch.empty(1)}, _WHICH['teacher'], _BESIDE)


@pytest.mark.parametrize('n', [1, 2, 40, 100, 190, 191, 192, 193])
def test_indices_at_stride_three(n):
    g, i = golden('clip_sampling')['pretrain (new_length=64,new_step=3,1 segment)'][str(n)], discovr_indices(n)
    assert (i[:8].tolist(), i[-4:].tolist(), len(set(i.tolist()))) == (g['first8'], g['last4'], g['n_unique'])


@pytest.mark.parametrize('n,start', [(250, 44), (1000, 684)])
def test_indices_from_a_later_start(n, start):
    g, i = golden('clip_sampling')['pretrain (new_length=64,new_step=3,1 segment)'][str(n)], discovr_indices(n, start=start)
    assert (i[:8].tolist(), i[-4:].tolist()) == (g['first8'], g['last4'])


def test_indices_of_the_parent():
    for n, g in golden('clip_sampling')['pretrain (16,2)'].items(): assert discovr_indices(int(n), 16, 2).tolist() == g


def test_normalisation():
    g = np.load(FOLDER/'normalise.npz')
    contract = InputContract(frames=2, seconds=None, stride=1, size=8, **PHOTOGRAPHS)
    x = contract.normalise(torch.from_numpy(g['frames']).permute(3, 0, 1, 2)[None])
    np.testing.assert_allclose(x[0].numpy(), g['out'], atol=1e-5)


@pytest.mark.parametrize('name', ['112px 64 frames', '96px 64 frames', '224px 64 frames', '112px 32 frames', '112px 16 frames'])
def test_frames_left_raw(name):
    g = golden('normalise_bug')['results'][name]
    tower = DiscovrTower(preset='upstream', width=24, depth=0, heads=3)
    x = tower.normalise(torch.full(g['shape'], 128, dtype=torch.uint8)[None, :, :, :1, :1].expand(-1, -1, -1, g['shape'][2], 1))[0, :, :, 0, 0]
    first = g['first_unnormalised_frame'] or x.shape[1]
    torch.testing.assert_close(x[:, :first], torch.tensor(g['normalised_value_rgb'])[:, None].expand(-1, first), atol=1e-6, rtol=0)
    torch.testing.assert_close(x[:, first:], torch.full_like(x[:, first:], g['raw_value']), atol=1e-6, rtol=0)


def tiny_weights():
    "Every tensor of the tiny model from its place in the sorted list of names."
    out = {}
    for k, (name, shape) in enumerate(golden('tiny_keys').items()):
        i, n = np.arange(int(np.prod(shape))), len(shape)
        if name.endswith('pos_embed'): t = np.concatenate([np.zeros((1, shape[2])), sine_table(shape[1] - 1, shape[2]).numpy()])
        elif name.endswith('weight_g'): t = np.ones(shape)
        elif name.endswith('_center'): t = .02*np.sin(.7*i + k)
        elif n == 1: t = 1 + .1*np.sin(.5*i + k) if name.endswith('weight') else .05*np.sin(.9*i + k)
        else: t = (2*((43758.5453*np.sin(12.9898*(i + 1) + 78.233*k)) % 1) - 1)*np.sqrt(3/(24 if name == 'mask_token' else np.prod(shape[1:])))
        out[name] = torch.from_numpy(t.reshape(shape)).float()
    return out


def tiny_video():
    b, c, t, y, x = np.meshgrid(*map(np.arange, (3, 3, 4, 48, 48)), indexing='ij')
    return torch.from_numpy(np.sin(.5*b + .21*y)*np.cos(.3*t - .17*x) + .3*c*np.sin(t + .005*x*y)).float()


def encoder(state, part, eps=1e-6, grid=(2, 3, 3)):
    own = {k.removeprefix(part): t for k, t in state.items() if k.startswith(part)}
    own = without_positions(vit_names(own), int(np.prod(grid)), part)
    vit = ViT(**vit_sizes(own, heads=3), grid=grid, eps=eps).eval().requires_grad_(False)
    vit.load_state_dict(own)
    return vit


def after_average(state, student, teacher, m=.99):
    "Teachers move before the forward pass."
    return {k: m*t + (1 - m)*state[student + k.removeprefix(teacher)] for k, t in state.items() if k.startswith(teacher)}


@pytest.fixture(scope='module')
def tiny(): return tiny_weights(), np.load(FOLDER/'tiny_encoders.npz')


def test_masked_views(tiny):
    state, g = tiny
    vit = encoder(state, 'encoder.')
    for name, mask in (('out_encoder_0', g['global_mask']), *((f'out_encoder_{i + 1}', m) for i, m in enumerate(g['local_masks']))):
        visible = torch.from_numpy(~mask).nonzero()[:, 1].view(3, -1)
        torch.testing.assert_close(vit(tiny_video(), visible), torch.from_numpy(g[name]), atol=1e-5, rtol=0)


def test_teacher_sees_all(tiny):
    state, g = tiny
    teacher = after_average(state, 'encoder.', 'video_teacher.')
    np.testing.assert_allclose(teacher['video_teacher.blocks.0.attn.proj.weight'].numpy(), g['ema'], atol=1e-6)
    torch.testing.assert_close(encoder(teacher, 'video_teacher.')(tiny_video()), torch.from_numpy(g['out_video_teacher_0']), atol=1e-5, rtol=0)


def test_image_encoder_is_the_case_of_one_frame(tiny):
    state, g = tiny
    vit = encoder(after_average(state, 'image_student.', 'image_teacher.'), 'image_teacher.', eps=1e-5, grid=(1, 3, 3))
    assert vit.blocks[0].attn.qkv.bias is None
    frames = tiny_video().transpose(1, 2).flatten(0, 1)[:, :, None]
    torch.testing.assert_close(vit(frames), torch.from_numpy(g['out_image_teacher_1']), atol=1e-5, rtol=0)


SIZES = dict(width=24, depth=2, heads=3, decoder_width=12, decoder_depth=1, decoder_heads=2, prototypes=10, classes=16, hidden=20, middle=8, views=2,
             frame_ratio=.7)


def close(a, b, eps=1e-5): torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), atol=eps, rtol=0, check_dtype=False)


@pytest.mark.parametrize('name', ['eps0.05_it10', 'eps0.05_it3', 'eps0.03_it10', 'eps0.1_it1', 'eps0.05_it0'])
def test_sinkhorn(name):
    g = np.load(FOLDER/'sinkhorn.npz')
    i, k = np.meshgrid(np.arange(24), np.arange(6), indexing='ij')
    scores = torch.from_numpy(.6*np.sin(1.7*(6*i + k) + .3) + .3*np.cos(.9*k + .05*i)).float()
    close(scores, g['scores'], 1e-6)
    eps, iters = name.removeprefix('eps').split('_it')
    q = sinkhorn(scores, float(eps), int(iters))
    close(q, g[f'q_{name}'])
    if name == 'eps0.05_it10': assert q.argmax(1).tolist() == g['argmax_eps0.05_it10'].tolist()


@pytest.mark.parametrize('name', golden('masks')['counts'])
def test_counts(name):
    g, (grid, ratio) = golden('masks')['counts'][name], name.removeprefix('tube ').rsplit(' ', 1)
    t, h, w = map(int, grid.strip('()').split(','))
    n = visible_count(h*w, float(ratio))
    assert (n, h*w - n, n*t, (h*w - n)*t) == tuple(g[k] for k in ('visible_per_frame', 'masked_per_frame', 'visible_total', 'masked_total'))


def first_frames(seen, n): return [v[0, :v.shape[1]//n].tolist() for v in (seen.whole, *seen.parts)]


def test_seeded_views():
    g = golden('masks')['seeded']
    torch.manual_seed(0)
    wanted = next(v for k, v in g.items() if k.startswith('multi_local random'))
    assert first_frames(draw_views(1, (32, 7, 7)), 32) == wanted
    torch.manual_seed(0)
    wanted = next(v for k, v in g.items() if k.startswith('multi_local mixed'))
    assert first_frames(draw_views(1, (32, 7, 7), 'mixed', .9, .7, 2), 32) == wanted


@pytest.mark.parametrize('name', golden('masks')['region'])
def test_regions(name):
    g, (grid, share) = golden('masks')['region'][name], name.split(' visible_ratio=')
    side = int(grid.strip('()').split(',')[1])
    torch.manual_seed(1)
    n = np.array([region_patches(1, 16*side, share=float(share)).shape[1] for _ in range(g['n'])])
    assert (n.mean(), n.min(), n.max()) == (g['mean_visible_per_frame'], g['min'], g['max'])


@pytest.mark.parametrize('name,args', [
    ('pretrain_lr_b64_it100', (1.5e-4*64/256, 1e-4*64/256, 40000, 4000)), ('tiny', (1.5e-4, 1e-5, 50, 10)),
    ('wd_cos_0.04_to_0.4', (.04, .4, 20)), ('finetune_lr_b96_it7', (1e-3*96/256, 1e-6*96/256, 210, 35)), ('warmup_steps_override', (1., 0., 20, 3))])
def test_schedules(name, args):
    g, values = golden('schedules')[name], cosine_values(*args)
    assert len(values) == g.get('len', len(values))
    wanted = g['values'] if isinstance(g['values'], dict) else dict(enumerate(g['values']))
    np.testing.assert_allclose([values[int(k)] for k in wanted], list(wanted.values()), rtol=1e-9, atol=1e-15)


def test_teacher_temperature():
    values = held_values(.04, .07, 400, 30)
    for k, v in golden('schedules')['teacher_temp']['values'].items(): assert values[int(k)] == pytest.approx(v, abs=1e-8)


@pytest.mark.parametrize('m', ['0.99', '0.996'])
def test_average(m):
    for n, share in golden('schedules')['ema'][f'm={m}'].items():
        teacher, student = torch.nn.Linear(1, 1, bias=False).double(), torch.nn.Linear(1, 1, bias=False).double()
        torch.nn.init.zeros_(teacher.weight), torch.nn.init.ones_(student.weight)
        for _ in range(int(n)): follow(teacher, student, float(m))
        assert teacher.weight.item() == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize('size', ['112x112', '224x224'])
def test_crops(size):
    g, n = golden('multi_scale_crop')[f'image {size} -> 112'], int(size[:3])
    assert sorted((w, h) for h, w in crop_sizes(n, n)) == sorted(map(tuple, g['crop_pairs(w,h)']))
    assert {(x, y) for y, x in crop_corners(n - int(.75*n), n - int(.75*n))} == set(map(tuple, g['offsets for (0.75,0.75) crop']))


def test_pairs_that_the_published_loss_makes():
    g = golden('token_alignment')
    other = torch.cartesian_prod(torch.arange(64), torch.arange(49)).view(1, 64, 49, 2).expand(200, -1, -1, -1)
    own = torch.cartesian_prod(torch.arange(32), torch.arange(49)).expand(200, -1, -1)
    torch.manual_seed(0)
    x, f = mismatched(own, other, draw_views(200, (32, 7, 7), views=0).whole)
    tubelet, patch = x[..., 0] == f[..., 0]//2, x[..., 1] == f[..., 1]
    assert tubelet.double().mean().item() == pytest.approx(g['fraction_same_tubelet'], abs=1e-9)
    assert patch.double().mean().item() == pytest.approx(g['fraction_same_patch'], abs=2e-4)
    assert (tubelet & patch).double().mean().item() == pytest.approx(g['fraction_both'], abs=2e-4)
    for j, at in g['examples_j_to_teacher(frame,patch)'].items(): assert f[0, int(j)].tolist() == at


class Ready(Discovr):
    "A model whose clips are on the scale of the networks already."
    def normalise(self, clips): return clips


def whole_model(preset='upstream', **changes):
    contract = InputContract(frames=4, seconds=None, stride=1, size=48)
    model = Ready(discovr_config(preset, **SIZES, **changes), contract)
    state = discovr_state(tiny_weights(), model.grid)
    for k, t in state.items():      # a key's bias is fixed to zero there
        if k.endswith('qkv.bias'): assert (t[len(t)//3:2*len(t)//3] == 0).all()
    model.load_state_dict(state)
    for pair in model.pairs(): follow(*pair, .99)      # there, teachers move before the step
    g = {**np.load(FOLDER/'tiny_encoders.npz'), **np.load(FOLDER/'tiny_terms.npz')}
    def at(mask): return torch.from_numpy(~mask).nonzero()[:, 1].view(3, -1)
    frames = lowest(torch.from_numpy(g['image_rand']), .7).transpose(0, 1)
    return model, Seen(at(g['global_mask']), tuple(at(m) for m in g['local_masks']), frames), g


LOSSES = golden('tiny_losses')
NAMES = dict(clusters='scd_video_predicts_image_assignments(swav2)', back='scd_image_predicts_video_assignments(swav1, no grad)', video='video_dino',
             image='image_dino', loss='total_upstream')


def test_terms_of_the_tiny_model():
    model, seen, _ = whole_model()
    for k, v in model(tiny_video(), seen).items(): assert v.item() == pytest.approx(LOSSES['losses'][NAMES[k]], rel=2e-6, abs=1e-5), k


def test_centres_and_prototypes_of_the_tiny_model():
    model, seen, g = whole_model()
    model(tiny_video(), seen)
    close(model.image_dino.centre, g['image_center_after'])
    close(model.video_dino.centre, g['video_center_after'])
    close(model.prototypes.detach(), g['prototypes_after_norm'])


def norms(model, loss):
    model.zero_grad()
    loss.backward()
    out = {}
    for n, p in model.named_parameters():
        part = n.removeprefix('decoder.') if 'token' in n or 'to_decoder' in n else n
        if p.grad is not None: out.setdefault(part.split('.')[0], []).append(p.grad.norm())
    return {k: torch.stack(v).norm().item() for k, v in out.items() if torch.stack(v).norm() > 0}


@pytest.mark.parametrize('term', ['scd', 'video_dino', 'image_dino'])
def test_gradient_norms_of_the_tiny_model(term):
    model, seen, _ = whole_model()
    terms = model(tiny_video(), seen)
    loss = dict(scd=terms['clusters'] + terms['back'], video_dino=terms['video'], image_dino=terms['image'])[term]
    assert norms(model, loss) == pytest.approx(LOSSES['grad_norm_by_term_and_module'][term], rel=1e-4)


def test_whole_gradient_of_the_tiny_model():
    model, seen, _ = whole_model()
    model(tiny_video(), seen)['loss'].backward()
    total = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert total.item() == pytest.approx(LOSSES['grad_total_norm'], rel=1e-5)


def test_decoder_scores_and_assignments_of_the_tiny_model():
    model, seen, g = whole_model()
    video = tiny_video()
    with torch.no_grad():
        x = model.completed(model.encoder.embed(video), seen.whole)
        frames = video.transpose(1, 2).flatten(0, 1)[:, :, None]
        tokens = model.look(frames)
        close(tokens, g['out_image_teacher_0'])
        x, f = mismatched(x, standardised(tokens[:, 1:]).unflatten(0, (3, -1)), seen.whole)
    close(x, g['decoder_out'])
    unit = torch.nn.functional.normalize(model.prototypes.detach(), dim=1)
    mine = {k: prototype_scores(t, unit) for k, t in (('x', x), ('f', f))}
    theirs = {k: torch.from_numpy(g[f'scores{n}']) for k, n in (('f', 1), ('x', 2))}
    if (mine['x'] - theirs['x']).abs().max() > 1e-4: theirs = dict(x=theirs['f'], f=theirs['x'])
    for k in mine: close(mine[k], theirs[k])
    swapped = {k: n for n in (1, 2) for k in mine if torch.equal(torch.from_numpy(g[f'scores{n}']), theirs[k])}
    for k, n in swapped.items(): close(sinkhorn(mine[k]), g[f'q{n}'])


def test_aligned_tokens_of_the_tiny_model():
    model, seen, _ = whole_model('default')
    g = LOSSES['reference_aligned_not_upstream']
    terms = model(tiny_video(), seen)
    assert terms['clusters'].item() == pytest.approx(g['soft_target_scd_video_predicts_image'], abs=1e-5)
    model.config = replace(model.config, assign='hard')
    hard = model(tiny_video(), seen)
    assert hard['clusters'].item() == pytest.approx(g['scd_video_predicts_image'], abs=1e-5)
    assert hard['back'].item() == pytest.approx(g['scd_image_predicts_video'], abs=1e-5)


def test_all_names_of_the_paper_checkpoint():
    shapes = golden('checkpoint_keys_paper_config')
    with torch.device('meta'): model = Discovr(discovr_config('upstream'), InputContract(frames=64, seconds=None, stride=3))
    state = {k: torch.empty(s, device='meta') for k, s in shapes.items() if not k.endswith(('pos_embed', 'weight_g'))}
    tables = {k: torch.zeros(s) for k, s in shapes.items() if k.endswith('pos_embed')}
    for t in tables.values(): t[0, 1:] = sine_table(t.shape[1] - 1, t.shape[2])
    ours = discovr_state(state | tables | {k: torch.ones(s) for k, s in shapes.items() if k.endswith('weight_g')}, model.grid)
    assert {k: t.shape for k, t in ours.items()} == {k: t.shape for k, t in model.state_dict().items()}


def test_soft_loss_is_the_formula_in_chunks():
    torch.manual_seed(0)
    x, f, p = torch.randn(3, 18, 24), torch.randn(3, 18, 24), torch.nn.functional.normalize(torch.randn(10, 24), dim=1)
    q = sinkhorn(prototype_scores(f, p))
    by_hand = -(q*(prototype_scores(x, p)/.1).log_softmax(2)).sum(2).mean()
    for chunk in (5, 54, 100): close(cluster_distillation_loss(x, f, p, chunk=chunk)[0], by_hand)


@pytest.mark.parametrize('name', golden('knn')['metrics'])
def test_nearest_neighbours(name):
    g, x = golden('knn')['metrics'][name], np.load(FOLDER/'knn_features.npz')
    k, temperature = name.removeprefix('k').split('_T')
    found = knn_votes(*(torch.from_numpy(x[n]) for n in ('bank', 'bank_labels', 'query')), int(k), float(temperature)).argmax(1).numpy()
    truth = x['query_labels']
    p, r, f, _ = precision_recall_fscore_support(truth, found, average='macro')
    wanted = dict(accuracy=accuracy_score(truth, found), balanced_accuracy=balanced_accuracy_score(truth, found), f1_score=f, precision=p, recall=r)
    assert wanted == pytest.approx(g, abs=1e-9)
