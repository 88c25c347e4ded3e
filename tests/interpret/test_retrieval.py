import json, subprocess, sys, textwrap
import numpy as np, pandas as pd, pytest
from echo_lit.interpret.retrieval import ReportIndex, RetrievalError, nearest_rows

def bank(m=1000, d=16, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(m, d)); x /= np.linalg.norm(x, axis=1, keepdims=True)
    table = pd.DataFrame(dict(report_id=[f'r{i}' for i in range(m)], patient_id=[f'p{i//3}' for i in range(m)], text=[f'text {i}' for i in range(m)],
        findings=[json.dumps({'ef': i % 70}) for i in range(m)]))
    return x.astype(np.float16), table

@pytest.mark.parametrize('chunk', [1, 7, 100, 1000, 5000])
@pytest.mark.parametrize('k', [1, 50, 1000])
def test_exact_for_every_chunk(chunk, k):
    x, _ = bank()
    q = np.random.default_rng(1).normal(size=(4, 16)); q /= np.linalg.norm(q, axis=1, keepdims=True)
    scores, rows = nearest_rows(x, q, k, chunk=chunk)
    slow = q @ x.T.astype(np.float64)
    assert rows.shape == (4, k) and np.array_equal(rows, np.argsort(-slow, axis=1, kind='stable')[:, :k])
    np.testing.assert_allclose(scores, np.take_along_axis(slow, rows, 1), atol=1e-6)

def test_patient_is_left_out_and_k_shrinks():
    index = ReportIndex(*bank(9))
    scores, rows = index.search(np.ones(16), k=50, exclude_patient='p1')
    assert sorted(rows[0]) == [0, 1, 2, 6, 7, 8] and scores.shape == (1, 6)
    assert index.search(np.ones(16), k=50, exclude_patient='nobody')[1].shape == (1, 9)
    with pytest.raises(RetrievalError, match='only reports of this patient'): ReportIndex(*bank(3)).search(np.ones(16), exclude_patient='p0')

def test_missing_patient_ids_are_nobody():
    x, table = bank(9); table.loc[3:, 'patient_id'] = None
    assert sorted(ReportIndex(x, table).search(np.ones(16), k=9, exclude_patient='p0')[1][0]) == [3, 4, 5, 6, 7, 8]

def test_equal_rows_come_in_order():
    x, table = bank(300); x[:] = x[0]
    for chunk in (13, 300): assert ReportIndex(x, table, chunk).search(x[0].astype(float), 40)[1].tolist() == [list(range(40))]

def test_more_equal_rows_than_proposed():
    "Rows of a few vectors each, so that the k-th neighbour is one of hundreds alike."
    rng = np.random.default_rng(0)
    for m, k, queries, chunk, few in ((301, 50, 25, 32768, 8), (301, 80, 5, 32768, 8), (1003, 250, 5, 100, 2), (1003, 3, 25, 1000, 3)):
        kinds = rng.normal(size=(few, 512)); kinds = (kinds/np.linalg.norm(kinds, axis=1, keepdims=True)).astype(np.float16)
        x = kinds[rng.integers(few, size=m)]
        q = kinds[rng.integers(few, size=queries)] + .01*rng.normal(size=(queries, 512))
        slow = np.round(q @ x.T.astype(float), 9)
        assert np.array_equal(nearest_rows(x, q, k, chunk=chunk)[1], np.argsort(-slow, axis=1, kind='stable')[:, :k])

def test_damaged_rows_of_a_file(tmp_path):
    x, table = bank(1000); bad = [7, *(i for i in range(900, 1000) if i % 15)]; x[bad] = np.nan
    np.save(tmp_path/'embeddings.npy', x); table.to_parquet(tmp_path/'reports.parquet')
    for chunk in (13, 1000):
        rows = ReportIndex.load(tmp_path, chunk).search(np.ones(16), 50)[1][0]
        assert len(set(rows)) == 50 and not set(rows) & set(bad)
        with pytest.raises(RetrievalError, match='damaged'): ReportIndex.load(tmp_path, chunk).search(np.ones(16), 910)
    x[:, 0] = np.inf; np.save(tmp_path/'embeddings.npy', x)
    with pytest.raises(RetrievalError): ReportIndex.load(tmp_path).search(np.ones(16), 5)
    with pytest.raises(RetrievalError, match='row 3 .* not finite'): ReportIndex(np.where(np.arange(1000)[:, None] == 3, np.nan, bank(1000)[0]), table)

def test_patients_written_as_numbers(tmp_path):
    x, table = bank(9); np.save(tmp_path/'embeddings.npy', x)
    for ids in (np.arange(9)//3, (np.arange(9)//3).astype(float), pd.Categorical(np.arange(9)//3), [f' {i//3} ' for i in range(9)]):
        table.assign(patient_id=ids).to_parquet(tmp_path/'reports.parquet')
        assert sorted(ReportIndex.load(tmp_path).search(np.ones(16), 9, '1')[1][0]) == [0, 1, 2, 6, 7, 8]

@pytest.mark.parametrize('bad', [np.zeros(16), np.full(16, np.nan), np.full(16, np.inf)])
def test_empty_queries_are_refused(bad):
    with pytest.raises(RetrievalError): ReportIndex(*bank(9)).search(bad)

def test_pickled_bank_is_refused(tmp_path):
    x, table = bank(9)
    np.save(tmp_path/'embeddings.npy', np.array([{}]*9, dtype=object), allow_pickle=True); table.to_parquet(tmp_path/'reports.parquet')
    with pytest.raises(RetrievalError, match='cannot be read'): ReportIndex.load(tmp_path)

def test_memory_is_bounded(tmp_path):
    "A bank of 100 MB is searched with less anonymous memory than a copy of it in single precision would take."
    m, d = 200_000, 256
    out = np.lib.format.open_memmap(tmp_path/'embeddings.npy', 'w+', np.float16, (m, d)); rng = np.random.default_rng(0)
    for a in range(0, m, 20_000):
        x = rng.normal(size=(20_000, d)).astype(np.float32); out[a:a + 20_000] = x/np.linalg.norm(x, axis=1, keepdims=True)
    out.flush(); del out
    pd.DataFrame(dict(report_id=np.arange(m).astype(str), patient_id=np.arange(m).astype(str), text='t')).to_parquet(tmp_path/'reports.parquet')
    code = textwrap.dedent('''
        import sys, re, faiss, numpy as np
        from echo_lit.interpret.retrieval import ReportIndex
        anon = lambda: int(re.search(r'RssAnon:\\s+(\\d+)', open('/proc/self/status').read())[1])/1024
        before = anon()
        peak = []
        knn = faiss.knn
        faiss.knn = lambda *a, **k: (knn(*a, **k), peak.append(anon()))[0]
        index = ReportIndex.load(sys.argv[1])
        index.search(np.random.default_rng(1).normal(size=(15, 256)), 50)
        print(max(peak) - before)''')
    used = float(subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True, check=True).stdout)
    assert used < 120, f'{used:.0f} MB used; the whole bank in single precision is 205 MB'
