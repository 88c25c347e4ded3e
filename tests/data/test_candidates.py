"Converting a downloaded bank: what it refuses, that it is whole or not there, and how little memory it and its use take."
import builtins
import json
import os
import pickle
import pickletools
import shutil
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch

from echo_lit.data.candidates import bank_files, convert_candidates, open_tensor, plain_pickle, read_thresholds, read_view_weights, write_stand_in
from echo_lit.core import EchoError
from echo_lit.data.echoprime import BankError

class Calls:
    "Pickles to a call."
    def __init__(self, f, *args): self.call = f, args
    def __reduce__(self): return self.call

TOUCH = 'echo_lit_was_here'

def named(module, name, rest=b'.'): return b''.join([b'\x80\x04', *(b'\x8c' + bytes([len(x)]) + x.encode() for x in (module, name)), b'\x93', rest])

HOSTILE = {
    'system': pickle.dumps(Calls(os.system, f'touch {TOUCH}')),
    'eval': pickle.dumps(Calls(eval, f'open({TOUCH!r}, "w")')),
    'getattr': pickle.dumps({'a': [Calls(builtins.getattr, 1, 'real')]}),
    'old protocol': b"cos\nsystem\n(S'touch " + TOUCH.encode() + b"'\ntR.",
    'dotted name': named('builtins', 'list.__init__'),
    'class of a list': named('builtins', 'list.__class__'),
    'instance': b"(S'touch " + TOUCH.encode() + b"'\nios\nsystem\n.",
    'persistent': b'P1\n.',
    'object array': pickle.dumps(np.array([Calls(os.system, f'touch {TOUCH}')], object)),
    'number of objects': b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00O8K\x00K\x01\x87RX\x04\x00\x00\x00abcd\x86R.",
    'number without kind': named('numpy.core.multiarray', 'scalar', b'K\x01C\x08abcdefgh\x86R.'),
    'own code': named('echo_lit.data.candidates', 'convert_candidates'),
    'extension': b'\x82\x01.', 'nothing': b'', 'noise': bytes(range(256)), 'no stop': pickle.dumps([1, 2])[:-1],
    'promised bytes': b'\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab.', 'pickled class': pickle.dumps(pd.Series([1.]))}

@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_pickles(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'labels.pkl').write_bytes(HOSTILE[name])
    with pytest.raises(BankError, match='labels.pkl') as e: plain_pickle(tmp_path/'labels.pkl')
    assert '\n' not in str(e.value) and os.listdir(tmp_path) == ['labels.pkl']

@pytest.mark.parametrize('protocol', range(6))
def test_plain_pickles(protocol, tmp_path):
    table = {'tavr': {1: 1., '2': np.float64(.25), 3: np.int64(7), 4: float('nan'), 5: np.float32(2.5), 6: np.bool_(True)}, 'x': [((0, 2, 60.0),), None, 'ä']}
    (tmp_path/'t.pkl').write_bytes(pickle.dumps(table, protocol))
    out = plain_pickle(tmp_path/'t.pkl')
    assert str(out) == str({**table, 'tavr': {1: 1., '2': .25, 3: 7, 4: float('nan'), 5: 2.5, 6: True}})

def test_every_cut_of_a_pickle_is_an_error_or_whole(tmp_path):
    whole = pickle.dumps({'tavr': {i: np.float64(i) for i in range(5)}, 'r': [(0, 1, None)]})
    pickletools.dis(whole, open(os.devnull, 'w'))
    for n in range(len(whole)):
        (tmp_path/'t.pkl').write_bytes(whole[:n])
        with pytest.raises(BankError): plain_pickle(tmp_path/'t.pkl')

