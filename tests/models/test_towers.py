"Towers of any size against torchvision's, with weights and inputs given by formula."
import numpy as np
import pytest
import torch

from echo_lit.models.echoprime import formula_weights
from echo_lit.models.mvit import MViTTower
from echo_lit.models.video import FrameVideoTower, autocast

def pattern(B, T, H, W):
    "Integer-valued clips [B,3,T,H,W] in 0..255."
    b, c, t, h, w = np.meshgrid(*map(np.arange, (B, 3, T, H, W)), indexing='ij')
    return torch.from_numpy(((13*b + 37*c + 11*t + 3*h + 5*w + h*w//7) % 256).astype(np.uint8))


@pytest.fixture(scope='module')
def mvit(): return formula_weights(MViTTower(embed_dim=32, width=16)).requires_grad_(False).eval()


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
    model = formula_weights(MViTTower(embed_dim=8, width=16)).eval()
    model.pos_encoding.temporal_size, model.pos_encoding.spatial_size = 2, (16, 16)
    x, grads = torch.randn(1, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0)), []
    for forward in (model.encode_normalised, lambda x: MViT.forward(model, x)):
        model.zero_grad()
        forward(x).square().sum().backward()
        grads.append({k: p.grad.clone() for k, p in model.named_parameters()})
    for k, g in grads[0].items(): torch.testing.assert_close(g, grads[1][k], atol=1e-3, rtol=1e-2, msg=k)


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
