"Training without labels: two processes are one, a run that was killed goes on, a recipe from the command, and what goes wrong in one line."
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
from echo_lit.models.hub import load_model
from echo_lit.models.vit import sine_table
from echo_lit.training.discovr import Discovr, discovr_config
from echo_lit.training.distillation import cluster_distillation_loss, sinkhorn
from echo_lit.training.loaders import disc_frames, open_corpora
from echo_lit.training.masks import draw_views, hidden_tokens, region_patches
from echo_lit.training.recipe import load_recipe
from echo_lit.training.unlabelled import distil, recipe_model, unlabelled_loaders

SCRIPT = """
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from echo_lit.data.contract import InputContract
from echo_lit.training.discovr import Discovr, discovr_config
from echo_lit.training.distillation import sinkhorn
from echo_lit.training.masks import Seen

SIZES = dict(width=24, depth=1, heads=3, patch=8, decoder_width=12, decoder_depth=1, decoder_heads=2, prototypes=16, classes=32, hidden=20, middle=8,
             views=2, ratio=.75, local=.75, frame_ratio=.75)
CONTRACT = InputContract(frames=4, seconds=None, stride=1, size=32, crop='centre', mask=False)

def model(preset, **more):
    torch.manual_seed(0)
    return Discovr(discovr_config(preset, **SIZES, **more), CONTRACT)

def part(seen, at):
    return Seen(seen.whole[at], tuple(p[at] for p in seen.parts), None if seen.frames is None else seen.frames.unflatten(1, (4, 4))[:, at].flatten(1, 2))

def slopes(net, clips, seen):
    terms = net(clips, seen)
    terms['loss'].backward()
    return {k: v.detach() for k, v in terms.items()}, {n.removeprefix('module.'): p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}

torch.manual_seed(1)
scores, clips = torch.rand(50, 7)*2 - 1, torch.randint(0, 256, (4, 3, 4, 32, 32), dtype=torch.uint8)
wanted = {it: sinkhorn(scores, .05, it) for it in (0, 1, 3, 10)}
cases = [('default', {}), ('upstream', dict(image_loss='mean')), ('default', dict(target='tubes', video=0.))]
seen = [model(*c[:1], **c[1]).draw(4) for c in cases]
whole = [slopes(model(p, **more), clips, s) for (p, more), s in zip(cases, seen)]
judged = [model(p, **more).eval()(clips, s) for (p, more), s in zip(cases, seen)]
dist.init_process_group('gloo')
rank = dist.get_rank()
mine = slice(None, 31) if rank == 0 else slice(31, None)
for it, q in wanted.items(): torch.testing.assert_close(sinkhorn(scores[mine], .05, it), q[mine], rtol=0, atol=1e-5)
at = slice(0, 2) if rank == 0 else slice(2, 4)
for (p, more), s, (terms, grads), alone in zip(cases, seen, whole, judged):
    net = DistributedDataParallel(model(p, **more))
    own, got = slopes(net, clips[at], part(s, at))
    for k, v in own.items():
        dist.all_reduce(v)
        torch.testing.assert_close(v/2, terms[k], rtol=0, atol=2e-5)
    assert got.keys() == grads.keys(), set(got) ^ set(grads)
    for k in grads: torch.testing.assert_close(got[k], grads[k], rtol=1e-4, atol=2e-5)
    if rank == 0:
        for k, v in model(p, **more).eval()(clips, s).items(): torch.testing.assert_close(v, alone[k])
dist.destroy_process_group()
if rank == 0: print('same')
"""


@pytest.mark.slow
def test_two_processes_are_the_concatenation(tmp_path):
    (tmp_path/'script.py').write_text(SCRIPT)
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', str(tmp_path/'script.py')],
                          capture_output=True, text=True, timeout=900)
    assert 'same' in done.stdout, done.stderr[-3000:]


@pytest.mark.slow
def test_processes_with_unequal_validations_end(corpus, tmp_path):
    settings = SIZES | {'learn.batch': 4, 'learn.epochs': 1, 'valid': .7}
    held = unlabelled_loaders(corpus, load_recipe('discovr', settings))[0].valid.n
    assert held % 4 == 1
    command = ['-c', 'from echo_lit.cli import main; main()', 'train', 'discovr', f'data={corpus}', f'out={tmp_path}']
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '--no-python', sys.executable, *command,
                           *(f'{k}={v}' for k, v in settings.items()), '--ranks', '2'], capture_output=True, text=True, timeout=900)
    assert f'model bundle in {tmp_path/"discovr"}' in done.stdout, done.stderr[-3000:]
    assert load_model(tmp_path/'discovr').config['grid'] == [2, 4, 4]


