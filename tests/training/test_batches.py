"Loaders give each sample once an epoch, the same whoever reads it, however often it is interrupted."
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from fastai.callback.progress import ProgressCallback

from echo_lit.core import EchoError
from echo_lit.data.cine import write_dicom, write_video
from echo_lit.data.contract import InputContract
from echo_lit.data.dicom import DicomPixels
from echo_lit.data.manifest import manifest, open_clip
from echo_lit.data.shards import Shards, write_shards
from echo_lit.training.batches import clip_batches, study_batches, two_loaders
from echo_lit.training.learner import echo_learner, history
from echo_lit.training.reader import LostClips, failure_table

CONTRACT = InputContract(frames=4, seconds=.3, size=32)
COUNT = 23


def films(folder, n=COUNT):
    "A table of noise in motion JPEG, every seventh in H.264."
    rows, rng = [], np.random.default_rng(0)
    for i in range(n):
        path = write_video(folder/f'{i}.{"avi" if i % 7 else "mp4"}', rng.integers(0, 255, (8, 32, 32, 3), dtype=np.uint8), 25)
        rows.append(dict(clip_id=f'{i:012x}', patient_id=f'p{i//3}', study_id=f's{i//3}', path=path.name, kind='bmode', ef=30. + i, view='A4C'))
    return manifest(rows, 'toy')


WORKERS = """
import sys
from pathlib import Path
import numpy as np, pandas as pd, torch
from echo_lit.data.cine import read_cine
from echo_lit.data.contract import InputContract
from echo_lit.training.batches import clip_batches, study_batches

def changed(x, rng): return np.clip(x + rng.normal(0, 5), 0, 255).astype(np.uint8)

def read(dl): return [(*batch, dl.at) for batch in dl]

def epochs(workers):
    dl = clip_batches(films, folder, contract, ['ef'], train=True, augment=changed, seed=3, bs=5, workers=workers)
    next(iter(dl))
    dl.position.done = 0
    return [read(dl) for _ in range(2)], read(study_batches(films, folder, contract, ['ef'], seed=3, bs=3, workers=workers))

def same(a, b):
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    return len(a) == len(b) and all(same(p, q) for p, q in zip(a, b))

if __name__ == '__main__':
    folder, contract = Path(sys.argv[1]), InputContract(frames=4, seconds=.3, size=32)
    films = pd.read_parquet(folder/'films.parquet')
    for path in folder.glob('*.mp4'): assert read_cine(path, threads=4)[:].shape == (8, 32, 32, 3)
    alone = epochs(0)
    assert same(epochs(int(sys.argv[2])), alone)
    for epoch in alone[0]: assert sorted(torch.cat([at for *_, at in epoch]).tolist()) == list(range(len(films)))
    print('same')
"""


@pytest.mark.parametrize('workers', ['2', pytest.param('1', marks=pytest.mark.slow), pytest.param('3', marks=pytest.mark.slow)])
def test_workers_after_decoding_with_threads_give_the_batches_of_none(tmp_path, workers):
    "A process that has decoded with threads holds their locks; workers are started from it, an epoch is broken off, two are read."
    films(tmp_path).to_parquet(tmp_path/'films.parquet')
    (tmp_path/'script.py').write_text(WORKERS)
    done = subprocess.run([sys.executable, str(tmp_path/'script.py'), str(tmp_path), workers], capture_output=True, text=True, timeout=900)
    assert done.stdout.strip() == 'same', done.stderr[-2000:]


def torn(folder):
    "Files that break in every way: H.264 with noise or without an end, a damaged DICOM frame, no file at all."
    rng = np.random.default_rng(1)
    def frames(): return rng.integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    film = bytearray(write_video(folder/'x.mp4', frames(), 25).read_bytes())
    (folder/'end.mp4').write_bytes(film[:800])
    at = film.index(b'mdat') + 900
    film[at:at + 1600] = rng.bytes(1600)
    (folder/'noise.mp4').write_bytes(film)
    path = write_dicom(folder/'frame.dcm', frames(), 25)
    (at, n), = DicomPixels(path).table[0]
    path.write_bytes(path.read_bytes()[:at + 20] + bytes(n - 20) + path.read_bytes()[at + n:])
    return ['end.mp4', 'noise.mp4', 'frame.dcm', 'nowhere.mp4']


