"EchoNet-Dynamic's windows and beats, by row 28 of the parity table and by drawn ventricles; files that are damaged."
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from echo_lit.core import Clip, EchoError
from echo_lit.models import echonet
from echo_lit.models.echonet import ECHONET_CONTRACT, beat_fractions, curve_height, echonet_clip, echonet_starts, systoles, ventricle_curve
from echo_lit.models.hub import load_model
from echo_lit.models.weights import WeightsError


def clip_of(n, size=112, fps=50., value=90):
    frames = np.full((n, size, size, 3), value, np.uint8)
    return Clip('0d8be71c55aa', n, size, size, lambda i: frames[i], fps, 'file', (.05, .05))


@pytest.mark.parametrize('n,clips,zeros', [(80, 18, 0), (40, 2, 12), (64, 2, 0), (63, 2, 0), (1, 2, 31)])
def test_windows_of_the_published_loader(n, clips, zeros):
    assert len(echonet_starts(n)) == clips
    x = ECHONET_CONTRACT.normalise(echonet_clip(clip_of(n), 0, 'upstream')[None])
    assert int((x == 0).flatten(3).all(3).all(1).sum()) == zeros


@pytest.mark.parametrize('n', [1, 2, 3, 30, 100, 500])
def test_trimmed_height_by_powers(n):
    areas = np.random.default_rng(n).random(n)
    s = np.sort(areas)
    lo, hi = (min(round(n**p), n - 1) for p in (.05, .95))
    assert curve_height(areas, 'upstream') == s[hi] - s[lo]


def heart(bpm, fps, seconds, ef=.6, phase=.2):
    t = np.arange(round(seconds*fps))/fps
    return 1 - ef*(.5 - .5*np.cos(2*np.pi*bpm/60*(t - phase)))


@pytest.mark.parametrize('bpm', [50, 75, 110, 140])
@pytest.mark.parametrize('fps', [25, 30, 50, 90])
def test_every_beat_is_found_at_any_rate(bpm, fps):
    area = heart(bpm, fps, 4)
    troughs = [.2 + (k + .5)*60/bpm for k in range(-1, 20)]
    inside = [t for t in troughs if .5*60/bpm < t < 4 - .5*60/bpm]
    found = systoles(area, fps)/fps
    assert all(np.abs(found - t).min() <= 1/fps for t in inside) and len(found) <= len(inside) + 2


@pytest.mark.parametrize('ef', [.2, .5, .7])
def test_fraction_of_a_drawn_ventricle(ef):
    y, x = np.mgrid[:112, :112] - 55.5
    masks = np.stack([(x/20/math.sqrt(s))**2 + (y/44)**2 <= 1 for s in heart(75, 50, 3, ef)])
    beats = ventricle_curve(masks, 50, .1).beats()
    assert len(beats) >= 3 and np.allclose(beats.ef, 100*ef, atol=2) and (beats.ed_seconds < beats.es_seconds).all()


def test_noise_and_an_empty_mask_have_no_volume_curve_to_trust():
    flat = np.zeros((60, 112, 112), bool)
    curve = ventricle_curve(flat)
    assert not len(curve.systoles) and curve.beats().empty and not curve.volumes.any()


class Drawn(torch.nn.Module):
    contract = replace(ECHONET_CONTRACT, stride=1)

    def __init__(self, areas):
        super().__init__()
        self.rest, self.p = [np.arange(112*112).reshape(112, 112) < 3000*a for a in areas], torch.nn.Parameter(torch.zeros(1))

    def forward(self, frames):
        out, self.rest = self.rest[:len(frames)], self.rest[len(frames):]
        return torch.from_numpy(np.stack(out))*2. - 1


def test_windows_of_beats_fit_unless_published(monkeypatch):
    seen = {}
    monkeypatch.setattr(echonet, 'window_fractions', lambda tower, clip, starts, preset: seen.update({preset: starts}) or np.zeros(len(starts)))
    tower = type('T', (), dict(contract=ECHONET_CONTRACT))
    for preset in ('default', 'upstream'):
        areas = heart(75, 50, 2.6)
        found = beat_fractions(tower, Drawn(areas), clip_of(len(areas)), preset)[1].systoles
    assert seen['upstream'] == np.maximum(0, found - 32).tolist()
    assert seen['default'] == np.minimum(seen['upstream'], len(areas) - 63).tolist() and max(seen['default']) + 62 < len(areas)


def test_no_beat_is_said():
    with pytest.raises(EchoError, match='no beat'): beat_fractions(None, Drawn(np.ones(60)), clip_of(60))


def test_the_other_network_is_not_loaded(tmp_path):
    from torchvision.models.video import r3d_18
    state = {f'module.{k}': t for k, t in r3d_18(num_classes=1).state_dict().items()}
    torch.save({'state_dict': state}, tmp_path/'r2plus1d_18_32_2_pretrained.pt')
    with pytest.raises(WeightsError, match='do not fit the model'): load_model('echonet-ef', tmp_path)
    whole = (tmp_path/'r2plus1d_18_32_2_pretrained.pt').read_bytes()
    (tmp_path/'r2plus1d_18_32_2_pretrained.pt').write_bytes(whole[:len(whole)//2])
    with pytest.raises(WeightsError, match='cut short'): load_model('echonet-ef', tmp_path)
