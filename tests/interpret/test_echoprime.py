"EchoPrime's bank and interpretation on a stand-in download, against the formulas written out."
import json
import pickle
import warnings
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
import torch

from echo_lit.cli import run
from echo_lit.core import Study
from echo_lit.data.candidates import convert_candidates, write_stand_in
from echo_lit.data.cine import read_cine, write_dicom, write_video
from echo_lit.data.echoprime import section_text
from echo_lit.data.heart import random_heart
from echo_lit.data.phantom import phantom_clip
from echo_lit.interpret.echoprime import Candidates, EchoPrimeInterpreter, phenotype_findings, phenotype_table, published_report, section_queries
from echo_lit.interpret.export import html_page
from echo_lit.interpret.record import SCHEMA
from echo_lit.interpret.interpreter import Interpreter
from echo_lit.interpret.retrieval import RetrievalError
from echo_lit.models.echoprime import write_stand_in_weights
from echo_lit.models.hub import USED
from echo_lit.vocabulary import COARSE_VIEWS, SECTIONS

MOVED = {'Right Ventricle': 'Resting Segmental Wall Motion Analysis', 'Left Atrium': 'Right Ventricle', 'Right Atrium': 'Left Atrium',
         'Mitral Valve': 'Right Atrium', 'Aortic Valve': 'Atrial Septum', 'Tricuspid Valve': 'Mitral Valve', 'Pericardium': 'Aortic Valve',
         'Aorta': 'Tricuspid Valve', 'IVC': 'Pulmonic Valve', 'Pulmonary Artery': 'Pericardium'}

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('echoprime')
    write_stand_in_weights(root)
    return convert_candidates(write_stand_in(root, reports=500), root/'converted')

@pytest.fixture(scope='module')
def bank(folder): return Candidates.load(folder/'bank')

@pytest.fixture(scope='module')
def reader(folder): return Interpreter.from_pretrained('echoprime', folder)

@pytest.fixture(scope='module')
def clip(): return phantom_clip(random_heart(3), 'a4c', seed=1, seconds=1.3, height=120)

def by_hand(bank, vectors, views):
    "Section vectors, neighbours, means and report as the published description has them, in plain loops."
    names, near, report = dict(zip(SECTIONS, range(15))), {}, ''
    texts = bank.table.read(['text'])['text'].to_pylist()
    for s in SECTIONS:
        q = sum(bank.view_weights[names[s], COARSE_VIEWS.index(v)]*e for v, e in zip(views, vectors))
        sim = bank.embeddings.astype(np.float64) @ (q/np.linalg.norm(q))
        order = np.argsort(-sim, kind='stable')
        near[s] = order[:50]
        report += next(x for i in order if (x := section_text(texts[i], s, 'upstream')) != 'Section not found.')
    return near, report

def test_sections_neighbours_means_and_report(bank):
    "Rows 14 to 16 of the parity table: by name, by position, and the report."
    rng = np.random.default_rng(5)
    vectors, views = rng.normal(size=(6, 512))*rng.uniform(.2, 3, (6, 1)), [COARSE_VIEWS[i] for i in rng.integers(11, size=6)]
    near, report = by_hand(bank, vectors, views)
    queries, shares = section_queries(vectors, views, bank.view_weights)
    rows = dict(zip(SECTIONS, bank.search(queries)[1]))
    assert all(np.array_equal(rows[s], near[s]) for s in SECTIONS) and np.allclose(shares.sum(1), 1)
    for preset in ('default', 'upstream'):
        for r in phenotype_table(bank, rows, preset).itertuples():
            source = MOVED.get(r.section, r.section) if preset == 'upstream' else r.section
            labels = [bank.labels[i, bank.phenotypes.index(r.phenotype)] for i in near[source]]
            assert r.value == pytest.approx(np.nanmean(np.array(labels, float))) and r.votes == np.isfinite(labels).sum()
    assert published_report(bank, dict(zip(SECTIONS, bank.search(queries, 250)[1]))) == report

def test_weight_zero_is_not_assessed(bank):
    for i in range(15):
        view = COARSE_VIEWS[int(bank.view_weights[i].argmin())]
        q, share = section_queries(np.ones((1, 512)), [view], bank.view_weights)
        assert not q[i].any() and not share[i].any() and np.isfinite(q).all()

def test_a_study_of_one_clip_and_its_silence(reader, clip, monkeypatch):
    seen = {}
    def only(view): return lambda c, *_: replace(seen.setdefault('one', type(reader).reading(reader, c)), view=view)
    for i in (0, 12):
        view = COARSE_VIEWS[int(reader.index.view_weights[i].argmin())]
        monkeypatch.setattr(reader, 'reading', only(view), raising=False)
        r = reader.interpret(Study('one', None, [clip]))
        silent = r.sections.set_index('section').loc[SECTIONS[i]]
        assert not silent.assessed and silent.reason == 'no view that shows it' and SECTIONS[i] not in r.report.sections
        assert (r.phenotypes[r.phenotypes.section == SECTIONS[i]].votes == 0).all() and r.sections.assessed.sum() >= 12
        assert 30 < r.phenotypes.votes.max() <= 50
        said = {f.code: f.value for f in r.report.findings}
        for f in r.findings.itertuples(): assert f.written == (f.finding in said and said[f.finding] == f.value)

