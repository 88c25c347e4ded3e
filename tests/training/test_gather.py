"Two processes are one: losses and gradients over gloo against the whole batch in one process."
import socket
import subprocess
import sys
import pytest
import torch
from echo_lit.training.gather import gathered, in_parts, several

SCRIPT = """
import os, sys, torch, torch.distributed as dist, torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from echo_lit.training.gather import gathered, in_parts
from echo_lit.training.losses import Scale, clip_loss, same_report, siglip_loss

class Pair(torch.nn.Module):
    def __init__(self, parts):
        super().__init__()
        torch.manual_seed(0)
        self.video = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.GELU(), torch.nn.Linear(16, 5))
        self.text, self.scale, self.parts = torch.nn.Linear(4, 5), Scale(), parts
        self.bias = torch.nn.Parameter(torch.tensor(-3.))
    def forward(self, x, t): return in_parts(self.video, x, size=self.parts), in_parts(self.text, t, size=self.parts), self.scale(), self.bias

def loss_of(kind, out, ids):
    v, t, scale, bias = out
    v, t, ids = gathered(v), gathered(t), gathered(ids)
    same = same_report(ids[:, 0], ids[:, 0])
    if kind == 'clip': return clip_loss(v, t, scale, same, .1) + 0*bias
    return siglip_loss(v, t, scale, bias, same, smoothing=.1, rows=3)

def slopes(pair, x, t, ids, kind):
    pair.zero_grad()
    loss = loss_of(kind, pair(x, t), ids)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in pair.parameters()]

torch.manual_seed(1)
x, t, ids = torch.randn(10, 6), torch.randn(10, 4), torch.tensor([0, 1, 2, 3, 0, 4, 1, 5, 6, 7])[:, None]
cases = [(k, cut, parts) for k in ('clip', 'siglip') for cut in (5, 7) for parts in (None, 2)]
whole = {c: slopes(Pair(c[2]), x, t, ids, c[0]) for c in cases}
dist.init_process_group('gloo')
rank = dist.get_rank()
wide = gathered(torch.full((rank + 1, 2 - rank), rank + 1))
assert wide.tolist() == [[1, 1], [2, 0], [2, 0]], wide
for case in cases:
    kind, cut, parts = case
    mine = slice(None, cut) if rank == 0 else slice(cut, None)
    loss, grads = slopes(DistributedDataParallel(Pair(parts)), x[mine], t[mine], ids[mine], kind)
    torch.testing.assert_close(loss, whole[case][0], rtol=0, atol=1e-5)
    for a, b in zip(grads, whole[case][1]): torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
dist.destroy_process_group()
if rank == 0: print('same')
"""


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(tmp_path):
    (tmp_path/'script.py').write_text(SCRIPT)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', '--master_addr=127.0.0.1', f'--master_port={port}',
                           str(tmp_path/'script.py')], capture_output=True, text=True, timeout=900)
    assert 'same' in done.stdout, done.stderr[-3000:]


def test_alone_nothing_is_fetched():
    x = torch.randn(2, 3)
    assert not several() and gathered(x) is x


@pytest.mark.parametrize('size', [1, 3, 7, 8, None])
def test_parts_give_the_gradient_of_the_whole(size):
    torch.manual_seed(0)
    net, x, mask = torch.nn.Linear(3, 2), torch.randn(7, 3), torch.rand(7) > .5
    class Masked(torch.nn.Module):
        def __init__(self): super().__init__(); self.net = net
        def forward(self, x, mask): return self.net(x)*mask[:, None]
    def run(size):
        net.zero_grad()
        in_parts(Masked(), x, mask, size=size).square().sum().backward()
        return net.weight.grad.clone()
    torch.testing.assert_close(run(size), run(None))