SIZES = {'network.width': 24, 'network.depth': 1, 'network.heads': 3, 'network.patch': 8, 'network.decoder_width': 12, 'network.decoder_depth': 1,
         'network.decoder_heads': 2, 'network.prototypes': 16, 'network.classes': 32, 'network.hidden': 20, 'network.middle': 8, 'masks.views': 1,
         'masks.ratio': .75, 'masks.local': .5, 'masks.frame_ratio': .5, 'learn.epochs': 2, 'learn.batch': 6, 'learn.half': False, 'valid': .3}


def test_the_command_makes_a_bundle(corpus, tmp_path, capsys):
    assert run(['train', 'discovr', f'data={corpus}', f'out={tmp_path}', *(f'{k}={v}' for k, v in SIZES.items())]) == 0
    said = capsys.readouterr().out
    assert f'model bundle in {tmp_path/"discovr"}' in said and 'epoch 2 of 2  train loss ' in said
    card = (tmp_path/'discovr'/'README.md').read_text()
    assert 'feature_maps(video, clips)' in card and str(tmp_path) not in card
    bundle = load_model(tmp_path/'discovr')
    assert (bundle.video.kind, bundle.config['grid'], bundle.contract.frames) == ('discovr', [2, 4, 4], 4)
    assert len(pd.read_csv(tmp_path/'signs.csv')) == len(pd.read_csv(tmp_path/'history.csv')) == 2


def test_a_killed_run_goes_on(corpus, goes_on):
    goes_on(lambda folder, say: distil('discovr', SIZES | {'learn.lr': .1, 'data': corpus, 'out': folder}, say, True))


@pytest.mark.parametrize('setting,words', [
    ({'except': 'aligned'}, 'no difference'), ({'preset': 'paper'}, 'presets are default, upstream'), ({'network.patch': 7}, 'no multiple of tubelets'),
    ({'masks.mask': 'tubes'}, 'masks are random, region, mixed'), ({'masks.ratio': 1.}, 'less than 1'), ({'questions.target': 'names'}, 'is not one of frames'),
    ({'start': 'nowhere.pth'}, 'nowhere.pth'), ({'valid': 0.}, 'none is held back')])
def test_a_wrong_setting_is_one_line(corpus, tmp_path, setting, words):
    with pytest.raises((EchoError, OSError), match=words) as e: distil('discovr', SIZES | dict(data=corpus, out=tmp_path) | setting, lambda line: None, True)
    assert '\n' not in str(e.value)


def test_parts_of_a_batch_change_nothing():
    sizes = {k.split('.')[1]: v for k, v in SIZES.items() if k.split('.')[0] in ('network', 'masks')}
    def slopes(size):
        torch.manual_seed(0)
        model = Discovr(discovr_config(**sizes, at_a_time=size), InputContract(frames=4, seconds=None, stride=1, size=32, crop='centre', mask=False))
        model(torch.randint(0, 256, (6, 3, 4, 32, 32), dtype=torch.uint8))['loss'].backward()
        return [p.grad for p in model.parameters() if p.grad is not None]
    for a, b in zip(slopes(0), slopes(5), strict=True): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('eps', [.05, .01, .002])
@pytest.mark.parametrize('spread', [1., .01])
def test_shares_are_fair_however_sharp(eps, spread):
    torch.manual_seed(0)
    q = sinkhorn(spread*(2*torch.rand(600, 30) - 1), eps, 200)
    assert torch.isfinite(q).all()
    torch.testing.assert_close(q.sum(1), torch.ones(600))
    if eps >= .05 or spread < 1: torch.testing.assert_close(q.sum(0), torch.full((30,), 20.), rtol=.02, atol=0)


@pytest.mark.parametrize('kind', ['random', 'region', 'mixed'])
@pytest.mark.parametrize('batch', [1, 5])
def test_every_clip_has_as_many_visible_tokens(kind, batch):
    for seed in range(20):
        torch.manual_seed(seed)
        seen = draw_views(batch, (4, 7, 7), kind, views=3)
        for v in (seen.whole, *seen.parts):
            assert v.shape[0] == batch and (v.diff() > 0).all() and v.max() < 196
            frames = v.view(batch, 4, -1)
            assert (frames - frames[:, :1] == 49*torch.arange(4)[:, None]).all()
            assert hidden_tokens(v, 196).shape[1] == 196 - v.shape[1]


def test_regions_are_rectangles():
    for seed in range(50):
        torch.manual_seed(seed)
        for clip in region_patches(3, 112):
            rows, columns = clip//7, clip % 7
            assert len(clip) == (rows.max() - rows.min() + 1)*(columns.max() - columns.min() + 1)


