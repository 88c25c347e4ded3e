"Losses against the numbers of open_clip and DeepCORO, and what must hold for any batch."
import json
from pathlib import Path
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from echo_lit.training.losses import Scale, balancing_weights, clip_loss, same_report, siglip_loss
from echo_lit.training.loaders import FindingCodec
from echo_lit.training.sections import section_loss, section_targets

GOLDEN = json.loads((Path(__file__).parents[1]/'parity'/'golden'/'contrastive_losses.json').read_text())


def golden_inputs():
    b, d, m = (GOLDEN['inputs'][k] for k in 'BDM')
    def wave(f, n, a, c, e): return f(a*torch.arange(n)[:, None] + c*torch.arange(d)[None] + e)
    mask, weights = (torch.tensor(GOLDEN['inputs'][k]) for k in ('pos_mask', 'pos_weights'))
    return wave(torch.sin, b, .7, 1.3, .1), wave(torch.cos, b, .5, -.9, .2), wave(torch.cos, m, .5, -.9, .2), mask, weights


@pytest.mark.parametrize('name', [k for k in GOLDEN['expected'] if k not in ('cos_diag', 'logits_multipos_no_bias')])
def test_published_value(name):
    v, t, many, mask, weights = golden_inputs()
    ours = {
        'clip_softmax_tau0.1': lambda: clip_loss(v, t), 'openclip_ClipLoss_scale10': lambda: clip_loss(v, t),
        'clip_softmax_tau0.1_labelsmooth0.1': lambda: clip_loss(v, t, smoothing=.1),
        'openclip_SigLipLoss_scale10_bias-10_sum_over_B': lambda: siglip_loss(v, t),
        'siglip_bce_mean_tau0.1_bias-10_diag': lambda: siglip_loss(v, t, per_pair=True),
        'siglip_multipos_bias-10': lambda: siglip_loss(v, many, positives=mask, per_pair=True),
        'siglip_multipos_bias0': lambda: siglip_loss(v, many, bias=0, positives=mask, per_pair=True),
        'siglip_multipos_bias0_weights': lambda: siglip_loss(v, many, bias=0, positives=mask, weights=weights, per_pair=True),
        'siglip2_multipos_bce_bias-10_weights': lambda: siglip_loss(v, many, positives=mask, weights=weights, per_pair=True),
        'gated_softmax_deepcoro_siglip_tau0.1': lambda: clip_loss(v, t, gated=True),
        'siglip2_bce_mean_tau0.1_bias-10_diag_ls0.1': lambda: siglip_loss(v, t, smoothing=.1, per_pair=True),
        'siglip_multipos_bias0_weights_pos2_neg0.5': lambda: siglip_loss(v, many, bias=0, positives=mask, weights=2*weights, negative=.5, per_pair=True),
        'siglip_multipos_bias0_autobalance': lambda: siglip_loss(v, many, bias=0, positives=mask, weights=balancing_weights(mask), per_pair=True),
        'multi_positive_infonce_mask': lambda: clip_loss(v, many, positives=mask),
        'multi_positive_infonce_weights': lambda: clip_loss(v, many, positives=weights),
        'multi_positive_infonce_no_positive': lambda: clip_loss(v, many, positives=torch.zeros_like(mask))}[name]()
    assert ours.item() == pytest.approx(GOLDEN['expected'][name], rel=1e-5, abs=1e-6)


def test_inputs_are_the_published_ones():
    v, t, many, *_ = golden_inputs()
    np.testing.assert_allclose(F.cosine_similarity(v, t), GOLDEN['expected']['cos_diag'], atol=1e-6)
    logits = 10*F.normalize(v, dim=1) @ F.normalize(many, dim=1).T
    np.testing.assert_allclose(logits, GOLDEN['expected']['logits_multipos_no_bias'], atol=1e-5)


def test_length_and_order_do_not_matter():
    v, t, *_ = golden_inputs()
    p = torch.tensor([2, 0, 3, 1])
    for loss in (clip_loss, siglip_loss):
        assert loss(7*v, .2*t).item() == pytest.approx(loss(v, t).item(), rel=1e-5)
        assert loss(v[p], t[p]).item() == pytest.approx(loss(v, t).item(), rel=1e-5)


def test_rows_without_a_report_get_no_gradient_from_their_own_row():
    v, t = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4)
    none = torch.tensor([[True, False], [False, False], [False, False]])
    loss = clip_loss(v, t, positives=none)
    assert torch.isfinite(loss)
    clip_loss(v, t, positives=torch.zeros(3, 2)).backward()
    assert v.grad.abs().max() == 0


def test_same_report_of_texts_and_numbers():
    assert same_report(['a', 'b'], ['b', 'a', 'b']).tolist() == [[False, True, False], [True, False, True]]


@pytest.mark.parametrize('rows', [1, 3, 4, 9])
def test_siglip_a_few_clips_at_a_time(rows):
    v, _, many, mask, weights = golden_inputs()
    def run(**kwargs):
        x = [v.clone().requires_grad_(), many.clone().requires_grad_(), torch.tensor(10., requires_grad=True), torch.tensor(-10., requires_grad=True)]
        (loss := siglip_loss(*x, positives=mask, weights=weights, **kwargs)).backward()
        return loss.detach(), *(o.grad for o in x)
    for a, b in zip(run(), run(rows=rows)): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_scale_stays_bounded_and_learns():
    s = Scale(20., 1., 50.)
    s().backward()
    assert s.log.grad != 0
    s.log.data += 10
    assert s() == 50


def codec(): return FindingCodec(['ef', 'lvidd', 'ivc_dilated'], [50, 5, 0], [15, .8, 1])


def test_section_targets_ignore_other_sections_and_unsaid_findings():
    c = codec()
    bank = c.encode([dict(ef=50, ivc_dilated=True), dict(ef=50, ivc_dilated=False), dict(ef=20, ivc_dilated=True)])
    target, asked = section_targets(c.encode([dict(ef=50)]), bank, c)
    assert asked.sum() == 1 and target.sum(-1).allclose(torch.ones(1, 15))
    assert target[0, 0, 0] == target[0, 0, 1] > .49 > target[0, 0, 2]


def test_reports_that_do_not_say_it_are_far():
    c = codec()
    target, _ = section_targets(c.encode([dict(ef=50, lvidd=5.)]), c.encode([dict(ef=50, lvidd=5.), dict(ef=50)]), c)
    assert target[0, 0, 0] > .99


def test_section_loss_is_zero_only_at_the_target():
    c = codec()
    y = c.encode([dict(ef=20 + 5*i) for i in range(8)])
    texts = F.normalize(torch.randn(8, 16, generator=torch.manual_seed(0)), dim=1)
    target, asked = section_targets(y, y, c)
    queries = torch.zeros(8, 15, 16)
    queries[:, 0] = texts
    right, wrong = section_loss(queries, texts, target, asked, 30), section_loss(queries.roll(4, 0), texts, target, asked, 30)
    assert 0 <= right < wrong