def test_tensors_that_are_refused(tmp_path):
    def bad(name, words):
        with pytest.raises(BankError, match=words): open_tensor(tmp_path/name)
    torch.save(torch.zeros(3, 4), tmp_path/'good.pt')
    assert open_tensor(tmp_path/'good.pt').shape == (3, 4)
    torch.save(torch.zeros(3, 4), tmp_path/'old.pt', _use_new_zipfile_serialization=False)
    assert open_tensor(tmp_path/'old.pt').shape == (3, 4)
    torch.save(Calls(os.system, 'true'), tmp_path/'program.pt'); bad('program.pt', 'program.pt was refused')
    torch.save([torch.zeros(3, 4)], tmp_path/'list.pt'); bad('list.pt', 'holds list')
    torch.save(torch.zeros(3), tmp_path/'flat.pt'); bad('flat.pt', r'a tensor \(3,\)')
    torch.save(torch.zeros(3, 4, dtype=torch.int64), tmp_path/'whole.pt'); bad('whole.pt', 'a tensor')
    (tmp_path/'half.pt').write_bytes((tmp_path/'good.pt').read_bytes()[:400]); bad('half.pt', 'half.pt was refused')
    with zipfile.ZipFile(tmp_path/'good.pt') as z, zipfile.ZipFile(tmp_path/'bomb.pt', 'w', zipfile.ZIP_DEFLATED) as bomb:
        for i in z.infolist(): bomb.writestr(i.filename, z.read(i) if 'data/0' not in i.filename else bytes(10**7))
    bad('bomb.pt', 'compressed')

@pytest.fixture
def download(tmp_path): return write_stand_in(tmp_path, reports=60, dim=16)

@pytest.mark.parametrize('where', ['', 'nested', 'flat', 'assets'])
def test_places(download, tmp_path, where):
    "Unpacked as released, in a folder above, all in one folder, with the tables elsewhere."
    if where == 'nested': download = download.parent
    if where == 'flat':
        for p in [*download.glob('candidates_data/*'), *(tmp_path/'assets').iterdir()]: shutil.move(p, download/p.name)
    if where == 'assets': shutil.move(tmp_path/'assets', tmp_path/'tables')
    files = bank_files(download, tmp_path/'tables' if where == 'assets' else None)
    assert len(files['vectors']) == 2 and all(p.is_file() for k, p in files.items() if k != 'vectors')

def _pickled(download, name, x): (download/'candidates_data'/name).write_bytes(pickle.dumps(x))

@pytest.mark.parametrize('spoil, words', [
    (lambda d: _pickled(d, 'candidate_reports.pkl', [[(0, 0, 1.)]]*59), 'does not hold 60 reports'),
    (lambda d: _pickled(d, 'candidate_reports.pkl', [[(0, 99, 1.)]]*60), 'phrase 99 of section 0'),
    (lambda d: _pickled(d, 'candidate_reports.pkl', [[(0, -1, 1.)]]*60), 'phrase -1 of section 0'),
    (lambda d: _pickled(d, 'candidate_reports.pkl', [7]*60), 'no list of section, phrase and value'),
    (lambda d: _pickled(d, 'candidate_reports.pkl', Calls(os.system, 'true')), 'refused'),
    (lambda d: _pickled(d, 'candidate_labels.pkl', {}), 'no labels for impella'),
    (lambda d: _pickled(d, 'candidate_labels.pkl', [1]), 'no table of labels'),
    (lambda d: torch.save(torch.zeros(5, 16), d/'candidates_data'/'candidate_embeddings_p2.pt'), '60 studies and 25 vectors'),
    (lambda d: torch.save(torch.zeros(40, 8), d/'candidates_data'/'candidate_embeddings_p2.pt'), 'different releases'),
    (lambda d: torch.save(torch.full((40, 16), float('nan')), d/'candidates_data'/'candidate_embeddings_p2.pt'), 'report 20 is not finite'),
    (lambda d: (d/'candidates_data'/'candidate_studies.csv').write_text('Case\n1\n'), 'candidate_studies.csv'),
    (lambda d: (d/'candidates_data'/'candidate_embeddings_p1.pt').unlink(), 'lacks candidate_embeddings_p1.pt'),
    (lambda d: (d.parent/'assets'/'all_phr.json').write_text('[]'), 'sixteen sections'),
    (lambda d: (d.parent/'assets'/'MIL_weights.csv').write_text('x'), 'MIL_weights.csv'),
    (lambda d: (d.parent/'assets'/'roc_thresholds.csv').write_text('feature,threshold\ntavr,high\n'), 'threshold of tavr'),
    (lambda d: (d.parent/'assets'/'section_to_phenotypes.pkl').write_bytes(pickle.dumps({'Left Foot': ['x']})), 'Left Foot')])
