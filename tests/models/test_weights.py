"Weight files and tables from strangers: nothing runs, nothing is guessed, nothing fills the memory."
import argparse
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from echo_lit.core import EchoError
from echo_lit.data.candidates import plain_pickle
from echo_lit.models.hub import Bundle, Origin, load_bundle, load_model, origins, phantom_tiny, save_bundle
from echo_lit.models.weights import _PREFIXES, WeightsError, load_weights, read_checkpoint, read_weights, strip_prefixes


class Call:
    def __init__(self, function, *args): self.call = function, args
    def __reduce__(self): return self.call


def traps(folder):
    "Pickles that would leave a file behind, by different ways to reach a function."
    mark = str(folder/'mark')
    yield Call(os.system, f'touch {mark}')
    yield Call(os.mkdir, mark)
    yield Call(eval, f'open({mark!r}, "w")')
    yield Call(exec, f'open({mark!r}, "w")')
    yield Call(getattr, Call(__import__, 'os'), 'getcwd')
    yield Call(subprocess.Popen, ['touch', mark])
    yield Call(torch.load, mark)
    yield Call(np.memmap, mark, 'u1', 'w+', 0, (9,))


def one_line(path, reader=read_checkpoint, **kw):
    with pytest.raises(EchoError) as e: reader(path, **kw)
    assert '\n' not in str(e.value) and path.name in str(e.value)
    return str(e.value)


def test_no_pickle_runs(tmp_path):
    for i, trap in enumerate(traps(tmp_path)):
        for legacy in (False, True):
            torch.save({'a': torch.ones(2), 'b': trap}, tmp_path/f'{i}.pt', _use_new_zipfile_serialization=not legacy)
            assert 'refused, nothing was run' in one_line(tmp_path/f'{i}.pt')
        for protocol in (0, 2, 4, 5):
            (tmp_path/'t.pkl').write_bytes(pickle.dumps([trap], protocol))
            assert 'refused' in one_line(tmp_path/'t.pkl', plain_pickle)
        assert not (tmp_path/'mark').exists()


def test_a_listed_class_opens_no_other_door(tmp_path):
    torch.save({'model': {'a': torch.ones(2)}, 'args': argparse.Namespace(f=Call(os.mkdir, str(tmp_path/'mark')))}, tmp_path/'a.pt')
    assert 'mkdir' in one_line(tmp_path/'a.pt', allow=[argparse.Namespace]) and not (tmp_path/'mark').exists()


def test_a_whole_module_is_not_weights(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path/'a.pt')
    assert 'torch.nn.modules.linear.Linear' in one_line(tmp_path/'a.pt')


@pytest.mark.parametrize('share', [0, .001, .1, .5, .9, .999])
@pytest.mark.parametrize('kind', ['zip', 'legacy', 'safetensors'])
def test_a_cut_file_is_one_line(tmp_path, share, kind):
    path, state = tmp_path/'a.pt', {f'layer.{i}': torch.randn(50, 50) for i in range(5)}
    if kind == 'safetensors': save_file(state, path)
    else: torch.save(state, path, _use_new_zipfile_serialization=kind == 'zip')
    whole = path.read_bytes()
    path.write_bytes(whole[:int(share*len(whole))])
    one_line(path)


def test_no_byte_brings_it_down(tmp_path):
    "Whatever single byte of the pickle inside is wrong: an error in one line, or plain content."
    torch.save({'a': torch.arange(6.).view(2, 3)}, tmp_path/'a.pt')
    with zipfile.ZipFile(tmp_path/'a.pt') as z: parts = {n: z.read(n) for n in z.namelist()}
    name = next(n for n in parts if n.endswith('data.pkl'))
    rng = np.random.default_rng(0)
    for i in range(len(parts[name])):
        bad = bytearray(parts[name])
        bad[i] ^= int(rng.integers(1, 256))
        with zipfile.ZipFile(tmp_path/'b.pt', 'w') as z:
            for n, data in parts.items(): z.writestr(n, bytes(bad) if n == name else data)
        try: read_weights(tmp_path/'b.pt')
        except WeightsError as e: assert '\n' not in str(e)


def test_bombs_are_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path/'packed.pt', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('a/data.pkl', bytes(10**7))
    assert 'compressed' in one_line(tmp_path/'packed.pt')
    with zipfile.ZipFile(tmp_path/'over.pt', 'w') as z: z.writestr('a/data.pkl', bytes(1000))
    data = bytearray((tmp_path/'over.pt').read_bytes())
    for sign, at in ((b'PK\x01\x02', 20), (b'PK\x03\x04', 18)):
        struct.pack_into('<II', data, data.index(sign) + at, 2**31, 2**31)
    (tmp_path/'over.pt').write_bytes(data)
    assert 'declares 2,147,483,648 bytes' in one_line(tmp_path/'over.pt')