def test_grey_clips_are_read(reader, clip, tmp_path):
    "Published code loses every grey file."
    import pydicom
    write_dicom(tmp_path/'colour.dcm', clip[:], clip.fps, quality=None)
    ds = pydicom.dcmread(tmp_path/'colour.dcm')
    ds.PixelData = np.ascontiguousarray(clip[:][..., 0]).tobytes()
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, 'MONOCHROME2'
    del ds.PlanarConfiguration
    ds.save_as(tmp_path/'grey.dcm')
    r = reader.interpret(Study('grey', None, [read_cine(tmp_path/'grey.dcm')]))
    assert len(r.views) == 1 and not r.failures and r.sections.assessed.any()

def test_labels_that_nobody_has(bank):
    empty = replace(bank, labels=np.full(bank.labels.shape, np.nan, np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        table = phenotype_table(empty, {s: np.arange(50) for s in SECTIONS})
    assert table.value.isna().all() and (table.votes == 0).all() and set(table.present) == {None}

def test_a_section_that_no_report_has(tmp_path, clip):
    "Published code would look for it for ever."
    model_data = write_stand_in(tmp_path, reports=60)
    (model_data/'candidates_data'/'candidate_reports.pkl').write_bytes(pickle.dumps([[(0, 0, 50.)]]*60))
    write_stand_in_weights(tmp_path)
    r = EchoPrimeInterpreter.from_pretrained(path=convert_candidates(model_data, tmp_path/'out')).interpret(Study('s', None, [clip]))
    assert set(r.report.sections) <= {'Left Ventricle'}
    assert r.sections.set_index('section').reason['Aorta'] == 'none of the 250 nearest reports mentions it'

def test_presets_differ_only_where_published_code_is_wrong(folder, clip):
    a, b = (EchoPrimeInterpreter.from_pretrained(path=folder, preset=p) for p in ('default', 'upstream'))
    for x in (a, b): x.index.thresholds.clear()
    x, y = (r.interpret(Study('s', None, [clip])).phenotypes for r in (a, b))
    assert list(x.neighbours_of) == list(x.section) and y.neighbours_of[2] == MOVED['Right Ventricle']
    assert next(b.bundle.video.parameters()).dtype == torch.float32
    film = replace(clip, colour_source='video')
    assert [(c.mask, c.channels) for c in (a._contract(film), b._contract(clip), b._contract(film))] == [(True, 'YUV'), ('published', 'YUV'), (False, 'RGB')]

def test_shares_become_findings_by_their_thresholds(bank):
    "Six of ten neighbours have one: below a threshold of 0.7, above the one half that stands where there is none; and no ejection fraction is 500 %."
    labels, near = np.full((len(bank), 21), np.nan, np.float32), {s: np.arange(10) for s in SECTIONS}
    def at(p): return bank.phenotypes.index(p)
    for p in ('tavr', 'pacemaker'): labels[:10, at(p)] = [1]*6 + [0]*4
    for ef, known in ((500, False), (55, True)):
        labels[:10, at('ejection_fraction')] = ef
        made = replace(bank, labels=labels)
        found = phenotype_findings(phenotype_table(made, near), made, near)
        assert (found['aortic_prosthesis'].value, found['pacemaker_lead'].value, 'ef' in found) == (False, True, known)

def test_from_the_command(folder, clip, tmp_path, capsys):
    USED.clear()              # the licence is told once a run
    (tmp_path/'study').mkdir()
    write_video(tmp_path/'study'/'a4c.avi', clip[:], clip.fps)
    code = run(['interpret', str(tmp_path/'study'), '--model', 'echoprime', '--weights', str(folder), '--out', str(tmp_path/'out')])
    out = capsys.readouterr()
    assert code == 0 and 'ejection fraction' in out.out and 'Cedars-Sinai academic' in out.err
    record = json.loads((tmp_path/'out'/'report.json').read_text())
    jsonschema.validate(record, SCHEMA)
    assert len(record['phenotypes']) == 21 and record['model']['weights'] and 'Cedars' in record['model']['licence']
    page = (tmp_path/'out'/'report.html').read_text()
    assert 'Phenotypes' in page and 'Cedars-Sinai' in page

@pytest.mark.parametrize('where, says', [('nowhere', 'convert echoprime'), ('', 'convert echoprime')])
def test_not_converted(folder, tmp_path, where, says, capsys, clip):
    write_video(tmp_path/'a4c.avi', clip[:], clip.fps)
    assert run(['interpret', str(tmp_path/'a4c.avi'), '--model', 'echoprime', '--weights', str(tmp_path/where)]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count('\n') == 1
    assert run(['interpret', str(tmp_path/'a4c.avi'), '--model', 'echoprime']) == 2 and '--weights DIR' in capsys.readouterr().err

def test_mixed_files_are_refused(folder, tmp_path):
    import shutil
    shutil.copytree(folder/'bank', tmp_path/'bank')
    np.save(tmp_path/'bank'/'labels.npy', np.zeros((7, 21), np.float32))
    with pytest.raises(RetrievalError, match='do not belong together'): Candidates.load(tmp_path/'bank')
    np.save(tmp_path/'bank'/'labels.npy', np.array([{}], object), allow_pickle=True)
    with pytest.raises(RetrievalError): Candidates.load(tmp_path/'bank')

def test_evil_words_of_a_bank_are_data(reader, clip, tmp_path):
    "Texts of a bank are escaped like any other."
    r = reader.interpret(Study('s', None, [clip]))
    r.phenotypes.loc[0, 'phenotype'] = '<script>alert(1)</script>'
    assert '<script' not in html_page(r)