@pytest.mark.parametrize('half', [False, True])
@pytest.mark.parametrize('changes', [{}, dict(target='tubes', video=0.), dict(target='pixels', video=0.), dict(image=0.), dict(clusters=0.), dict(video=0.),
                                     dict(mask='region', between='mean', tokens='masked'), dict(image=0., clusters=0.)])
def test_every_setting_trains(changes, half):
    torch.manual_seed(0)
    sizes = dict(width=24, depth=1, heads=3, patch=8, decoder_width=12, decoder_depth=1, decoder_heads=2, prototypes=16, classes=32, hidden=20, middle=8,
                 views=2, ratio=.75, local=.5, frame_ratio=.5)
    model = Discovr(discovr_config(**{**sizes, **changes}), InputContract(frames=4, seconds=None, stride=1, size=32, crop='centre', mask=False))
    clips = torch.randint(0, 256, (3, 3, 4, 32, 32), dtype=torch.uint8)
    with torch.autocast('cpu', torch.bfloat16, enabled=half): terms = model(clips)
    assert all(torch.isfinite(v) and v.dtype == torch.float for v in terms.values())
    terms['loss'].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without and all(p.grad is None for n, p in model.named_parameters() if 'teacher' in n)


def test_chunks_and_half_precision_change_little():
    torch.manual_seed(0)
    x, f, p = torch.randn(2, 300, 32), torch.randn(2, 300, 32), torch.nn.functional.normalize(torch.randn(40, 32), dim=1)
    whole = torch.stack(cluster_distillation_loss(x, f, p))
    torch.testing.assert_close(torch.stack(cluster_distillation_loss(x, f, p, chunk=64)), whole)
    with torch.autocast('cpu', torch.bfloat16): half = torch.stack(cluster_distillation_loss(x.bfloat16(), f, p))
    torch.testing.assert_close(half, whole, rtol=.01, atol=0)


def test_a_manifest_of_files_is_read(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for i in range(6):
        frames = disc_frames(50, 0., 'A4C', rng, frames=12, size=48).transpose(1, 2, 3, 0)
        write_video(tmp_path/f'{i}.avi', np.ascontiguousarray(frames), 30)
        rows.append(dict(clip_id=f'{i:012x}', patient_id=f'p{i}', study_id=f's{i}', path=f'{i}.avi', kind='bmode' if i < 5 else 'spectral'))
    path = write_manifest(manifest(rows, 'discs'), tmp_path/'manifest.parquet')
    how = SIZES | {'clips.frames': 4, 'clips.size': 32, 'clips.workers': 0, 'learn.batch': 2, 'learn.epochs': 1, 'valid': .4}
    bundle = load_model(distil('discovr', how | dict(data=path, out=tmp_path/'run'), lambda line: None, True))
    assert (bundle.contract.stride, bundle.contract.mean[0], bundle.config['grid']) == (3, 123.675, [2, 4, 4])
    assert bundle.config['trained_on'] == '5 clips without labels'


def test_a_run_goes_on_from_published_weights(corpus, tmp_path):
    recipe = load_recipe('discovr', SIZES | {'start': str(tmp_path/'checkpoint-799.pth')})
    contract = open_corpora(corpus).contract
    torch.manual_seed(9)
    ours = Discovr(discovr_config(**{k.split('.')[1]: v for k, v in SIZES.items() if k.startswith(('network', 'masks'))}), contract)
    renamed = {'decoder.mask_token': 'mask_token', 'decoder.encoder_to_decoder.weight': 'encoder_to_decoder.weight', 'image_dino.centre': 'image_center',
               'video_dino.centre': 'video_center'}
    state = {renamed.get(k, k): t for k, t in ours.state_dict().items()}
    for part, n in (('encoder', 32), ('video_teacher', 32), ('image_student', 16), ('image_teacher', 16)):
        state[f'{part}.pos_embed'] = torch.cat([torch.zeros(1, 24), sine_table(n, 24)])[None]
    state |= {k.replace('weight_v', 'weight_g'): torch.ones(len(t), 1) for k, t in state.items() if k.endswith('weight_v')}
    torch.save(dict(model=state, epoch=799), tmp_path/'checkpoint-799.pth')
    begun = recipe_model(recipe, contract)
    for (k, a), b in zip(begun.state_dict().items(), ours.state_dict().values(), strict=True): assert torch.equal(a, b), k
    torch.save(dict(model={k: t for k, t in state.items() if k != 'prototypes'}), tmp_path/'checkpoint-799.pth')
    with pytest.raises(EchoError, match='prototypes'): recipe_model(recipe, contract)
