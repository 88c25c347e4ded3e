"Views of any table: names, numbers, weights, calibration, what is not said."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_lit.core import EchoError
from echo_lit.data.contract import InputContract
from echo_lit.data.manifest import manifest
from echo_lit.models.video import FrameVideoTower
from echo_lit.models.views import (ConvNeXtViews, TowerViews, ViewClassifier, abstention_curve, coarse_probabilities, fit_temperature, fit_threshold,
                                   view_classifier)
from echo_lit.training.views import view_classes, view_numbers, view_weights
from echo_lit.vocabulary import COARSE_VIEWS, FINE_VIEWS

SMALL = InputContract(frames=4, size=32)


def made():
    torch.manual_seed(0)
    tower = FrameVideoTower(width=32, embed_dim=8, depth=1, heads=2, widths=(32, 32, 32), contract=SMALL)
    return {'frames': ViewClassifier(contract=SMALL, widths=(32, 32, 32)), 'fine': ViewClassifier(contract=SMALL, widths=(32, 32, 32), classes=[*FINE_VIEWS]),
            'tower': TowerViews(tower, ('A4C', 'A2C')), 'frozen': TowerViews(tower, ('A4C', 'A2C', 'cat'), frozen=True),
            'convnext': ConvNeXtViews(contract=SMALL, width=8, depths=(1, 1, 1, 1))}


@pytest.mark.parametrize('name', list(made()))
def test_a_configuration_rebuilds_the_classifier(name):
    m, x = made()[name].eval(), torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    m.temperature.fill_(1.3), m.threshold.fill_(.2)
    twin = view_classifier(m.config())
    twin.load_state_dict(m.state_dict())
    (p, said), (q, told) = m.predict(x), twin.predict(x)
    assert torch.equal(p, q) and said == told and tuple(twin.classes) == tuple(m.classes) and p.shape[1] == len(m.classes)
    torch.testing.assert_close(m.predict(x[:1])[0], p[:1], rtol=1e-4, atol=1e-5)


def test_the_bundled_configuration_keeps_its_form():
    assert set(ViewClassifier(contract=SMALL).config()) == {'n', 'widths', 'frames', 'dropout', 'contract'}
    assert set(ViewClassifier(contract=SMALL).state_dict()) >= {'temperature', 'threshold', 'head.2.weight'}


def test_a_frozen_tower_is_not_trained():
    frozen = made()['frozen'].train()
    learned = [n for n, p in frozen.named_parameters() if p.requires_grad]
    assert not frozen.tower.training and learned == ['head.0.weight', 'head.0.bias', 'head.2.weight', 'head.2.bias']


def test_fine_views_add_up_to_coarse_ones():
    p = torch.rand(3, len(FINE_VIEWS)).softmax(1)
    coarse = coarse_probabilities(p, tuple(FINE_VIEWS))
    assert torch.allclose(coarse.sum(1), torch.ones(3)) and torch.equal(coarse_probabilities(coarse, COARSE_VIEWS), coarse)
    with pytest.raises(EchoError, match='cat'): coarse_probabilities(p[:, :2], ('A4C', 'cat'))


def test_classes_come_in_the_order_of_the_vocabulary():
    names = [*FINE_VIEWS][:3] + ['zebra', 'ant', *reversed(COARSE_VIEWS)]
    rows = [dict(clip_id=str(i), view=v) for i, v in enumerate(names)] + [dict(clip_id='x', view='gone', excluded=True, exclude_reason='test')]
    classes = view_classes(manifest(rows, 'toy'))
    assert classes == (*COARSE_VIEWS, *[v for v in [*FINE_VIEWS][:3] if v not in COARSE_VIEWS], 'ant', 'zebra')
    assert view_numbers(['zebra'], classes).item() == len(classes) - 1


@pytest.mark.parametrize('power', [0., .5, 1.])
def test_weights_of_rare_views(power):
    labels = np.repeat([0, 1, 3], [100, 25, 4])
    w = view_weights(labels, 5, power)
    assert w[[2, 4]].tolist() == [0, 0] and w[[0, 1, 3]].mean().item() == pytest.approx(1)
    assert (w[3]/w[0]).item() == pytest.approx(25**power, rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(0, 999), st.booleans(), st.floats(.3, 1))
def test_threshold_is_a_point_of_the_curve(n, seed, ties, wanted):
    g = torch.Generator().manual_seed(seed)
    p = torch.rand(n, 4, generator=g)
    p = (p*3).round() + .1 if ties else p
    p, y = p/p.sum(1, keepdim=True), torch.randint(4, (n,), generator=g)
    thresholds, share, right = abstention_curve(p, y)
    assert (thresholds.diff() < 0).all() and share[-1] == 1 and right[-1].item() == pytest.approx((p.argmax(1) == y).double().mean().item())
    for t, s, r in zip(thresholds, share, right):
        named = p.amax(1) >= t
        assert s.item() == pytest.approx(named.double().mean().item()) and r.item() == pytest.approx((p.argmax(1) == y)[named].double().mean().item())
    t, s = fit_threshold(p, y, wanted)
    if s:
        named = p.amax(1) >= t
        assert (p.argmax(1) == y)[named].double().mean() >= wanted - 1e-9 and s == pytest.approx(named.double().mean().item())
        assert not (right[share > s + 1e-9] >= wanted).any()
    else: assert (right < wanted).all()


def test_temperature_of_sharpened_logits():
    g = torch.Generator().manual_seed(0)
    z = 2*torch.randn(8000, 5, generator=g)
    y = torch.multinomial(z.softmax(1), 1, generator=g)[:, 0]
    assert fit_temperature(4*z, y)/fit_temperature(z, y) == pytest.approx(4, rel=1e-3)
