"A run killed at any moment and started again is, to the last bit, the run that was never killed."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from echo_lit.training.learner import DiskError, save_weights, whole_file

RUN = """
import json, os, signal, sys, time
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
import fastai.callback.schedule
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.torch_core import set_seed
from torch import nn
from echo_lit.core import Clip
from echo_lit.data.contract import InputContract
from echo_lit.data.manifest import manifest
from echo_lit.training import reader
from echo_lit.training.batches import clip_batches
from echo_lit.training.learner import echo_learner
from echo_lit.training.loaders import drawn_loader
from echo_lit.training.memory import Accumulate, Float16
from echo_lit.training.resume import Checkpoints
from echo_lit.training.schedule import Average

KIND, FOLDER = sys.argv[1], Path(sys.argv[2])
CONTRACT = InputContract(frames=2, seconds=.1, size=16, mask=False, crop='centre')
FILMS = manifest([dict(clip_id=f'{i:012x}', patient_id=f'p{i//2}', study_id=f's{i//2}', path=f'{i}.avi', kind='bmode', ef=30. + i) for i in range(27)], 'toy')

def film(row, source):
    rng = np.random.default_rng(int(row.clip_id, 16))
    return Clip(row.clip_id, 8, 16, 16, lambda at: rng.integers(0, 255, (len(at), 16, 16, 3), dtype=np.uint8), 25., 'test')
reader.open_clip = film

def changed(x, rng): return np.clip(x*rng.uniform(.8, 1.2), 0, 255).astype(np.uint8)

def loaders():
    if KIND == 'echo':
        of = dict(source=FOLDER, contract=CONTRACT, names=['ef'], bs=3)
        return DataLoaders(clip_batches(FILMS[:20], train=True, augment=changed, **of), clip_batches(FILMS[20:], **of))
    x, rng = torch.randint(0, 255, (27, 3, 2, 16, 16), dtype=torch.uint8), np.random.default_rng(0)
    def batch(rows): return torch.from_numpy(changed(x[rows].numpy(), rng)), x[rows].float().mean((1, 2, 3, 4))[:, None]
    return DataLoaders(drawn_loader(19, batch, 3, True, rng), DataLoader([(a, a.float().mean()[None]) for a in x[19:]], bs=3))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(48, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(.3), nn.Linear(24, 1))
    def forward(self, x): return self.layers(F.adaptive_avg_pool3d(x.float()/255, (1, 4, 4)).flatten(1))

class Kill(Callback):
    order = 200
    def __init__(self, where, at): self.where, self.at = where, at
    def now(self): os.kill(os.getpid(), signal.SIGKILL)
    def after_batch(self):
        if self.train_iter == self.at and self.where == ('batch' if self.training else 'validation'): self.now()
    def after_backward(self):
        if self.train_iter == self.at and self.where == 'step': self.now()

def train(where=None, at=0):
    set_seed(3, reproducible=True)
    if where == 'writing':
        replace, left = os.replace, [at]
        def broken(*paths):
            left[0] -= 1
            if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)
        os.replace = broken
    more = [Accumulate(6), Average(.9)] if KIND == 'fastai' else [Float16(init_scale=2.**14, growth_interval=4), Average(.9)]
    learn = echo_learner(loaders(), Net(), F.mse_loss, lr=.02, half=False, cbs=more + ([Kill(where, at)] if where else []))
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, cbs=Checkpoints(FOLDER/'0', every=2))
        first = list(map(float, learn.recorder.losses))
        learn.dls = loaders()
        learn.fit_cosine(2, cbs=Checkpoints(FOLDER/'1', every=2))
    torch.save(dict(model=learn.model.state_dict(), losses=first + list(map(float, learn.recorder.losses)), values=[list(v) for v in learn.recorder.values],
                    opt=[[float(v.double().sum()) for v in s.values()] for s in learn.opt.state_dict()['state'].values()]), FOLDER/'result.pt')

def child(where=None, at=0):
    if not (pid := os.fork()):
        train(*(() if where == 'time' else (where, at)))
        os._exit(0)
    if where == 'time':
        time.sleep(at)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def same(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b if not isinstance(a, list) else len(a) == len(b) and all(map(same, a, b))

if __name__ == '__main__':
    torch.set_num_threads(1)
    result, base = {}, FOLDER
    FOLDER = base/'whole'
    assert child() == 0
    whole = torch.load(FOLDER/'result.pt', weights_only=True)
    for kills in json.loads(sys.argv[3]):
        FOLDER = base/'-'.join(map(str, sum(kills, [])))
        for kill in kills: assert child(*kill) in (-signal.SIGKILL, 0 if kill[0] == 'time' else -signal.SIGKILL), kill
        assert child() == 0
        left = sorted(str(p.relative_to(FOLDER)) for p in FOLDER.glob('[01]/*'))
        result[FOLDER.name] = [same(torch.load(FOLDER/'result.pt', weights_only=True), whole), left]
    print(json.dumps(dict(result, losses=len(whole['losses']))))
"""


