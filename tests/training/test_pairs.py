"Clips with reports: what is true of what, who shares a batch, and two processes that end with the weights of one."
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_lit.cli import run as run_cli
from echo_lit.core import EchoError
from echo_lit.data.cine import write_video
from echo_lit.data.manifest import manifest, write_manifest
from echo_lit.data.contract import InputContract
from echo_lit.models.hub import load_model
from echo_lit.models.pooling import BagPool
from echo_lit.models.text import TextTower, train_tokenizer
from echo_lit.models.video import FrameVideoTower
from echo_lit.training.batches import two_loaders
from echo_lit.training.contrastive import ContrastivePair, ReportRecall, contrastive_learner, pair_loss
from echo_lit.training.losses import clip_loss, same_report
from echo_lit.training.pairs import Apart, ReportTokens, near_reports, pair_batches, pair_tokens, true_of
from echo_lit.training.resume import Checkpoints

REPORTS = ['Left Ventricle: Normal. EF 60%.\nPericardium: No effusion.', 'Left Ventricle: Dilated. EF 30%.\nPericardium: No effusion.',
           'Left Ventricle: Normal. EF 60%.\nPericardium: No effusion.', 'IVC: Dilated.']
LINES = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), min_size=1, max_size=5)
TOK = train_tokenizer(REPORTS*3, 150)


@settings(max_examples=60, deadline=None)
@given(LINES, LINES)
def test_true_of_is_set_inclusion(said, shown):
    def table(rows): return torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True)
    right = true_of(table(said), table(shown))
    for i, s in enumerate(said):
        for j, t in enumerate(shown): assert right[i, j].item() == (bool(set(t) - {0}) and set(t) - {0} <= set(s))


def test_whole_reports_are_positives_where_they_are_equal():
    *_, lines = pair_tokens(ReportTokens(TOK), REPORTS)
    assert torch.equal(true_of(*lines.unbind(-1)), same_report(REPORTS, REPORTS))
    torch.manual_seed(0)
    out = dict(video=torch.randn(4, 6), text=torch.randn(4, 6), scale=torch.tensor(10.))
    assert pair_loss(out, lines) == clip_loss(out['video'], out['text'], 10., same_report(REPORTS, REPORTS))


@pytest.mark.parametrize('show', ReportTokens.ways)
@pytest.mark.parametrize('context', [6, 20, 512])
def test_no_text_is_longer_than_the_context(show, context):
    torch.manual_seed(0)
    for _ in range(20):
        ids, mask, lines = pair_tokens(ReportTokens(TOK, show, context), REPORTS)
        assert ids.shape[1] <= context and (mask.sum(1) >= 3).all() and (lines[..., 1] != 0).any(1).all()
        assert ((lines[..., 1] == 0) | (lines[..., 1] == lines[..., 0])).all() and true_of(*lines.unbind(-1)).diagonal().all()


def test_draws_follow_from_the_generator():
    def drawn(seed): return [pair_tokens(ReportTokens(TOK, 'some'), REPORTS, torch.Generator().manual_seed(seed + i))[0].tolist() for i in range(5)]
    assert drawn(0) == drawn(0) != drawn(9)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 12), st.integers(0, 99), st.booleans())
def test_an_arranged_epoch_has_every_item_once(n, bs, patients, seed, again):
    rng = np.random.default_rng(seed)
    owner, order = rng.integers(0, patients, n), rng.integers(0, n, n) if again else rng.permutation(n)
    near = rng.integers(0, n, (n, 3))
    for arrange in (Apart(owner), Apart(owner, near, .5)):
        out = arrange(order, bs)
        assert sorted(out.tolist()) == sorted(order.tolist())
        left = sorted(order.tolist())
        for k in range(0, n, bs):
            batch = out[k:k + bs].tolist()
            room = len(set(owner[left]))
            assert len(set(owner[batch])) == min(len(batch), room)
            for i in batch: left.remove(i)


