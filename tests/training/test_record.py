"Loggers are told numbers, never reports or paths."
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from torch import nn

from echo_lit.training.learner import echo_learner, history
from echo_lit.training.record import Board, History
from echo_lit.training.resume import Checkpoints


def secret_loss(p, y, words): return F.mse_loss(p, y)


def learner(folder, *cbs):
    torch.manual_seed(0)
    pairs = [(torch.randn(3), torch.ones(1)) for _ in range(8)]
    loss = partial(secret_loss, words=['a secret report'])
    return echo_learner(DataLoaders(DataLoader(pairs, bs=2), DataLoader(pairs, bs=2)), nn.Linear(3, 1), loss, half=False,
                        cbs=[Checkpoints(folder/'secret'), History(folder/'history.csv'), Board(folder/'board'), *cbs])


@pytest.mark.slow
def test_weights_and_biases_is_told_numbers_only(tmp_path, monkeypatch):
    sent, wandb = [], ModuleType('wandb')
    wandb.run = SimpleNamespace(step=0, summary={'epoch': 0})
    wandb.config = SimpleNamespace(update=lambda told, **_: sent.append(told))
    wandb.log = lambda told, **_: sent.append(told)
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    from fastai.callback.wandb import WandbCallback
    learn = learner(tmp_path, WandbCallback(log_preds=False))
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert sent[0] == dict(batch=2, batches=4, parameters=4, ranks=1)
    assert [told['valid_loss'] for told in sent if 'valid_loss' in told] == history(learn).valid_loss.tolist()
    assert not any(word in repr(sent) for word in ('secret', str(tmp_path), 'Linear'))


def test_files_hold_numbers_only(tmp_path):
    learn = learner(tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    files = [*tmp_path.glob('board/*'), tmp_path/'history.csv', *tmp_path.glob('secret/*')]
    assert len(files) == 4
    for f in files: assert b'secret' not in f.read_bytes() and str(tmp_path).encode() not in f.read_bytes()
