"Attention that learns from findings: what a batch, padding and order may not change, and the table it leaves."
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.data.core import DataLoaders

from echo_lit.data.candidates import read_view_weights
from echo_lit.models.attention import AnatomicalAttention
from echo_lit.models.hub import Bundle, load_bundle, save_bundle
from echo_lit.models.pooling import SectionPool, attention_module
from echo_lit.training.attention import (SectionHead, StudyTeacher, assessable, attention_learner, clip_influence, study_findings_loss, study_loader,
                                         view_section_table)
from echo_lit.training.loaders import FindingCodec
from echo_lit.vocabulary import COARSE_VIEWS, FINDINGS, SECTIONS

CODEC = FindingCodec(['ef', 'lv_size', 'ivc_dilated'], [50, 0, 0], [15, 1, 1])
WAYS = ('mean', 'max', 'attention', 'cls', 'attention+cls')
MODULES = {'anatomical': lambda: AnatomicalAttention(8, hidden=4), **{m: lambda m=m: SectionPool(8, mode=m, heads=2) for m in WAYS}}


def studies(n=3, clips=5):
    torch.manual_seed(0)
    mask = torch.arange(clips) < torch.tensor([5, 2, 3])[:n, None]
    return torch.randn(n, clips, 8), F.one_hot(torch.randint(11, (n, clips)), 11).float(), mask


def teacher(name):
    torch.manual_seed(1)
    t = StudyTeacher(MODULES[name](), codec=CODEC).eval()
    for p in t.parameters(): torch.nn.init.normal_(p, 0, .3)
    return t


@pytest.mark.parametrize('name', MODULES)
def test_batch_padding_and_order_do_not_matter(name):
    t, (e, p, mask) = teacher(name), studies()
    with torch.no_grad():
        whole = t(e, p, mask)
        alone = t(e[1:2, :2], p[1:2, :2], mask[1:2, :2])
        rubbish = t(e.masked_fill(~mask[..., None], 1e9), p.masked_fill(~mask[..., None], 7.), mask)
        order = torch.tensor([4, 2, 0, 1, 3])
        turned = t(e[:, order], p[:, order], mask[:, order])
    for k in ('findings', 'queries'):
        for other, row in ((alone[k], slice(1, 2)), (rubbish[k], slice(None)), (turned[k], slice(None))):
            torch.testing.assert_close(other, whole[k][row], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turned['weights'], whole['weights'][..., order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', MODULES)
def test_every_parameter_of_the_attention_learns(name):
    t, (e, p, mask) = StudyTeacher(MODULES[name](), codec=CODEC), studies()
    torch.nn.init.normal_(t.attention.score.weight) if name == 'anatomical' else None
    y = torch.tensor([[0., 1., 1.], [1., 0., 0.], [-1., 2., 1.]])
    study_findings_loss(t(e, p, mask), F.pad(y, (1, 0)), CODEC).backward()
    assert [n for n, q in t.named_parameters() if q.grad is None] == []


def test_a_finding_is_said_by_its_section_alone():
    queries = torch.randn(2, 15, 8, requires_grad=True)
    for i, code in enumerate(CODEC.codes):
        queries.grad = None
        SectionHead(CODEC, 8)(queries)[:, CODEC.column == i].sum().backward()
        assert queries.grad.abs().sum((0, 2)).nonzero()[:, 0].tolist() == [SECTIONS.index(FINDINGS[code].section)]


def test_state_names_of_bundles_stay():
    assert set(AnatomicalAttention(8).state_dict()) == {'content.weight', 'content.bias', 'gate.weight', 'gate.bias', 'score.weight', 'prior', 'project'}


@pytest.mark.parametrize('name', MODULES)
def test_config_builds_the_same_module(name):
    module = MODULES[name]()
    twin = attention_module(module.config())
    twin.load_state_dict(module.state_dict())
    for a, b in zip(twin.eval()(*studies()), module.eval()(*studies())): torch.testing.assert_close(a, b)


def test_tokens_of_clips_are_read_in_two_levels():
    e, p, mask = studies()
    pool = SectionPool(8, mode='cls', heads=2).eval()
    tokens = torch.stack([e, e.roll(1, -1)], 2)
    queries, weights = pool(tokens, p, mask)
    assert queries.shape == (3, 15, 8) and weights.shape == (3, 15, 5)
    torch.testing.assert_close(pool(tokens.flip(2), p, mask)[0], queries, rtol=1e-4, atol=1e-5)
    assert (pool(tokens*torch.rand(1, 1, 2, 8), p, mask)[0] - queries).abs().max() > 1e-3


def test_a_study_without_a_view_is_not_asked():
    e, p, mask = studies()
    p = F.one_hot(torch.full((3, 5), COARSE_VIEWS.index('A4C')), 11).float()
    out = teacher('anatomical')(e, p, mask)
    assert (assessable(p, mask)[:, SECTIONS.index('IVC')] == 0).all()
    y = torch.tensor([[0., 0., 0.]]*3)
    loss = [study_findings_loss(out, F.pad(y.index_fill(1, torch.tensor([2]), v), (1, 0)), CODEC).item() for v in (0., 1.)]
    assert loss[0] == loss[1]


def test_the_table_has_the_published_layout(tmp_path):
    rng = np.random.default_rng(0)
    n, m = 40, 200
    rows, named = rng.integers(0, n, m), np.arange(m) % 11
    y = CODEC.encode([dict(ef=50., ivc_dilated=bool(i % 2)) for i in range(n)])
    views = F.one_hot(torch.from_numpy(named), 11).float()
    dl = study_loader(torch.randn(1, m, 8), views[None], rows, np.unique(rows), y, bs=8)
    learn = attention_learner(DataLoaders(dl, dl), AnatomicalAttention(8, hidden=4), CODEC, half=False)
    table = view_section_table(learn.model.attention, dl)
    assert list(table.index) == list(SECTIONS) and list(table) == list(COARSE_VIEWS) and table.index.name == 'Section'
    assert (table.min(axis=1) == 0).all() and (table.max(axis=1) == 1).all()
    table.to_csv(tmp_path/'MIL_weights.csv')
    np.testing.assert_allclose(read_view_weights(tmp_path/'MIL_weights.csv'), table.to_numpy(), atol=1e-6)
    assert table.loc['IVC'].idxmax() == 'Subcostal'


def test_influence_is_zero_where_there_is_nothing():
    e, p, mask = studies()
    influence = clip_influence(teacher('anatomical').attention, e, p, mask)
    assert influence.shape == (3, 15, 5) and (influence[~mask[:, None].expand_as(influence)] == 0).all() and (influence >= -1e-6).all()


def test_a_bundle_keeps_any_way_to_pool(tmp_path):
    module = SectionPool(8, mode='attention+cls', heads=2).eval()
    again = load_bundle(save_bundle(Bundle('pooled', attention=module), tmp_path/'pooled')).attention
    assert type(again) is SectionPool
    for a, b in zip(again(*studies()), module(*studies())): torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)
