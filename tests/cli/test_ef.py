"A head for ejection fraction, from the miniature of EchoNet-Dynamic to the answer for one file, on the command line."
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from echo_lit.cli import run
from echo_lit.commands.parser import DONE, NOTHING, SOME_FAILED
from echo_lit.models.backbone import backbone, clip_moments
from echo_lit.models.ejection import EFModel, EFReader, Trust, ef_config, mean_moment, save_ef
from echo_lit.data.cine import read_cine
from echo_lit.training.shots import write_phantom_echonet


@pytest.mark.parametrize('words, why', [
    (['train', 'ef'], 'ef is trained with --data'),
    (['train', 'ef', 'data=x', '--data', 'x'], 'it takes no key=value'),
    (['train', 'ef', '--data', 'x', '--shots', '0'], 'at least 1'),
    (['ef', 'a.avi', '--head', 'nowhere'], 'holds no head'),
    (['bench', 'ranks', '--data', 'x'], 'has no data')])
def test_one_line_on_what_is_wrong(words, why, capsys):
    assert run(words) == NOTHING
    err = capsys.readouterr().err
    assert why in err and err.count('\n') == 1


@pytest.fixture(scope='module')
def head(clips, tmp_path_factory):
    "An untrained head that answers with the mean of its labels, whatever it sees."
    tiny = backbone('phantom-tiny')
    x, mask = clip_moments(tiny, read_cine(clips/'s0'/'a4c.avi'))
    model = EFModel(tiny.dim, 'linear', 'mean', mean=58.).eval()
    return save_ef(EFReader(tiny, model, mean_moment(x[None], mask[None]), Trust(8., .9, 99, 10., 80., 2.)), tmp_path_factory.mktemp('head'))


@pytest.mark.parametrize('names, code', [(['a4c'], DONE), (['a4c', 'cut', 'gone', 'plax'], SOME_FAILED), (['cut', 'gone'], NOTHING)])
def test_a_broken_clip_costs_the_others_nothing(head, clips, tmp_path, names, code, capsys):
    (tmp_path/'cut.avi').write_bytes((clips/'s0'/'a4c.avi').read_bytes()[:200])
    paths = [str((tmp_path if n in ('cut', 'gone') else clips/'s0')/f'{n}.avi') for n in names]
    assert run(['ef', *paths, '--head', str(head)]) == code
    out, err = capsys.readouterr()
    said = dict(line.strip().split('.avi: ', 1) for line in out.splitlines()[1:])
    assert (list(said), err) == (names, '')
    assert all(said[n].startswith('not read (' if n in ('cut', 'gone') else 'ejection fraction: 58 %') for n in names)


def edited(**changes): return 'ef.json', lambda old: json.dumps(json.loads(old) | changes).encode()
TRUST = dict(width=8, level=.9, patients=99, lowest=10, highest=80, farthest=2)


BROKEN = dict(
    missing=('head.safetensors', None, 'no such file'), begun=('head.safetensors', lambda old: old[:100], 'download it again'),
    cut=('head.safetensors', lambda old: old[:-9], 'cannot be read'), empty=('head.safetensors', lambda old: b'', 'download it again'),
    half=('ef.json', lambda old: old[:50], 'not JSON'), a_list=('ef.json', lambda old: b'[1]', 'no table'), nothing=('ef.json', lambda old: b'{}', 'lacks'),
    backbone=(*edited(backbone=7), 'names no backbone'), no_model=(*edited(model={}), 'describes no head'), a_number=(*edited(model=7), 'describes no head'),
    windows=(*edited(windows='2'), 'describes no head'), part=(*edited(trust=dict(width=8)), 'describes no head'),
    words=(*edited(trust=TRUST | dict(width='wide')), 'describes no head'),
    another=(*edited(model=dict(dim=128, head='linear', pool='attention', looks=1, bins={})), 'do not fit the model'))


