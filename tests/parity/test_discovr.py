"Encoders, positions, clips and checkpoint names of DISCOVR against what the published code gave for inputs by formula."
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from echo_lit.data.contract import InputContract
from echo_lit.models.discovr import _BESIDE, _WHICH, DiscovrTower, discovr_indices, without_positions
from echo_lit.models.videomae import PHOTOGRAPHS, encoder_part, vit_names, vit_sizes
from echo_lit.models.vit import ViT, sine_table

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
        elif n == 1: t = 1 + .1*np.sin(.5*i + k) if name.endswith('weight') else .05*np.sin(.9*i + k)
        else: t = (2*((43758.5453*np.sin(12.9898*(i + 1) + 78.233*k)) % 1) - 1)*np.sqrt(3/np.prod(shape[1:]))
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