def test_a_failed_conversion_leaves_the_earlier_one(download, tmp_path, spoil, words):
    out = convert_candidates(download, tmp_path/'out')
    before = {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
    spoil(download)
    with pytest.raises(EchoError, match=words) as e: convert_candidates(download, out)
    assert '\n' not in str(e.value) and {p: p.read_bytes() for p in out.rglob('*') if p.is_file()} == before
    assert {p.name for p in tmp_path.iterdir()} == {'model_data', 'assets', 'out'}

def test_weights_below_zero_and_above_one(download, tmp_path):
    path = download.parent/'assets'/'MIL_weights.csv'
    table = pd.read_csv(path, index_col='Section')
    for bad in (-.1, 1.2, np.nan):
        t = table.copy(); t.iloc[3, 4] = bad; t.to_csv(path)
        with pytest.raises(BankError, match='between 0 and 1'): read_view_weights(path)
    (tmp_path/'t.csv').write_text(',feature,threshold\n0,a,1.06\n')
    assert read_thresholds(tmp_path/'t.csv') == {'a': 1.06}

def test_unit_rows(download, tmp_path):
    x = np.load(convert_candidates(download, tmp_path/'out', unit=True)/'bank'/'embeddings.npy').astype(float)
    assert np.allclose(np.linalg.norm(x, axis=1), 1, atol=1e-3) and json.loads((tmp_path/'out'/'bank'/'tables.json').read_text())['unit']

WATCH = textwrap.dedent('''
    import json, re, sys, threading, time
    def anon(): return int(re.search(r'RssAnon:\\s+(\\d+)', open('/proc/self/status').read())[1])/1024
    peak, over = [0], threading.Event()
    def watch():
        while not over.wait(.02): peak[0] = max(peak[0], anon())
    threading.Thread(target=watch, daemon=True).start()
    ''')

USE = WATCH + textwrap.dedent('''
    import numpy as np, torch, faiss, pandas, pyarrow.parquet
    from echo_lit.interpret.echoprime import Candidates, phenotype_table, section_neighbours
    from echo_lit.vocabulary import SECTIONS
    start = time.perf_counter()
    bank = Candidates.load(sys.argv[1])
    opened = time.perf_counter() - start
    rows, wanted = len(bank), int(sys.argv[2])
    q = np.random.default_rng(1).normal(size=(15, bank.embeddings.shape[1]))
    q[0] = bank.embeddings[wanted]
    scores, near = bank.search(q/np.linalg.norm(q, axis=1, keepdims=True), 250)
    near = dict(zip(SECTIONS, near))
    table = phenotype_table(bank, {s: r[:50] for s, r in near.items()})
    said = [section_neighbours(bank, s, near[s], sc) for s, sc in zip(SECTIONS, scores)]
    over.set()
    print(json.dumps(dict(rows=rows, opened=opened, seconds=time.perf_counter() - start, peak=peak[0], first=int(near['Left Ventricle'][0]),
                          said=sum(map(bool, said)), votes=int(table.votes.sum()))))''')

CONVERT = WATCH + textwrap.dedent('''
    from echo_lit.data.candidates import convert_candidates
    before = anon()
    convert_candidates(*sys.argv[1:])
    over.set()
    print(peak[0] - before)''')

def child(code, *args):
    done = subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])

