"The upstream preset against what the published mask made of drawn clips; the default against the truth where upstream fails."
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from echo_lit.data.sector import find_sector, published_mask, sector_mask, times_lit

GOLDEN = json.loads((Path(__file__).parent/'golden'/'echoprime_mask.json').read_text())

def drawn(n, h, w, move=True, box=True):
    "Stored Y, Cb, Cr: a textured fan, and with `box` a label, a rule and a thin trace."
    v = np.zeros((n, h, w, 3), np.uint8)
    v[..., 1:] = 128
    y, x = np.mgrid[:h, :w]
    dy, dx = y - 8, x - w/2
    fan = (np.abs(dx) <= .8*dy) & (np.hypot(dx, dy) <= h - 14) & (dy >= 2)
    for f in range(n): v[f, ..., 0] = np.where(fan, 40 + (3*x + 5*y + 17*f*move) % 160, 0)
    if box:
        v[:, 3:9, 3:23, 0], v[:, h - 6:h - 4, :, 0] = 200, 180
        for f in range(n): v[f, h - 12 + f % 3, :, 0] = 150
    return v, fan

def masked(v):
    mask = sector_mask(v, preset='upstream')
    return np.stack([cv2.cvtColor(f, cv2.COLOR_YUV2BGR) for f in v])*mask[..., None]

def rgb(v): return np.stack([cv2.cvtColor(f, cv2.COLOR_YUV2RGB) for f in v])

@pytest.mark.parametrize('name', ['a', 'b'])
def test_stored_clips(name):
    g = GOLDEN['stored'][name]
    out = masked(drawn(g['frames'], g['height'], g['width'])[0])
    assert out.any(-1).sum((1, 2)).tolist() == g['nonzero_per_frame'] and int(out.sum(dtype=np.int64)) == g['sum']

@pytest.mark.parametrize('name, convert', [('a', lambda v: v), ('rgb_input', rgb)])
def test_bit_for_bit(name, convert):
    out = masked(convert(drawn(6, 120, 160)[0]))
    assert hashlib.sha256(out.tobytes()).hexdigest() == GOLDEN['masked_sha256'][name]

def test_rgb_handed_to_it():
    out = masked(rgb(drawn(6, 120, 160)[0]))
    assert out.any(-1).sum((1, 2)).tolist() == GOLDEN['rgb_input']['nonzero_per_frame'] and int(out.sum()) == GOLDEN['rgb_input']['sum']

def test_static_clip_is_emptied():
    assert masked(drawn(6, 120, 160, move=False)[0]).any(-1).sum() == GOLDEN['static_nonzero']

@pytest.mark.parametrize('n', [253, 254, 255, 256, 257, 510, 511, 512])
def test_the_count_wraps(n):
    out = masked(drawn(n, 64, 96, box=False)[0])[0]
    assert out.any(-1).sum() == GOLDEN['nonzero_in_frame_0_by_clip_length'][str(n)]

@pytest.mark.parametrize('seed', range(8))
def test_fast_count_is_the_plain_count(seed):
    rng = np.random.default_rng(seed)
    v = np.zeros((300, 40, 50, 3), np.uint8)
    v[..., 0] = rng.integers(0, 3, v.shape[:3])*rng.integers(0, 2, v.shape[:3])
    v[..., 1:] = rng.integers(124, 132, (*v.shape[:3], 2)) if seed % 2 else 128
    grey = np.stack([cv2.cvtColor(cv2.cvtColor(f, cv2.COLOR_YUV2RGB), cv2.COLOR_RGB2GRAY) for f in v])
    plain = (grey > 0).sum(0) + (grey[0] > 0)
    assert (times_lit(v) == plain.astype(np.uint8)).all()

@pytest.mark.parametrize('n', [1, 2, 16, 255, 256, 511])
def test_default_holds_for_any_number_of_frames(n):
    v, fan = drawn(n, 120, 160, box=False)
    found = find_sector(rgb(v))
    assert found.source == ('light' if n == 1 else 'motion')
    if n > 1: assert (found.mask & fan).sum()/(found.mask | fan).sum() > .93

def test_default_finds_a_static_clip_by_its_light():
    v, fan = drawn(6, 120, 160, move=False, box=False)
    found = find_sector(rgb(v))
    assert found.source == 'light' and (found.mask & fan).sum()/(found.mask | fan).sum() > .93
    assert not published_mask(v).any()

def test_colour_has_no_say_in_the_default():
    v, _ = drawn(12, 120, 160)
    grey = rgb(v)
    tinted = (grey*np.array([1, .8, .6])).astype(np.uint8)
    a, b = sector_mask(grey), sector_mask(tinted)
    assert (a & b).sum()/(a | b).sum() > .97
