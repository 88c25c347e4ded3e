"Ways to pool against the numbers of the published multi-instance probe."
import json
from pathlib import Path

import pytest
import torch

from echo_lit.models.pooling import BagPool

GOLDEN = json.loads((Path(__file__).parent/'golden'/'deepcoro'/'pooling.json').read_text())
MODES = {'attn': 'attention', 'cls': 'cls', 'mean': 'mean', 'max': 'max', 'attn_cls': 'attention+cls', 'mean_cls': 'mean+cls'}
OURS = {'attention_V': 'gated.content', 'attention_U': 'gated.gate', 'attention_w': 'gated.score', 'cls_attention_within': 'within.attend',
        'cls_attention_across': 'over.attend', 'cls_attention': 'over.attend', 'cls_norm_within': 'within.norm', 'cls_norm_across': 'over.norm',
        'cls_norm': 'over.norm', 'view_embedding': 'views'}


def seq(shape, a, b, c):
    n = torch.Size(shape).numel()
    return (c*torch.sin(a*torch.arange(n, dtype=torch.float64) + b)).view(shape).float()


def weights(shapes):
    "Each tensor by its published name."
    return {name: seq(shape, .5, .7*i, .2) + (len(shape) == 1 and name.endswith('weight')) for i, (name, shape) in enumerate(sorted(shapes.items()))}


@pytest.mark.parametrize('case', sorted(GOLDEN['cases']))
def test_published_pool(case):
    golden, kind = GOLDEN['cases'][case], case.partition('_view')[0].replace('_post', '').replace('_pre', '').replace('_sep', '').replace('_shared', '')
    state = weights(golden['weights'])
    pool = BagPool(8, MODES[kind[:-1]], hidden=5, heads=2, n_views=3 if 'view' in case else 0, norm_first='pre' in case, shared='shared' in case).eval()
    named = {}
    for name, w in state.items():
        if name.startswith('heads.'): continue
        head, _, tail = name.partition('.')
        named['token' if head == 'cls_token' else f'{OURS[head]}.{tail}'] = w.flatten() if head == 'cls_token' else w
    if 'mean' in case: named = {k: w for k, w in named.items() if not k.startswith('within')}
    pool.load_state_dict(named)
    mask, ids = torch.tensor(GOLDEN['mask_valid_true']).bool(), torch.tensor(GOLDEN['view_ids'])
    views = torch.nn.functional.one_hot(ids, 4)[..., :3].float() if 'view' in case else None
    x = seq((2, 4, 8), .37, .1, 1) if kind.endswith('3') else seq((2, 4, 3, 8), .21, .3, 1)
    with torch.no_grad(): pooled, _ = pool(x, mask, views)
    torch.testing.assert_close(pooled, torch.tensor(golden['pooled']), rtol=2e-5, atol=2e-6)
    for head in 'ab':
        out = torch.nn.functional.linear(pooled, state[f'heads.{head}.weight'], state[f'heads.{head}.bias'])
        torch.testing.assert_close(out, torch.tensor(golden[f'out_{head}']), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize('mode', BagPool.modes)
def test_every_parameter_learns_and_dropout_is_for_training(mode):
    torch.manual_seed(0)
    x, mask, views = torch.randn(3, 4, 2, 8), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0]*4]).bool(), torch.rand(3, 4, 3)/3
    pool = BagPool(8, mode, 5, 2, n_views=3, dropout=.5)
    pooled, _ = pool(x, mask, views)
    pooled[:, torch.arange(pool.width) % 3 == 0].sum().backward()
    assert [n for n, p in pool.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    if 'cls' in mode: assert not torch.equal(pool(x, mask, views)[0], pool(x, mask, views)[0])
    pool.eval()
    assert torch.equal(pool(x, mask, views)[0], pool(x, mask, views)[0])


@pytest.mark.parametrize('mode', BagPool.modes)
def test_one_study_does_not_touch_another(mode):
    torch.manual_seed(0)
    x, mask = torch.randn(2, 4, 8, requires_grad=True), torch.ones(2, 4, dtype=torch.bool)
    BagPool(8, mode, 5, 2)(x, mask)[0][0].square().sum().backward()
    assert x.grad[1].abs().max() == 0 and x.grad[0].abs().max() > 0