def grow(folder, rows):
    "A converted bank of a few hundred reports, told again until it is as large as the published one."
    small = folder/'small'
    bank = convert_candidates(write_stand_in(small, reports=400), small/'out')/'bank'
    import pyarrow as pa, pyarrow.parquet as pq
    big = folder/'bank'; big.mkdir()
    labels, text = np.load(bank/'labels.npy'), pq.read_table(bank/'reports.parquet')['text'].combine_chunks()
    rng, out = np.random.default_rng(0), np.lib.format.open_memmap(big/'embeddings.npy', 'w+', np.float16, (rows, 512))
    block = rng.normal(size=(40_000, 512)).astype(np.float32)
    for a in range(0, rows, 40_000): out[a:a + 40_000] = block[:rows - a]*rng.normal(size=512).astype(np.float32)
    out.flush()
    np.save(big/'labels.npy', np.resize(labels, (rows, labels.shape[1])))
    schema = pa.schema([('report_id', pa.string()), ('text', pa.string())])
    with pq.ParquetWriter(big/'reports.parquet', schema, compression='zstd') as f:
        for a in range(0, rows, 40_000):
            n = min(40_000, rows - a)
            f.write_table(pa.table([pa.array(range(a, a + n)).cast(pa.string()), text.take(pa.array(np.arange(n) % 400))], schema), row_group_size=2048)
    (big/'tables.json').write_text(json.dumps({**json.loads((bank/'tables.json').read_text()), 'reports': rows}))
    return big

@pytest.mark.slow
def test_a_bank_of_the_published_size(tmp_path):
    "1,230,676 reports of 512 numbers: opened within a second, asked fifteen questions within 1.5 GB of anonymous memory."
    rows, wanted = 1_230_676, 987_654
    try: got = child(USE, grow(tmp_path, rows), wanted)
    finally: shutil.rmtree(tmp_path)
    print(got)
    assert got['rows'] == rows and got['first'] == wanted and got['said'] == 15 and got['votes'] > 15*30
    assert got['peak'] < 1500 and got['opened'] < 1

def converting(folder, n, dim=512, told=True):
    "Peak of anonymous memory in MB while a bank of n reports is converted; with `told`, of 31 phrases and 21 labels each, else of next to nothing."
    data = (model_data := write_stand_in(folder, reports=400, dim=8))/'candidates_data'
    reports, labels = (plain_pickle(data/f'candidate_{x}.pkl') for x in ('reports', 'labels'))
    def report(i): return [(s, p, v) for s, p, v in (*reports[i % 400], *reports[(i + 1) % 400])] if told else []
    (data/'candidate_reports.pkl').write_bytes(pickle.dumps([report(i) for i in range(n)]))
    (data/'candidate_labels.pkl').write_bytes(pickle.dumps({p: {i: v[i % 400] for i in range(n if told else 400) if i % 400 in v} for p, v in labels.items()}))
    pd.DataFrame(dict(Study=range(n))).to_csv(data/'candidate_studies.csv', index=False)
    for k in (1, 2): torch.save(torch.randn(n//2, dim), data/f'candidate_embeddings_p{k}.pt')
    try:
        peak = child(CONVERT, model_data, folder/'out')
        assert np.load(folder/'out'/'bank'/'embeddings.npy', mmap_mode='r').shape == (n, dim)
    finally: shutil.rmtree(folder)
    return peak

@pytest.mark.slow
def test_conversion_streams(tmp_path):
    "Vectors pass through; what a report costs is its phrases and labels, which at the published size stay far below 8 GB."
    small, large = (converting(tmp_path/str(n), n, 2048, told=False) for n in (40_000, 120_000))
    print(small, large)
    assert large - small < 100                        # eighty thousand vectors are 650 MB
    small, large = (converting(tmp_path/str(n), n) for n in (20_000, 60_000))
    print(small, large)
    assert small + (large - small)/40_000*1_230_676 < 6000
