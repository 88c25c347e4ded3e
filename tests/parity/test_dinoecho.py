"Encoder with and without registers, holes, head and pooling of DINO-ECHO against what the published code gave for inputs by formula."
from pathlib import Path

import numpy as np
import pytest
import torch

from echo_lit.data.contract import InputContract
from echo_lit.models.dinov2 import DinoTower, load_dinov2
from echo_lit.models.pooling import mean_pool
from echo_lit.training.augment import RandAugment
from echo_lit.training.crops import MultiCrop
from echo_lit.training.dino import Dino, DinoConfig, begin_with
from echo_lit.training.teacher import DinoHead

G = np.load(Path(__file__).parent/'golden'/'dinoecho'/'modules.npz')
ONE = InputContract(frames=1, seconds=None, stride=1, size=16)


def golden(name): return torch.from_numpy(G[name])


def close(a, b, atol=2e-5): torch.testing.assert_close(a, b, atol=atol, rtol=2e-5)


def encoder(name, folder):
    "The tiny encoder as the file of a training run."
    state = {f'backbone.{k.removeprefix(f"vit/{name}/w/")}': golden(k) for k in G.files if k.startswith(f'vit/{name}/w/')}
    torch.save(dict(teacher=state), folder/'teacher.pth')
    return load_dinov2(folder/'teacher.pth', heads=2, contract=ONE).video.vit.requires_grad_(False)


def pictures(name): return golden(f'vit/{name}')[:, :, None]


@pytest.mark.parametrize('name', ['reg0_mlp', 'reg4_mlp', 'reg0_swiglu'])
def test_encoder(name, tmp_path):
    vit = encoder(name, tmp_path)
    x = vit(pictures('x16'))
    close(x[:, 0], golden(f'vit/{name}/cls'))
    close(x[:, vit.extra:], golden(f'vit/{name}/patch'))


@pytest.mark.parametrize('name', ['reg0_mlp', 'reg4_mlp'])
def test_holes(name, tmp_path):
    vit, registers = encoder(name, tmp_path), 4*(name == 'reg4_mlp')
    sizes = dict(width=12, depth=2, heads=2, patch=4, registers=registers, prototypes=8, hidden=8, middle=4)
    model = begin_with(Dino(DinoConfig(**sizes), MultiCrop(16, 8, 1, changes=RandAugment(erase=0.)), ONE), vit)
    with torch.no_grad():
        model.mask_token.copy_(golden(f'vit/{name}/w/mask_token')[None])
        seen = model.eval().seen(pictures('x16'), golden('vit/ibot_mask'))
    close(seen[:, 0], golden(f'vit/{name}/cls_masked'))


@pytest.mark.parametrize('name', ['reg0_mlp', 'reg4_mlp', 'reg0_swiglu'])
def test_other_sizes_differ_by_the_offset_of_a_tenth(name, tmp_path):
    vit = encoder(name, tmp_path)
    vit.antialias = False
    class_token = vit(pictures('x24x20'))[:, 0]
    wanted = golden(f'vit/{name}/cls_24x20_interp')
    assert (class_token - wanted).abs().max() < .05*wanted.abs().max()
    if f'vit/{name}/pos_interp_24x20' not in G.files: return
    places = golden(f'vit/{name}/pos_interp_24x20')[:, 1:]
    first, table = vit.positions((1, 6, 5)), vit.pos_embed.unflatten(1, (4, 4))[0].permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(table, scale_factor=(6.1/4, 5.1/4), mode='bicubic').flatten(2).transpose(1, 2)
    close(theirs, places)
    assert (first - places).abs().max() < .1*places.abs().max()


def test_head():
    head = DinoHead(12, 20, 16, 8)
    head.load_state_dict({k.removeprefix('dinohead/w/'): golden(k) for k in G.files if k.startswith('dinohead/w/') and not k.endswith('weight_g')})
    close(head.logits(head(golden('dinohead/x')))*golden('dinohead/w/last_layer.weight_g')[:, 0], golden('dinohead/out'))


def frame_features():
    "Class tokens that stand for a backbone: a sine of the place times the mean of a channel."
    x, mean, std = golden('study/video_0_255')/255, torch.tensor([.485, .456, .406]), torch.tensor([.229, .224, .225])
    channel = ((x.mean((3, 4)) - mean[:, None])/std[:, None]).transpose(1, 2)     # [B,F,3]
    d = torch.arange(1024)
    return (.01*(d + 1)).sin()*channel[..., d % 3] + .001*d


def like(out, name):
    close(out[:, :32], golden(f'study/{name}/out_first32'), 1e-4)
    torch.testing.assert_close(out.norm(dim=1), golden(f'study/{name}/out_norm'), rtol=1e-4, atol=1e-4)


def by_formula(module):
    "Weights from their place in the sorted list of names."
    for i, (name, t) in enumerate(sorted(module.state_dict().items())):
        values = .2*np.sin(.5*np.arange(t.numel()) + .7*i) + (t.ndim == 1 and name.endswith('weight'))
        t.copy_(torch.from_numpy(values).view(t.shape))
    return module.requires_grad_(False)


def test_mean_over_a_study():
    e, mask = frame_features(), golden('study/mask') > 0
    like(mean_pool(e, mask)[0], 'mean_noproj')
    like(mean_pool(e, torch.ones_like(mask))[0], 'video_mean')
    tower = DinoTower(ONE, projected=True, width=1024, depth=0, heads=16, patch=16)
    like(by_formula(tower.proj)(mean_pool(e, mask)[0]), 'mean_proj')


def test_mean_over_words():
    close(mean_pool(golden('textpool/hidden'), golden('textpool/mask') > 0)[0], golden('textpool/mean'))
