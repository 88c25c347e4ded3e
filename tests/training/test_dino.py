"Frames without labels: two processes are one, a run that was killed goes on, the command makes a bundle, and what goes wrong in one line."
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from echo_lit.cli import run
from echo_lit.core import EchoError
from echo_lit.data.cine import write_video
from echo_lit.data.contract import InputContract
from echo_lit.data.manifest import manifest, write_manifest
from echo_lit.models.dinov2 import DinoTower
from echo_lit.models.hub import load_model, save_bundle
from echo_lit.training.crops import MultiCrop
from echo_lit.training.dino import Dino, DinoConfig, koleo_loss
from echo_lit.training.frames import dino_model, learn_frames
from echo_lit.training.loaders import disc_frames
from echo_lit.training.pretrain import pretrain
from echo_lit.training.recipe import load_recipe
from echo_lit.training.unlabelled import tower_bundle

SCRIPT = """
from dataclasses import replace
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from echo_lit.data.contract import InputContract
from echo_lit.training.crops import MultiCrop, Views
from echo_lit.training.dino import Dino, DinoConfig

SIZES = dict(width=24, depth=1, heads=3, patch=8, registers=4, gain=.5, drop=0., prototypes=32, hidden=20, middle=8)
CONTRACT = InputContract(frames=2, seconds=None, stride=1, size=32, crop='centre', mask=False)
CASES = [{}, dict(centring='sinkhorn', koleo=.1), dict(ibot=0., koleo=1.), dict(dino=0.)]

def model(**more):
    torch.manual_seed(0)
    return Dino(DinoConfig(**SIZES, **more), MultiCrop(32, 16, 2), CONTRACT)

def part(v, at): return Views(v.whole[:, at], v.parts[:, at], v.hidden[:, at])

def slopes(net, clips, seen):
    terms = net(clips, seen)
    terms['loss'].backward()
    return {k: v.detach() for k, v in terms.items()}, {n.removeprefix('module.'): p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}

torch.manual_seed(1)
clips = torch.randint(0, 256, (6, 3, 2, 32, 32), dtype=torch.uint8)
seen = [model(**c).draw(clips) for c in CASES]
whole = [(slopes(m := model(**c), clips, s), m.dino.centre, m.ibot.centre) for c, s in zip(CASES, seen)]
dist.init_process_group('gloo')
rank = dist.get_rank()
at = slice(0, 3) if rank == 0 else slice(3, 6)
for c, s, ((terms, grads), *centres) in zip(CASES, seen, whole):
    net = DistributedDataParallel(own_model := model(**c))
    own, got = slopes(net, clips[at], part(s, at))
    for k, v in own.items():
        dist.all_reduce(v)
        torch.testing.assert_close(v/2, terms[k], rtol=0, atol=2e-5)
    assert got.keys() == grads.keys(), set(got) ^ set(grads)
    for k in grads: torch.testing.assert_close(got[k], grads[k], rtol=1e-4, atol=2e-5)
    for a, b in zip((own_model.dino.centre, own_model.ibot.centre), centres): torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
dist.destroy_process_group()
if rank == 0: print('same')
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    (tmp_path/'script.py').write_text(SCRIPT)
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', str(tmp_path/'script.py')],
                          capture_output=True, text=True, timeout=900)
    assert 'same' in done.stdout, done.stderr[-3000:]


TINY = dict(width=24, depth=1, heads=3, patch=8, registers=2, gain=.5, prototypes=32, hidden=20, middle=8)
SIZES = {f'network.{k}': v for k, v in TINY.items()} | {'crops.size': 32, 'crops.small': 16, 'crops.parts': 1, 'learn.epochs': 2, 'learn.batch': 5,
                                                        'learn.half': False, 'valid': .3}
CONTRACT = InputContract(frames=2, seconds=None, stride=1, size=32, crop='centre', mask=False)


def quiet(line): pass


@pytest.mark.slow
def test_two_processes_make_one_bundle(corpus, tmp_path):
    settings = SIZES | {'learn.batch': 4, 'learn.epochs': 1, 'valid': .7, 'terms.centring': 'sinkhorn', 'terms.koleo': .1}
    command = ['-c', 'from echo_lit.cli import main; main()', 'train', 'dino', f'data={corpus}', f'out={tmp_path}']
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '--no-python', sys.executable, *command,
                           *(f'{k}={v}' for k, v in settings.items()), '--ranks', '2'], capture_output=True, text=True, timeout=900)
    assert f'model bundle in {tmp_path/"dino"}' in done.stdout, done.stderr[-3000:]
    assert load_model(tmp_path/'dino').config['grid'] == [1, 4, 4]
    assert len(pd.read_csv(tmp_path/'history.csv')) == 1


def test_the_command_makes_a_bundle(corpus, tmp_path, capsys):
    assert run(['train', 'dino', f'data={corpus}', f'out={tmp_path}', *(f'{k}={v}' for k, v in SIZES.items())]) == 0
    said = capsys.readouterr().out
    assert f'model bundle in {tmp_path/"dino"}' in said and 'epoch 2 of 2  train loss ' in said
    bundle = load_model(tmp_path/'dino')
    assert (bundle.video.kind, bundle.config['grid'], bundle.contract.frames, bundle.contract.size) == ('dinov2', [1, 4, 4], 4, 32)
    assert len(pd.read_csv(tmp_path/'signs.csv')) == len(pd.read_csv(tmp_path/'history.csv')) == 2


def test_a_killed_run_goes_on(corpus, goes_on):
    goes_on(lambda folder, say: learn_frames('dino', SIZES | {'learn.lr': .05, 'data': corpus, 'out': folder}, say, True))


def test_a_run_begins_with_a_download(corpus, tmp_path):
    own = Dino(DinoConfig(**TINY, drop=0.), MultiCrop(32, 16), CONTRACT).student.state_dict()
    formula = {k: .1*torch.sin(.7*torch.arange(v.numel()) + len(k)).view(v.shape) for k, v in own.items()}
    row = .1*torch.cos(torch.arange(24.))[None, None]
    file = {k.replace('reg_token', 'register_tokens').replace('blocks.', 'blocks.0.'): v for k, v in formula.items()}
    file |= {'pos_embed': torch.cat([row, formula['pos_embed']], 1), 'mask_token': row[0]}
    file['patch_embed.proj.weight'] = formula['patch_embed.proj.weight'][:, :, 0]
    torch.save(dict(teacher={f'backbone.{k}': v for k, v in file.items()} | {'dino_head.mlp.0.bias': row}), tmp_path/'dinov2.pth')
    still = SIZES | {'learn.lr': 0., 'learn.end': 0., 'learn.epochs': 1, 'start': tmp_path/'dinov2.pth', 'data': corpus}
    begun = load_model(learn_frames('dino', still | {'out': tmp_path/'still'}, quiet, True)).video.vit.state_dict()
    assert torch.equal(dino_model(load_recipe('dino', {k: v for k, v in still.items() if k != 'data'}), CONTRACT).mask_token, row)
    formula['cls_token'] = formula['cls_token'] + row
    for k, v in formula.items(): torch.testing.assert_close(begun[k], v, rtol=1e-3, atol=1e-4)
    moved = load_model(learn_frames('dino', still | {'out': tmp_path/'moved', 'learn.lr': 1., 'teacher.momentum': .5}, quiet, True)).video.vit.state_dict()
    assert (moved['norm.weight'] - formula['norm.weight']).abs().max() > 1e-3


@pytest.mark.parametrize('temperature,ill', [(.04, False), (2., True)])
def test_a_run_that_collapses_says_so(corpus, tmp_path, temperature, ill):
    said = []
    learn_frames('dino', SIZES | {'teacher.temperature': temperature, 'teacher.last': temperature, 'data': corpus, 'out': tmp_path}, said.append, True)
    assert any('collapsed, the teacher of image says the same of everything' in line for line in said) == ill
    signs = pd.read_csv(tmp_path/'signs.csv')
    assert {'told_image', 'entropy_image', 'rank_image', 'usage'} <= set(signs.columns)
    assert (signs.entropy_image > .99).all() == ill


@pytest.mark.parametrize('setting,words', [
    ({'crops.size': 30}, 'no multiples of patches of 8'), ({'terms.centring': 'median'}, "not one of 'mean', 'sinkhorn'"), ({'terms.high': 1.}, 'below 1'),
    ({'start': 'nowhere.pth'}, 'nowhere.pth'), ({'valid': 0.}, 'none is held back')])
def test_a_wrong_setting_is_one_line(corpus, tmp_path, setting, words):
    with pytest.raises((EchoError, OSError), match=words) as e: learn_frames('dino', SIZES | dict(data=corpus, out=tmp_path) | setting, quiet, True)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('half', [False, True])
@pytest.mark.parametrize('parts', [0, 2])
@pytest.mark.parametrize('changes', [{}, dict(koleo=.1, centring='sinkhorn'), dict(ibot=0.), dict(dino=0.), dict(drop=.5, at_a_time=3), dict(registers=0)])
def test_every_setting_trains(changes, parts, half):
    torch.manual_seed(0)
    model = Dino(DinoConfig(**{**TINY, 'drop': 0., **changes}), MultiCrop(32, 16, parts), CONTRACT)
    clips = torch.randint(0, 256, (3, 3, 2, 32, 32), dtype=torch.uint8)
    with torch.autocast('cpu', torch.bfloat16, enabled=half): terms = model(clips)
    assert all(torch.isfinite(v) and v.dtype == torch.float for v in terms.values())
    terms['loss'].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without and all(p.grad is None for n, p in model.named_parameters() if 'teacher' in n)


def test_parts_of_a_batch_change_nothing():
    def loss(size):
        torch.manual_seed(0)
        model = Dino(DinoConfig(**TINY, drop=0., at_a_time=size), MultiCrop(32, 16, 1), CONTRACT)
        model(torch.randint(0, 256, (5, 3, 2, 32, 32), dtype=torch.uint8))['loss'].backward()
        return [p.grad for p in model.parameters() if p.grad is not None]
    for a, b in zip(loss(0), loss(3), strict=True): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_equal_features_and_a_single_one():
    x = torch.ones(4, 3, requires_grad=True)
    koleo_loss(x).backward()
    assert torch.isfinite(x.grad).all()
    assert koleo_loss(x[:1]) == 0


@pytest.mark.slow
def test_a_manifest_of_files_is_read(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for i in range(6):
        frames = disc_frames(50, 0., 'A4C', rng, frames=12, size=48).transpose(1, 2, 3, 0)
        write_video(tmp_path/f'{i}.avi', np.ascontiguousarray(frames), 30)
        rows.append(dict(clip_id=f'{i:012x}', patient_id=f'p{i}', study_id=f's{i}', path=f'{i}.avi', kind='bmode' if i < 5 else 'spectral'))
    path = write_manifest(manifest(rows, 'discs'), tmp_path/'manifest.parquet')
    how = SIZES | {'clips.size': 40, 'clips.workers': 0, 'learn.batch': 2, 'learn.epochs': 1, 'valid': .4}
    bundle = load_model(learn_frames('dino', how | dict(data=path, out=tmp_path/'run'), quiet, True))
    assert (bundle.contract.frames, bundle.contract.seconds, bundle.contract.mean[0], bundle.contract.size) == (16, 1.28, 123.675, 32)
    assert bundle.config['trained_on'] == '5 clips without labels'


@pytest.mark.slow
def test_the_second_stage_goes_on_from_the_first(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for i in range(12):
        frames = disc_frames(20 + 4*i, 2.*(i % 2), 'A4C', rng, frames=6).transpose(1, 2, 3, 0)
        if i == 3: frames[2] = 0
        write_video(tmp_path/f'{i}.avi', np.ascontiguousarray(frames), 25)
        rows.append(dict(clip_id=f'{i:012x}', patient_id=f'p{i//2}', study_id=f's{i//2}', path=f'{i}.avi', kind='bmode',
                         report=f'Left Ventricle: EF {20 + 8*(i//2)}%.\nPericardium: {"Large" if i//2 % 2 else "No"} effusion.'))
    path = write_manifest(manifest(rows, 'discs'), tmp_path/'manifest.parquet')
    first = Dino(DinoConfig(**TINY, drop=0.), MultiCrop(32, 16), CONTRACT)
    save_bundle(tower_bundle('dino', first), tmp_path/'dino')
    how = {'weights.video': tmp_path/'dino', 'weights.pieces': 120, 'clips.size': 32, 'clips.frames': 4,
           'text.width': 24, 'text.layers': 1, 'text.heads': 2, 'text.inner': 28,
           'batch.pairs': 2, 'batch.clips': 2, 'batch.workers': 0, 'pretrain.epochs': 2, 'pretrain.lr': 1e-3, 'learn.half': False, 'valid': .3}
    bundle = load_model(pretrain('dino-report', how | dict(data=path, out=tmp_path/'run'), quiet, True))
    assert (bundle.video.kind, bundle.video.sizes['projected'], bundle.text.embed_dim, bundle.contract.frames) == ('dinov2', True, 24, 4)
    assert [*bundle.text.text_projection.state_dict()] == ['0.weight', '2.weight'] and bundle.text.text_projection[0].out_features == 28
    assert not torch.equal(bundle.video.vit.blocks[0].mlp.fc1.weight, load_model(tmp_path/'dino').video.vit.blocks[0].mlp.fc1.weight)
    e = bundle.video.study_vectors(torch.randint(0, 256, (1, 2, 3, 4, 32, 32), dtype=torch.uint8), torch.tensor([[True, True]]))
    assert e.shape == (1, 24) and torch.isfinite(e).all()


def test_black_frames_and_fillers_do_not_count():
    torch.manual_seed(0)
    tower = DinoTower(CONTRACT, projected=True, width=24, depth=1, heads=3, patch=8, registers=4).eval().requires_grad_(False)
    clips, mask = torch.randint(0, 256, (2, 3, 3, 5, 32, 32), dtype=torch.uint8), torch.tensor([[True, True, True], [True, False, False]])
    v = tower.study_vectors(clips, mask)
    for seed in range(3):
        torch.manual_seed(seed)
        junk = torch.where(mask[:, :, None, None, None, None], clips, torch.randint(0, 256, clips.shape, dtype=torch.uint8))
        order = torch.randperm(5)
        torch.testing.assert_close(tower.study_vectors(junk[:, :, :, order], mask), v, rtol=1e-4, atol=1e-5)
    apart = torch.cat([clips, clips[:, :, :, -1:].repeat(1, 1, 1, 3, 1, 1), torch.zeros_like(clips[:, :, :, :1])], 3)
    torch.testing.assert_close(tower.study_vectors(apart, mask), v, rtol=1e-4, atol=1e-5)
    counted = tower.proj(tower.frame_vectors(apart[:, 0]).mean(1))
    assert (counted[1] - v[1]).abs().max() > 1e-3
    assert torch.isfinite(tower.study_vectors(torch.zeros_like(clips), mask)).all()