def killed(tmp_path, kind, kills):
    (tmp_path/'run.py').write_text(RUN)
    done = subprocess.run([sys.executable, str(tmp_path/'run.py'), kind, str(tmp_path), json.dumps(kills)], capture_output=True, text=True,
                          env={**os.environ, 'OMP_NUM_THREADS': '1'}, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(result):
    assert result.pop('losses') > 10
    for where, (equal, files) in result.items():
        assert equal, where
        assert files == ['0/best.safetensors', '0/last.pt', '1/best.safetensors', '1/last.pt'], where


def test_killed_in_a_batch_and_while_writing(tmp_path):
    check(killed(tmp_path, 'fastai', [[['batch', 3], ['writing', 2]]]))


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['fastai', 'echo'])
def test_killed_anywhere(tmp_path, kind):
    "Before the first checkpoint, behind a backward pass, between batches, in validation, at several writes, by the clock; also several times in a run."
    check(killed(tmp_path, kind, [[['batch', 1]], [['step', 4]], [['batch', 5], ['batch', 9]], [['validation', 6 if kind == 'fastai' else 7]],
                                  [['writing', n] for n in (1, 2, 4, 6)], [['batch', 2], ['step', 5], ['writing', 3], ['batch', 10]],
                                  [['time', t] for t in (.3, .5, .7)]]))


RECIPE = """
import os, signal, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from echo_lit.training import recipe
from echo_lit.training.loaders import disc_corpus
from echo_lit.training.resume import Checkpoints

SMALL = {'text.reports': 60, 'text.short_epochs': 1, 'text.short_batch': 16, 'text.epochs': 1, 'text.batch': 16, 'views.epochs': 2, 'views.batch': 8,
         'video.drawn_epochs': 1, 'video.epochs': 1, 'video.batch': 8, 'attention.epochs': 2, 'attention.batch': 4,
         'text.vocabulary': 300, 'bank.reports': 60, 'valid': .3}

class Deadly(Checkpoints):
    left = 0
    def __init__(self, folder, **kwargs): super().__init__(folder, every=2, **kwargs)
    def save(self, *args, **kwargs):
        super().save(*args, **kwargs)
        Deadly.left -= 1
        if not Deadly.left: os.kill(os.getpid(), signal.SIGKILL)

def child(out, left=0, words=None):
    if not (pid := os.fork()):
        if words: recipe.train_tokenizer = lambda *_: words
        recipe.Checkpoints, Deadly.left = Deadly, left
        recipe.train('phantom-tiny', SMALL | dict(data=str(folder/'discs'), out=str(out)), say=lambda line: None, quiet=True)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

if __name__ == '__main__':
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    disc_corpus(folder/'discs', n=12)
    for left in map(int, sys.argv[2:]): assert child(folder/'cut', left) == -signal.SIGKILL
    assert child(folder/'cut') == 0
    words = bytes(load_file(folder/'cut'/'stages'/'text.safetensors')['tokenizer'].numpy()).decode()
    assert child(folder/'whole', words=Tokenizer.from_str(words)) == 0
"""


@pytest.mark.slow
def test_a_recipe_killed_in_its_stages_ends_with_the_same_weights(tmp_path):
    "Killed in both halves of the text stage, in the views, twice in the video, and in the attention; networks behind a stage that was read back start anew."
    (tmp_path/'recipe.py').write_text(RECIPE)
    done = subprocess.run([sys.executable, str(tmp_path/'recipe.py'), str(tmp_path), '1', '4', '3', '6', '2', '3'], capture_output=True, text=True,
                          env={**os.environ, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'}, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    whole, cut = ({p.name: p.read_bytes() for p in (tmp_path/k/'stages').iterdir()} for k in ('whole', 'cut'))
    assert sorted(whole) == [f'{n}.safetensors' for n in ('attention', 'clips', 'ef', 'text', 'video', 'views')]
    for stage in ('text.safetensors', 'views.safetensors'): assert whole[stage] == cut[stage]
    assert whole.keys() == cut.keys()
    assert [len(json.loads((tmp_path/k/'run.json').read_text())['starts']) for k in ('whole', 'cut')] == [1, 7]


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path):
    disk = tmp_path/'disk'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(disk)], capture_output=True).returncode: pytest.skip('mounting needs root')
    try:
        old = save_weights(disk/'last.safetensors', nn.Linear(4, 4).state_dict()).read_bytes()
        with pytest.raises(DiskError, match='No space left on device.*make room'):
            with whole_file(disk/'last.safetensors') as f: torch.save(nn.Linear(400, 400).state_dict(), f)
        assert [(p.name, p.read_bytes()) for p in disk.iterdir()] == [('last.safetensors', old)]
    finally: subprocess.run(['umount', str(disk)])


@pytest.mark.parametrize('write', ['torch', 'bytes', 'sync'])
def test_no_room_anywhere_in_the_writing(tmp_path, monkeypatch, write):
    path = tmp_path/'last.pt'
    path.write_bytes(b'old')

    def full(*_): raise OSError(28, os.strerror(28))
    if write == 'sync': monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(DiskError, match='No space left'), whole_file(path) as f, open('/dev/full', 'wb', buffering=0) as room:
        if write == 'torch': torch.save(nn.Linear(9, 9).state_dict(), room)
        elif write == 'bytes': room.write(b'new')
        else: f.write(b'new')
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [('last.pt', b'old')]


def test_interrupted_writing_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path/'last.pt') as f:
        f.write(b'half')
        raise KeyboardInterrupt
    assert not list(Path(tmp_path).iterdir())