@pytest.mark.parametrize('name, change, why', BROKEN.values(), ids=BROKEN)
def test_a_broken_head_is_one_line(head, clips, tmp_path, name, change, why, capsys):
    shutil.copytree(head, tmp_path/'head')
    file = tmp_path/'head'/name
    if change: file.write_bytes(change(file.read_bytes()))
    else: file.unlink()
    assert run(['ef', str(clips/'s0'/'a4c.avi'), '--head', str(tmp_path/'head')]) == NOTHING
    out, err = capsys.readouterr()
    assert why in err and err.count('\n') == 1 and out == ''


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    "The embedded model with a head that answers 58 of apical views."
    from echo_lit.models.fraction import FractionHead
    from echo_lit.models.hub import load_model, save_bundle
    made = load_model('phantom-tiny')
    made.ef = FractionHead(128, 2, dict(level=.9, lowest=10., highest=80., farthest=2., views=['A4C', 'A2C', 'A3C', 'A5C']), [[1., 12., .8, 99]])
    with torch.no_grad(): made.ef.line.weight.zero_(), made.ef.line.bias.fill_(5.8), made.ef.known.normal_()
    return save_bundle(made, tmp_path_factory.mktemp('bundle')/'mine')


def test_the_head_of_a_bundle_answers_and_beats_are_read(bundle, clips, tmp_path, capsys):
    path, n = clips/'s0'/'a4c.avi', len(read_cine(clips/'s0'/'a4c.avi'))
    t = np.arange(n)/50
    pd.DataFrame(dict(seconds=t, area=20 + 6*np.cos(2*np.pi*2.4*t - 1.5))).to_csv(tmp_path/'lv.csv', index=False)
    code = run(['ef', str(path), '--backbone', str(bundle), '--areas', str(tmp_path/'lv.csv'), '--out', str(tmp_path/'ef.json')])
    row, = json.loads((tmp_path/'ef.json').read_text())['recordings']
    assert (code == DONE) == (row['ef'] is not None) and (row['ef'] is None) == bool(row['reason'])
    assert {b['reason'] == '' for b in row['beats']} == {b['ef'] is not None for b in row['beats']} and str(tmp_path) not in (tmp_path/'ef.json').read_text()
    if row['ef'] is not None: assert (round(row['ef']), round(row['high'] - row['ef'])) == (58, 12)
    assert capsys.readouterr().out.count('beat at') == len(row['beats'])


def test_areas_of_another_film_are_refused(bundle, clips, tmp_path, capsys):
    pd.DataFrame(dict(seconds=np.arange(9)/50, area=20.)).to_csv(tmp_path/'lv.csv', index=False)
    run(['ef', str(clips/'s0'/'a4c.avi'), '--backbone', str(bundle), '--areas', str(tmp_path/'lv.csv')])
    assert 'one for each frame is wanted' in capsys.readouterr().out


@pytest.mark.slow
def test_from_videos_to_an_answer(tmp_path, capsys):
    data, head = write_phantom_echonet(tmp_path/'mini', 24, 12, 6, seconds=.5), tmp_path/'head'
    words = ['train', 'ef', '--data', str(data), '--backbone', 'phantom-tiny', '--shots', '3', '--seeds', '2', '--out', str(head)]
    assert run(words) == DONE
    table = pd.read_csv(head/'metrics.csv')
    assert list(dict.fromkeys(table.method)) == ['constant', 'linear probe', 'mfl'] and {'mae', 'auc_35', 'coverage'} <= set(table.measure)
    assert ef_config(head)['about'] == dict(shots=3, per='bin', method='mfl', videos=15, seeds=2)
    clips = sorted(str(p) for p in (data/'Videos').iterdir())[-3:]
    assert run(['ef', *clips, '--head', str(head)]) in (DONE, 3, NOTHING)
    said = capsys.readouterr().out
    assert said.count('ejection fraction:') == 3 and str(tmp_path) not in said.split('Ejection fraction by')[1]
    first = len([*(head/'moments').iterdir()])
    assert run(words) == DONE and len([*(head/'moments').iterdir()]) == first