def test_neighbours_are_other_patients_with_other_words():
    torch.manual_seed(0)
    texts, owner = [f't{i % 9}' for i in range(40)], [i // 2 for i in range(40)]
    near = near_reports(torch.randn(40, 5), texts, owner, k=4, rows=7)
    for i, row in enumerate(near.tolist()): assert all(texts[i] != texts[j] and owner[i] != owner[j] for j in row)


def test_recall_knows_duplicates_and_different_lengths():
    class Told:
        def __init__(self, video, text, lines): self.pred, self.yb = dict(video=video, text=text), (lines,)
    recall, eye = ReportRecall(1), torch.eye(5)
    recall.reset()
    assert np.isnan(recall.value)
    for part in (REPORTS[:3], REPORTS[3:] + ['Aorta: Normal.']):
        rows = slice(0, 3) if part == REPORTS[:3] else slice(3, 5)
        recall.accumulate(Told(eye[rows], eye[[2, 1, 0, 4, 3]][rows], pair_tokens(ReportTokens(TOK), part)[2]))
    assert recall.value == pytest.approx(.6)


def test_reports_without_words_are_refused():
    with pytest.raises(EchoError, match='without words'): pair_tokens(ReportTokens(TOK), ['Normal.', ' \n '])


def small_pair(**kwargs):
    torch.manual_seed(0)
    contract = InputContract(frames=4, seconds=None, stride=1, size=32, crop='centre', mask=False)
    video = FrameVideoTower(width=32, embed_dim=8, depth=1, heads=2, widths=(32, 32, 32), contract=contract)
    return ContrastivePair(video, TextTower(TOK.get_vocab_size(), 32, 1, 2, 8, dropout=0.), **kwargs)


@pytest.mark.parametrize('siglip', [False, True])
def test_every_parameter_of_both_towers_learns(siglip):
    pair, x = small_pair(siglip=siglip), torch.randint(0, 256, (4, 3, 4, 32, 32), dtype=torch.uint8)
    ids, mask, lines = pair_tokens(ReportTokens(TOK), REPORTS)
    pair_loss(pair(x, ids, mask), lines).backward()
    assert [n for n, p in pair.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [n for n in ('scale.log', 'bias') if siglip and dict(pair.named_parameters())[n].grad == 0] == []


@pytest.mark.parametrize('pool', [None, 'attention', 'cls'])
def test_a_study_does_not_know_its_neighbours(pool):
    pair = small_pair(pool=pool and BagPool(8, pool, 4, 2)).eval()
    x, mask = torch.randint(0, 256, (3, 2, 3, 4, 32, 32), dtype=torch.uint8), torch.tensor([[1, 1], [1, 0], [1, 1]]).bool()
    ids, words, _ = pair_tokens(ReportTokens(TOK), REPORTS[:3])
    with torch.no_grad():
        out = pair(x, mask, ids, words)
        other = pair(torch.cat([x[:1], 255 - x[1:]]), mask, ids.clone().index_fill_(0, torch.tensor([1, 2]), 7), words)
        black = pair(x.masked_fill(~mask[..., None, None, None, None], 200), mask, ids, words)
    for side in ('video', 'text'):
        torch.testing.assert_close(other[side][0], out[side][0], rtol=1e-4, atol=1e-5)
        assert (out[side].norm(dim=1) - 1).abs().max() > 1e-3
    torch.testing.assert_close(black['video'], out['video'], rtol=1e-4, atol=1e-5)


SCRIPT = """
import sys
from pathlib import Path
import torch
from fastai.torch_core import num_distrib, rank_distrib
from echo_lit.data.contract import InputContract
from echo_lit.data.manifest import read_manifest
from echo_lit.models.text import train_tokenizer
from echo_lit.training.batches import two_loaders
from echo_lit.training.contrastive import contrastive_learner
from echo_lit.training.distributed import every_rank, join_ranks
from echo_lit.training.pairs import ReportTokens, pair_batches

class Video(torch.nn.Module):
    embed_dim = 8
    def __init__(self): super().__init__(); self.net = torch.nn.Sequential(torch.nn.Linear(4*16, 16), torch.nn.GELU(), torch.nn.Linear(16, 8))
    def forward(self, x): return self.net(torch.nn.functional.adaptive_avg_pool3d(x.float()/255, (4, 4, 4)).mean(1).flatten(1))

class Text(torch.nn.Module):
    embed_dim = 8
    def __init__(self): super().__init__(); self.words = torch.nn.Embedding(200, 8)
    def forward(self, ids, mask): return (self.words(ids)*mask[..., None]).sum(1)

folder, siglip, size = Path(sys.argv[1]), sys.argv[2] == 'siglip', 3 if sys.argv[3] == 'parts' else None
join_ranks()
world = num_distrib() or 1
table = read_manifest(folder/'films.parquet')
tok = train_tokenizer(table.report, 150)
contract = InputContract(frames=4, seconds=None, stride=1, size=16, crop='centre', mask=False)
dls = two_loaders(pair_batches, table, folder, contract, ReportTokens(tok), bs=8//world, seed=1)
torch.manual_seed(0)
learn = contrastive_learner(dls, Video(), Text(), siglip=siglip, size=size, ks=(1,), lr=1e-2, half=False)
with every_rank(learn), learn.no_bar(), learn.no_logging(): learn.fit(2)
if not rank_distrib(): torch.save(dict(weights=learn.model.state_dict(), log=list(map(float, learn.recorder.values[-1]))), sys.argv[4])
"""


def run(command, tmp_path):
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert not done.returncode, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize('loss,parts', [('clip', 'whole'), ('siglip', 'parts')])
def test_two_processes_end_with_the_weights_of_one(tmp_path, loss, parts):
    rng, rows = np.random.default_rng(0), []
    for i in range(26):
        path = write_video(tmp_path/f'{i}.avi', rng.integers(0, 255, (6, 16, 16, 3), dtype=np.uint8), 25)
        rows.append(dict(clip_id=f'{i:012x}', patient_id=f'p{i}', study_id=f's{i}', path=path.name, report=f'Left Ventricle: EF {20 + i % 7}%.',
                         split='train' if i < 20 else 'val'))
    write_manifest(manifest(rows, 'toy'), tmp_path/'films.parquet')
    (tmp_path/'script.py').write_text(SCRIPT)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    args = [str(tmp_path/'script.py'), str(tmp_path), loss, parts]
    run([sys.executable, *args, str(tmp_path/'one.pt')], tmp_path)
    ranks = ['-m', 'torch.distributed.run', '--nproc_per_node=2', '--master_addr=127.0.0.1', f'--master_port={port}']
    run([sys.executable, *ranks, *args, str(tmp_path/'two.pt')], tmp_path)
    one, two = (torch.load(tmp_path/f'{n}.pt', weights_only=True) for n in ('one', 'two'))
    for k, w in one['weights'].items(): torch.testing.assert_close(two['weights'][k], w, rtol=0, atol=1e-5)
    assert one['log'][0] == pytest.approx(two['log'][0], abs=1e-4) and one['log'][2] == two['log'][2]


class Stop(Callback):
    order = 200
    def __init__(self, at): self.at = at
    def after_batch(self):
        if self.training and self.train_iter == self.at: raise KeyboardInterrupt


def test_a_broken_off_training_draws_the_same_words_and_ends_with_the_same_weights(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for i in range(14):
        path = write_video(tmp_path/f'{i}.avi', rng.integers(0, 255, (6, 32, 32, 3), dtype=np.uint8), 25)
        rows.append(dict(clip_id=f'{i:012x}', patient_id=f'p{i//2}', study_id=f's{i}', path=path.name, report=REPORTS[i % 4],
                         split='train' if i < 10 else 'val'))
    films = manifest(rows, 'toy')
    def run(name, *cbs):
        pair = small_pair()
        dls = two_loaders(pair_batches, films, tmp_path, pair.video.contract, ReportTokens(TOK, 'some'), bs=3)
        learn = contrastive_learner(dls, pair.video, pair.text, ks=(1,), lr=1e-2, half=False)
        torch.manual_seed(5)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, cbs=[Checkpoints(tmp_path/name, every=1), *cbs])
        return learn.model.state_dict(), list(learn.recorder.values[-1])
    whole = run('whole')
    for at in (2, 6):
        with pytest.raises(KeyboardInterrupt): run(f'broken{at}', Stop(at))
        again = run(f'broken{at}')
        assert all(torch.equal(w, again[0][k]) for k, w in whole[0].items()) and again[1] == whole[1]


FRAMES = 'kind = "frames"\nembed_dim = 16\nwidth = 32\ndepth = 1\nheads = 2\nwidths = [32, 32, 32]'
TINY = {'kind = "mvit"\nembed_dim = 512': FRAMES, 'width = 768': 'width = 32', 'layers = 12': 'layers = 1', 'heads = 12': 'heads = 2',
        'pieces = 8000': 'pieces = 120', 'size = 224': 'size = 32', 'frames = 16': 'frames = 4', 'stride = 2': 'stride = 1', 'valid = 0.1 ': 'valid = 0.3 '}


def test_the_command_follows_the_recipe(tmp_path, root, capsys):
    rng, rows = np.random.default_rng(0), []
    for i in range(16):
        path = write_video(tmp_path/f'{i}.avi', rng.integers(0, 255, (6, 32, 32, 3), dtype=np.uint8), 25)
        rows.append(dict(clip_id=f'{i:012x}', patient_id=f'p{i}', study_id=f's{i}', path=path.name, kind='bmode', words=REPORTS[i % 4]))
    write_manifest(manifest(rows, 'toy'), tmp_path/'films.csv')
    text = (root/'echo_lit'/'recipes'/'video-report.toml').read_text()
    for old, new in TINY.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (tmp_path/'tiny.toml').write_text(text)
    command = ['train', str(tmp_path/'tiny.toml'), f'data={tmp_path/"films.csv"}', f'out={tmp_path/"out"}', 'pretrain.epochs=1', 'refine.epochs=1',
               'batch.pairs=4', 'batch.workers=0', 'data.report=words', 'learn.siglip=true', 'batch.at_a_time=3', 'words.show=some']
    assert run_cli(command) == 0
    assert 'model bundle in' in capsys.readouterr().out
    bundle = load_model(tmp_path/'out'/'video-report')
    assert bundle.config['recipe']['learn']['siglip'] is True and bundle.text.encode(REPORTS).shape == (4, 16)
    assert run_cli([*command, 'batch.pair=4']) == 2
    assert "did you mean 'batch.pairs'?" in capsys.readouterr().err
    assert run_cli([c.replace('report=words', 'report=text') for c in command]) == 2
    assert "no column 'text'; it has words" in capsys.readouterr().err
