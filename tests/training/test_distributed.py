"Two processes by torchrun and gloo are one process with batches twice as large: weights, losses and metrics, with odd numbers of clips."
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from echo_lit.cli import run
from echo_lit.training.distributed import RanksError, join_ranks, slurm_script, started_ranks

SCRIPT = """
import json, sys
from functools import partial
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
import fastai.callback.schedule
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.metrics import AccumMetric, mae
from fastai.torch_core import rank_distrib, set_seed
from torch import nn
from echo_lit.core import Clip
from echo_lit.data.contract import InputContract
from echo_lit.data.manifest import manifest
from echo_lit.training import reader
from echo_lit.training.batches import clip_batches
from echo_lit.training.distributed import every_rank, join_ranks, leave_ranks
from echo_lit.training.learner import echo_learner
from echo_lit.training.memory import Accumulate
from echo_lit.training.resume import Checkpoints
from echo_lit.training.schedule import Average

CONTRACT = InputContract(frames=2, seconds=.1, size=16, mask=False, crop='centre')

def film(row, source):
    rng = np.random.default_rng(int(row.clip_id, 16))
    return Clip(row.clip_id, 8, 16, 16, lambda at: rng.integers(0, 255, (len(at), 16, 16, 3), dtype=np.uint8), 25., 'test')

def changed(x, rng): return np.clip(x*rng.uniform(.8, 1.2), 0, 255).astype(np.uint8)

def films(n):
    return manifest([dict(clip_id=f'{i:012x}', patient_id=f'p{i}', study_id=f's{i}', path=f'{i}.avi', kind='bmode', ef=.1*i) for i in range(n)], 'toy')

def loaders(kind, n, bs):
    if kind == 'echo':
        reader.open_clip, table = film, films(n + 9)
        of = dict(source='.', contract=CONTRACT, names=['ef'], bs=bs)
        return DataLoaders(clip_batches(table[:n], train=True, augment=changed, **of), clip_batches(table[n:], **of))
    x = torch.randint(0, 255, (n + 9, 3, 2, 16, 16), dtype=torch.uint8)
    pairs = [(a, a.float().std()[None]/50) for a in x]
    return DataLoaders(DataLoader(pairs[:n], bs=bs, shuffle=True), DataLoader(pairs[n:], bs=bs))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(48, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 1))
        self.register_buffer('seen', torch.zeros(1))
    def forward(self, x): return self.layers(F.adaptive_avg_pool3d(x.float()/255, (1, 4, 4)).flatten(1))

class Kill(Callback):
    order = 200
    def after_batch(self):
        if self.training and self.train_iter == 4: raise KeyboardInterrupt

def worst(p, y): return (p - y).abs().max()

CASES = dict(plain=('fastai', 23), one_left=('fastai', 17), echo=('echo', 23), echo_one_left=('echo', 17),
             gathered=('fastai', 23, Accumulate(12)), averaged=('echo', 23, Average(.9)))

def trained(name, world, cbs=()):
    set_seed(5, reproducible=True)
    kind, n, *more = CASES[name]
    learn = echo_learner(loaders(kind, n, 8//world), Net(), F.mse_loss, lr=.02, half=False, cbs=[*more, *cbs],
                         metrics=[mae, AccumMetric(worst, flatten=False)])
    with every_rank(learn), learn.no_bar(), learn.no_logging(): learn.fit_cosine(2)
    return dict(weights=torch.cat([p.detach().flatten() for p in learn.model.parameters()]).tolist(), losses=[float(v) for v in learn.recorder.losses],
                values=[list(v) for v in learn.recorder.values], buffers=type(learn.model).__name__)

def stopped(folder, world, kind):
    CASES['stopped'] = (kind, 23)
    try: trained('stopped', world, [Checkpoints(folder, every=3), Kill()])
    except KeyboardInterrupt: pass
    return trained('stopped', world, [Checkpoints(folder, every=3)])

if __name__ == '__main__':
    torch.set_num_threads(1)
    world, folder = join_ranks(int(sys.argv[1])), Path(sys.argv[2])
    result = {name: trained(name, world) for name in CASES}
    for kind in ('fastai', 'echo'):
        CASES[f'{kind}_whole'] = (kind, 23)
        result[f'{kind}_whole'], result[f'{kind}_stopped'] = trained(f'{kind}_whole', world), stopped(folder/kind/str(world), world, kind)
    rank = rank_distrib()
    leave_ranks()
    result['threads'] = [(p/'comm').read_text().strip() for p in Path('/proc/self/task').glob('*')]
    (folder/f'{world}-{rank}.json').write_text(json.dumps(result))
"""


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    (folder/'script.py').write_text(SCRIPT)
    env = {k: v for k, v in os.environ.items() if k not in ('WORLD_SIZE', 'RANK')} | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    two = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    for call in ([sys.executable, str(folder/'script.py'), '1', str(folder)], [*two, str(folder/'script.py'), '2', str(folder)]):
        done = subprocess.run(call, capture_output=True, text=True, env=env, timeout=900)
        assert not done.returncode, done.stderr[-3000:]
    return {p.stem: json.loads(p.read_text()) for p in folder.glob('*.json')}


@pytest.mark.slow
@pytest.mark.parametrize('case', ['plain', 'one_left', 'echo', 'echo_one_left', 'gathered', 'averaged'])
def test_two_ranks_are_one(results, case):
    one, first, second = (results[k][case] for k in ('1-0', '2-0', '2-1'))
    assert first == second
    assert len(one['losses']) == len(first['losses']) > 4
    for what in ('weights', 'losses'): np.testing.assert_allclose(first[what], one[what], atol=2e-6, rtol=2e-6)
    np.testing.assert_allclose(np.array(first['values'], float), np.array(one['values'], float), atol=2e-6, rtol=2e-6)


@pytest.mark.slow
def test_a_group_that_is_left_has_no_threads(results):
    for rank in ('2-0', '2-1'): assert results[rank]['threads'] and not [t for t in results[rank]['threads'] if 'gloo' in t]


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['fastai', 'echo'])
def test_two_ranks_go_on_after_a_stop(results, kind):
    for rank in ('1-0', '2-0', '2-1'): assert results[rank][f'{kind}_stopped'] == results[rank][f'{kind}_whole']


def test_wrong_number_of_processes_stops_the_run(monkeypatch, capsys):
    with pytest.raises(RanksError, match='asked for 4 processes, got 1: start it with `torchrun --nproc-per-node 4'): join_ranks(4)
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(RanksError, match='asked for 4 processes, got 2'): started_ranks(4)
    monkeypatch.delenv('WORLD_SIZE')
    assert run(['train', 'phantom-tiny', 'data=nowhere', 'out=nowhere', '--ranks', '2']) == 2
    assert 'asked for 2 processes, got 1' in capsys.readouterr().err
    monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '8')
    with pytest.raises(RanksError, match='srun started several processes'): started_ranks()


def test_slurm_lines_are_printed_and_are_shell(capsys):
    assert run(['train', 'phantom-tiny', 'data=a b', 'out=$HOME', '--print-slurm', '--nodes', '2', '--gpus', '4']) == 0
    said = capsys.readouterr().out
    assert said == slurm_script(['echo_lit', 'train', 'phantom-tiny', 'data=a b', 'out=$HOME'], 'phantom-tiny', nodes=2, gpus=4)
    assert "'data=a b' 'out=$HOME' --ranks 8" in said and '--nnodes=2 --nproc-per-node=4' in said
    assert subprocess.run(['bash', '-n'], input=said, text=True).returncode == 0