def test_what_cannot_be_read_is_a_failure_in_any_format(tmp_path):
    bad = torn(tmp_path)
    table = films(tmp_path, 12)
    table.loc[[1, 4, 5, 8], 'path'] = bad
    for make in (clip_batches, study_batches):
        dl = make(table, tmp_path, CONTRACT, ['ef'], bs=2, max_lost=.5)
        seen = sum(int(x[1].sum()) if make is study_batches else len(x[0]) for x in dl)
        lost = failure_table(dl)
        assert seen == 8 and sorted(lost['clip']) == sorted(table.clip_id[[1, 4, 5, 8]])
        assert all(lost.reason.str.startswith(tuple(bad))) and set(lost.stage) == {'open', 'decode'}
    with pytest.raises(LostClips, match='1 of 12 cannot be read'): list(clip_batches(table, tmp_path, CONTRACT, ['ef'], bs=2))


def test_a_reader_that_breaks_its_promise_costs_a_clip(tmp_path, monkeypatch):
    table = films(tmp_path, 6)
    def odd(row, root):
        clip = open_clip(row, root)
        if row.path == '2.avi': clip.height += 1
        return clip
    monkeypatch.setattr('echo_lit.training.reader.open_clip', odd)
    dl = clip_batches(table, tmp_path, CONTRACT, ['ef'], bs=6, max_lost=.5)
    assert len(next(iter(dl))[0]) == 5 and 'asked for' in failure_table(dl).reason[0]


CRASHES = """
import os, sys
from pathlib import Path
import pandas as pd, torch
import echo_lit.training.reader as reader
from echo_lit.data.contract import InputContract
from echo_lit.training.batches import clip_batches

whole = reader.open_clip

def crashing(row, root):
    if row.path in sys.argv[2:]: os._exit(9)
    return whole(row, root)

reader.open_clip = crashing

if __name__ == '__main__':
    folder, contract = Path(sys.argv[1]), InputContract(frames=4, seconds=.3, size=32)
    films = pd.read_parquet(folder/'films.parquet')
    dl = clip_batches(films, folder, contract, ['ef'], train=True, bs=4, workers=2, max_lost=.1)
    lost = films.index[films.path.isin(sys.argv[2:])]
    for _ in range(2): assert sorted(torch.cat([dl.at for _ in dl]).tolist()) == sorted(set(films.index) - set(lost))
    assert sorted(torch.cat([v.at for v in [dl.new(workers=0)] for _ in v]).tolist()) == sorted(set(films.index) - set(lost))
    table = reader.failure_table(dl)
    assert sorted(table['clip']) == sorted(films.clip_id[lost]) and set(table.reason) == {'the decoder crashed'}
    print('same')
"""


@pytest.mark.slow
def test_a_decoder_that_crashes_costs_its_clip_and_nothing_else(tmp_path):
    "Workers that die over two of the clips; two epochs and a validation pass."
    films(tmp_path).to_parquet(tmp_path/'films.parquet')
    (tmp_path/'script.py').write_text(CRASHES)
    done = subprocess.run([sys.executable, str(tmp_path/'script.py'), str(tmp_path), '5.avi', '16.avi'], capture_output=True, text=True, timeout=900)
    assert done.stdout == 'same\n', done.stderr[-2000:]


def test_workers_are_refused_what_cannot_be_copied(tmp_path):
    with pytest.raises(EchoError, match='use workers=0'):
        next(iter(clip_batches(films(tmp_path, 3), tmp_path, CONTRACT, ['ef'], train=True, augment=lambda x, rng: x, workers=2)))


def test_a_look_at_a_batch_costs_no_clip(tmp_path):
    dl = clip_batches(films(tmp_path, 9), tmp_path, CONTRACT, ['ef'], train=True, bs=4)
    first = dl.one_batch()[0]
    assert [len(x) for x, *_ in dl] == [4, 4, 1] and len(first) == 4 and (dl.position.epoch, dl.position.done) == (1, 0)


def test_what_is_done_on_the_device_depends_on_the_clip_alone(tmp_path):
    def stamped(x, seeds):
        assert seeds.dtype == np.uint64 and len(seeds) == len(x)
        return torch.from_numpy((seeds % np.uint64(251)).astype(np.uint8))[:, None, None, None, None].expand_as(x)
    table = films(tmp_path, 9)
    dls = [clip_batches(table, tmp_path, CONTRACT, ['ef'], train=True, bs=bs, on_batch=stamped) for bs in (2, 9)]
    found = [{int(i): int(x.max()) for xs, _ in dl for x, i in zip(xs, dl.at)} for dl in dls]
    assert found[0] == found[1] and len(set(found[0].values())) > 5
    x, mask, *_ = next(iter(study_batches(table, tmp_path, CONTRACT, ['ef'], bs=3, on_batch=stamped)))
    assert x.shape[:2] == (3, 3) and len({int(v) for v in x.amax((2, 3, 4, 5)).ravel()}) == 9


