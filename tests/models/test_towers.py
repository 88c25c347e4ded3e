"Towers against numbers of the published ones, with weights and inputs given by formula."
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from echo_lit.models.text import TextTower
from echo_lit.models.video import FrameVideoTower, MViTTower, autocast

GOLDEN = json.loads((Path(__file__).parents[1]/'parity'/'golden'/'echoprime_towers.json').read_text())
MEAN = torch.tensor([29.110628, 28.076836, 29.096405]).view(3, 1, 1, 1)
STD = torch.tensor([47.989223, 46.456997, 47.20083]).view(3, 1, 1, 1)


def fill(module):
    "Weights from a sine of their place, so that no random generator has to agree between versions."
    state = module.state_dict()
    for i, key in enumerate(sorted(state)):
        t = state[key]
        if not t.is_floating_point(): continue
        place = np.arange(t.numel(), dtype=np.int64)
        wave = np.sin(0.37*((7919*place + 104729*i) % 10007))
        if t.ndim >= 2: wave = wave/math.sqrt(t.numel()/t.shape[0])
        else: wave = 1 + 0.1*wave if key.endswith('weight') else 0.02*wave
        t.copy_(torch.from_numpy(wave.reshape(t.shape)).float())
    return module.eval()


def pattern(B, T, H, W):
    "Integer-valued clips [B,3,T,H,W] in 0..255."
    b, c, t, h, w = np.meshgrid(*map(np.arange, (B, 3, T, H, W)), indexing='ij')
    return torch.from_numpy(((13*b + 37*c + 11*t + 3*h + 5*w + h*w//7) % 256).astype(np.uint8))


@pytest.fixture(scope='module')
def mvit(): return fill(MViTTower(embed_dim=512)).requires_grad_(False)


@pytest.fixture(scope='module')
def clips(): return (pattern(1, 16, 224, 224).float() - MEAN)/STD


def test_mvit_gives_the_published_embedding(mvit, clips):
    assert len(mvit.state_dict()) == 397 and sum(p.numel() for p in mvit.parameters()) == 34_623_872
    with torch.inference_mode(): z = mvit.encode_normalised(clips)
    torch.testing.assert_close(z, torch.tensor(GOLDEN['echoprime_video_embedding'][:1]), atol=1e-4, rtol=0)


def test_mvit_in_mixed_precision_keeps_the_direction(mvit, clips):
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16): z = mvit.encode_normalised(clips).float()
    assert torch.cosine_similarity(z, torch.tensor(GOLDEN['echoprime_video_embedding'][:1])).min() > 0.999


@pytest.mark.parametrize('T,H,W', [(8, 96, 160), (5, 72, 72)])
def test_mvit_of_other_sizes_is_torchvisions(mvit, T, H, W):
    from torchvision.models.video import MViT
    born = mvit.pos_encoding.temporal_size, mvit.pos_encoding.spatial_size
    x = torch.randn(1, 3, T, H, W, generator=torch.Generator().manual_seed(0))
    mvit.pos_encoding.temporal_size, mvit.pos_encoding.spatial_size = (T + 1)//2, (H//4, W//4)
    try:
        with torch.inference_mode(): theirs = MViT.forward(mvit, x)
    finally: mvit.pos_encoding.temporal_size, mvit.pos_encoding.spatial_size = born
    with torch.inference_mode(): ours = mvit.encode_normalised(x)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_mvit_gradients_are_torchvisions():
    from torchvision.models.video import MViT
    model = fill(MViTTower(embed_dim=8))
    model.pos_encoding.temporal_size, model.pos_encoding.spatial_size = 2, (16, 16)
    x, grads = torch.randn(1, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0)), []
    for forward in (model.encode_normalised, lambda x: MViT.forward(model, x)):
        model.zero_grad()
        forward(x).square().sum().backward()
        grads.append({k: p.grad.clone() for k, p in model.named_parameters()})
    for k, g in grads[0].items(): torch.testing.assert_close(g, grads[1][k], atol=1e-3, rtol=1e-2, msg=k)


def test_bert_tower_gives_the_published_embedding():
    tower = fill(TextTower(vocab_size=30522, width=768, layers=12, heads=12, embed_dim=512, pool='first'))
    ids = torch.arange(512)*37 % 30000 + 5
    ids[0], ids[511] = 2, 3
    ids = ids.repeat(2, 1)
    ids[1, 40], ids[1, 41:] = 3, 0
    mask = torch.ones(2, 512, dtype=torch.bool)
    mask[1, 41:] = False
    with torch.inference_mode(): z = tower(ids, mask)
    torch.testing.assert_close(z, torch.tensor(GOLDEN['echoprime_text_embedding']), atol=1e-4, rtol=0)


@pytest.mark.parametrize('T,size', [(1, 112), (16, 64), (7, 96), (32, 160)])
def test_frame_tower_takes_any_length_and_size(T, size):
    tower = FrameVideoTower(width=32, embed_dim=8, depth=1, heads=2, widths=(32, 32, 32)).eval()
    with torch.inference_mode(): assert tower(pattern(2, T, size, size)).isfinite().all()


def test_frame_tower_in_mixed_precision_keeps_the_direction():
    torch.manual_seed(0)
    tower, x = FrameVideoTower().eval(), pattern(2, 16, 112, 112)
    with torch.inference_mode():
        full = tower(x)
        with autocast('cpu'): mixed = tower(x).float()
    assert torch.cosine_similarity(full, mixed).min() > 0.999


def test_every_parameter_of_the_frame_tower_learns():
    tower = FrameVideoTower(width=32, embed_dim=8, depth=1, heads=2, widths=(32, 32, 32))
    opt = torch.optim.SGD(tower.parameters(), 1e-2)
    for _ in range(2):
        opt.zero_grad()
        tower(pattern(2, 4, 64, 64)).square().sum().backward()
        opt.step()
    assert [n for n, p in tower.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