def test_storages_larger_than_their_record(tmp_path):
    "The pickle declares a million numbers, the record holds six: no memory beyond the file is read."
    torch.save({'a': torch.zeros(6)}, tmp_path/'a.pt')
    with zipfile.ZipFile(tmp_path/'a.pt') as z: parts = {n: z.read(n) for n in z.namelist()}
    with zipfile.ZipFile(tmp_path/'b.pt', 'w') as z:
        for n, data in parts.items():
            if n.endswith('data.pkl'): data = data.replace(b'K\x06', b'J' + struct.pack('<i', 10**6))
            z.writestr(n, data)
    one_line(tmp_path/'b.pt', read_weights)
    header = b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'
    (tmp_path/'c.safetensors').write_bytes(struct.pack('<Q', len(header)) + header + bytes(24))
    one_line(tmp_path/'c.safetensors')


def test_odd_tensors_are_refused(tmp_path):
    for i, t in enumerate((torch.eye(4).to_sparse(), torch.ones(1).expand(10**4, 10**4))):
        torch.save({'a': t, 'b': torch.ones(3)}, tmp_path/f'{i}.pt')
        assert ': a is sparse or larger' in one_line(tmp_path/f'{i}.pt', read_weights)


def test_tables_declare_no_more_than_they_hold(tmp_path):
    for call in (Call(np._core.multiarray._reconstruct, np.ndarray, (10**9,), b'b'), Call(np.ndarray, (10**9,)), Call(bytearray, 10**9)):
        (tmp_path/'t.pkl').write_bytes(pickle.dumps(call))
        one_line(tmp_path/'t.pkl', plain_pickle)


def test_no_weights_at_all(tmp_path):
    for content in ({}, [], {'a': 1}, {'a': {}}, {'a': torch.ones(2), 'b': 'text'}, torch.ones(3)):
        torch.save(content, tmp_path/'a.pt')
        assert 'holds no weights' in one_line(tmp_path/'a.pt', read_weights)
    assert 'is a folder' in one_line(tmp_path)


@pytest.mark.parametrize('prefix', ['', *_PREFIXES, 'module.model.', 'model.encoder.', '_orig_mod.module.encoder.'])
def test_prefixes_come_off_only_where_they_wrap(prefix):
    wanted = nn.ModuleDict(dict(encoder=nn.Linear(2, 2), model=nn.Linear(2, 2), head=nn.Linear(2, 2))).state_dict()
    assert strip_prefixes({prefix + k: v for k, v in wanted.items()}, wanted).keys() == wanted.keys()


def test_weights_of_another_model(tmp_path):
    torch.save({'state_dict': {f'model.{k}': v for k, v in nn.Linear(3, 3).state_dict().items()}}, tmp_path/'a.pt')
    assert load_weights(nn.Linear(3, 3), tmp_path/'a.pt').training is False
    assert '2 misshapen (bias (3,) for (2,), weight (3, 3) for (2, 3))' in one_line(tmp_path/'a.pt', lambda p: load_weights(nn.Linear(3, 2), p))
    assert '2 missing (0.bias, 0.weight); 2 unexpected' in one_line(tmp_path/'a.pt', lambda p: load_weights(nn.Sequential(nn.Linear(3, 3)), p))


def test_terms_survive_saving_and_mixing(tmp_path):
    own = phantom_tiny()
    own.views.encoder.origins = Origin('theirs', 'CC BY-NC-SA 4.0', False),
    first = load_bundle(save_bundle(Bundle('one', views=own.views), tmp_path/'one'))
    second = save_bundle(Bundle('two', views=first.views, video=own.video), tmp_path/'two')
    assert [o.name for o in origins(load_bundle(second))] == ['theirs']
    assert 'CC BY-NC-SA 4.0' in load_model(second).config['licence']
    save_bundle(Bundle('clean', video=own.video), tmp_path/'clean')
    assert (tmp_path/'clean'/'LICENSE').read_text() == 'SPDX-License-Identifier: Apache-2.0\n'


def test_the_default_model_waits_for_no_other(root):
    code = ("import sys, echo_lit.models.hub as h; h.load_model('phantom-tiny'); print(len(h.MODELS)); "
            "h.list_models(); assert not {'timm', 'open_clip', 'fastai'} & {*sys.modules}")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == '1' and done.stderr == ''