def numbers(shards, steps=None, state=None, **kwargs):
    "Items of the next batches, and the state to save after them."
    dl = clip_batches(shards.table, shards, CONTRACT, ['ef'], train=True, seed=7, bs=3, **kwargs)
    if state: dl.position.__dict__.update(json.loads(state))
    seen, stream = [], iter(dl)
    for _, _batch in zip(range(steps or len(dl)), stream): seen += dl.at.tolist()
    if steps is None: assert next(stream, None) is None
    return seen, json.dumps(vars(dl.position))


@pytest.mark.parametrize('steps', [1, 4, 7])
def test_one_rank_reads_each_sample_once_across_an_interruption(tmp_path, steps):
    shards = Shards(write_shards(films(tmp_path), tmp_path, tmp_path/'shards', per_shard=5))
    seen, state = numbers(shards, steps)
    rest, state = numbers(shards, state=state)
    assert len(seen) == 3*steps and sorted(seen + rest) == list(range(COUNT)) and json.loads(state) == dict(seed=7, epoch=1, done=0)
    again, _ = numbers(shards, state=state)
    assert sorted(again) == list(range(COUNT)) and again != seen + rest


RANKS = """
import datetime, json, sys
from pathlib import Path
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from test_batches import Shards, numbers

if __name__ == '__main__':
    folder, rank, found = Path(sys.argv[2]), int(sys.argv[3]), []
    mine = dict(rank=rank, world=2)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', timeout=datetime.timedelta(minutes=10), rank=rank, world_size=2)
    for count in map(int, sys.argv[4:]):
        shards = Shards(folder/str(count))
        for steps in range(1, (count + 5)//6):
            begun, state = numbers(shards, steps, **mine)
            states = [None, None]
            dist.all_gather_object(states, state)
            assert states[0] == states[1], states
            rest, state = numbers(shards, state=states[1 - rank], **mine)
            assert json.loads(state) == dict(seed=7, epoch=1, done=0)
            alone = numbers(shards, state=states[0])[0] if rank else []
            found.append([count, begun, rest, alone, numbers(shards, state=state, **mine)[0]])
    (folder/f'{rank}.json').write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
"""


def test_two_ranks_read_each_sample_once_across_an_interruption(tmp_path, request):
    "Real processes that meet; each goes on from what the other saved, or one of them alone finishes what two began; an odd clip comes twice."
    for n in (23, 19, 7): write_shards(films(tmp_path, n), tmp_path, tmp_path/str(n), per_shard=5)
    (tmp_path/'script.py').write_text(RANKS)
    call = [sys.executable, str(tmp_path/'script.py'), str(request.path.parent), str(tmp_path)]
    ranks = [subprocess.Popen([*call, str(r), '23', '19', '7'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for r in (0, 1)]
    for p in ranks: assert not p.wait(timeout=900), p.stdout.read()[-2000:]
    tables = [json.loads((tmp_path/f'{r}.json').read_text()) for r in (0, 1)]
    assert len(tables[0]) == len(tables[1]) == 7
    for (n, *first), (_, *second) in zip(*tables):
        begun, rest, alone, later = (a + b for a, b in zip(first, second))
        assert sorted(set(begun + rest)) == sorted(begun + alone) == sorted(set(later)) == list(range(n))
        assert len(begun + rest) == len(later) == n + n % 2 and len(first[3]) == len(second[3])


class MeanGrey(torch.nn.Module):
    "One number from how bright a clip is."
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(1, 1)

    def forward(self, x, mask=None):
        return self.line(x.float().flatten(x.ndim - 4).mean(-1).reshape(len(x), -1).mean(1, keepdim=True)/255)


@pytest.mark.parametrize('make', [clip_batches, study_batches])
def test_a_learner_trains_on_inputs_and_target(tmp_path, make):
    table = films(tmp_path, 12).assign(split=['train']*9 + ['val']*3)
    dls = two_loaders(make, table, tmp_path, CONTRACT, ['ef'], bs=3)
    learn = echo_learner(dls, MeanGrey(), torch.nn.functional.mse_loss, lr=1., half=False).remove_cb(ProgressCallback)
    with learn.no_logging(): learn.fit(8)
    losses = history(learn).train_loss
    assert losses.iloc[-1] < .9*losses.iloc[0]
    out, y = learn.get_preds()
    assert len(out) == len(y) == len(dls.valid.reader.groups)
