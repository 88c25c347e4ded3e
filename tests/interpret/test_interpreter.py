import html, json
from dataclasses import replace
import numpy as np, pandas as pd, pytest, torch
from echo_lit.core import EchoError, Failure, SetAside, Study
from echo_lit.data.heart import random_heart
from echo_lit.data.phantom import phantom_clip, phantom_reports
from echo_lit.data.reports import Report, Sentence, read_findings
from echo_lit.interpret.export import html_page
from echo_lit.interpret.record import interpretation_record
from echo_lit.interpret.interpreter import Interpreter
from echo_lit.interpret.retrieval import ReportIndex
from echo_lit.interpret.votes import Settings, consistent, vote
from echo_lit.models.hub import phantom_tiny
from echo_lit.vocabulary import CUTS, FINDINGS, Finding, findings_json, grade

@pytest.fixture(scope='module')
def machine():
    torch.manual_seed(0)
    rows = [(f'r{s}', f'p{s % 50}', text, findings_json(found)) for s, found, text in phantom_reports(200)]
    table = pd.DataFrame(rows, columns=['report_id', 'patient_id', 'text', 'findings'])
    bank = np.random.default_rng(0).normal(size=(200, 128))
    bundle = phantom_tiny()
    for part in bundle.parts().values(): part.eval()
    settings = Settings(gate=dict(present=0, graded=0, measured=0), similarity=-1, windows=1)
    return Interpreter(bundle, ReportIndex((bank/np.linalg.norm(bank, axis=1, keepdims=True)).astype(np.float16), table), settings)

@pytest.fixture(scope='module')
def study():
    return Study('study0000000', 'p7', [phantom_clip(random_heart(i), c, i, 1.3, 30., 144) for i, c in enumerate(('a4c', 'plax', 'a4c_colour_mv'))])

def test_report_and_tables_agree(machine, study):
    r = machine.interpret(study)
    assert {f.code for f in r.report.findings} == set(r.findings.finding[r.findings.written])
    assert list(r.evidence.sentence) == [s.text for said in r.report.sections.values() for s in said]
    for f in r.report.findings:
        back = {g.code: g.value for g in read_findings(r.report.text)}
        assert back[f.code] == (float(f.number) if f.kind == 'measured' else f.value)

def test_measurement_and_grade_never_disagree(machine, study):
    found = {f.code: f.value for f in machine.interpret(study).report.findings}
    for code, (source, *_) in CUTS.items():
        if code in found and source in found: assert found[code] == grade(code, found[source])

def test_own_reports_stay_out(machine, study):
    ids = {n['report'] for near in machine.interpret(study).evidence.neighbours for n in near}
    own = set(machine.index.table.report_id[machine.index.table.patient_id == 'p7'])
    assert own and not ids & own
    assert 'unknown' in machine.interpret(replace(study, patient=None)).excluded

def test_silence_without_views(machine, study):
    threshold = machine.bundle.views.threshold.clone()
    machine.bundle.views.threshold.fill_(1.1)
    try: r = machine.interpret(study)
    finally: machine.bundle.views.threshold.copy_(threshold)
    assert not r.report.sections and r.views.abstained.all() and set(r.sections.reason) == {'no view that shows it'}
    assert 'Nothing could be assessed' in html_page(r)

def test_closed_gate(machine, study):
    shut = Interpreter(machine.bundle, machine.index, replace(machine.settings, gate=dict(present=2, graded=2, measured=2)))
    r = shut.interpret(study)
    assert not r.report.sections and len(r.findings) and not r.findings.written.any()

def test_a_study_unlike_the_bank_says_so_first(machine, study):
    near = machine.interpret(study)
    assert near.unlike == '' and 'unlike' not in interpretation_record(near)
    far = Interpreter(machine.bundle, machine.index, replace(machine.settings, similarity=1.01)).interpret(study)
    page = html_page(far)
    assert not far.report.sections and page.index('unlike those this model knows') < page.index('<h1>')
    assert interpretation_record(far)['unlike'] == far.unlike

def test_nearest_copies_sections_of_the_bank(machine, study):
    r = machine.interpret(study, compose='nearest')
    texts = '\n'.join(machine.index.table.text)
    assert r.report.sections and all(s.text in texts for said in r.report.sections.values() for s in said)
    interpretation_record(r)

def test_a_broken_clip_is_a_row(machine, study):
    def torn(i): raise RuntimeError('cut off in /archive/DOE^JANE/7.dcm')
    bad = replace(study.clips[0], id='0123456789ab', read=torn)
    r = machine.interpret(replace(study, clips=[*study.clips, bad]))
    assert [f.clip for f in r.failures] == ['0123456789ab'] and len(r.views) == 3
    assert 'JANE' not in html_page(r)
    with pytest.raises(EchoError, match='no usable clip'): machine.interpret(replace(study, clips=[bad]))

@pytest.mark.parametrize('words', ['The E/A ratio is 0.8; there is mild/moderate mitral regurgitation.', 'LVEDV index 60 mL/m2, LVESV index 25 mL/m2.',
    'MR 1/4, TR 2/4.', "E/A ratio 1.2, E/e' 9."])
def test_words_with_slashes_come_through(machine, study, words):
    r = machine.interpret(study)
    row = r.evidence.iloc[0]
    proof = dict(clips=row.clips, neighbours=[dict(report='r1', similarity=.9, text=words)])
    r = replace(r, report=Report({row.section: [Sentence(words, evidence=(proof,))]}))
    assert html_page(r).count(html.escape(words)) == 2
    said = next(s for s in interpretation_record(r)['report'] if s['section'] == row.section)['sentences'][0]
    assert said['text'] == words and said['evidence']['neighbours'][0]['text'] == words

def test_no_name_of_a_file_leaves(machine, study):
    lost = [Failure('DOE_JANE.dcm', 'open', "cannot read '/archive/O'DOE^JANE/DOE_JANE.dcm'"), Failure('4711', 'open', 'in/DOE^JANE/4711.dcm is cut off')]
    aside = [SetAside('004711004711', 'other', 'not a cine'), SetAside('9be0c1d2aa03', 'still', 'one frame')]
    r = replace(machine.interpret(study), films={}, failures=lost, set_aside=aside)
    record = interpretation_record(r)
    assert [f['clip'] for f in record['failures'] + record['set_aside']] == ['file-1', 'file-2', 'file-3', '9be0c1d2aa03']
    for text in (html_page(r), json.dumps(record)): assert 'DOE' not in text and '4711' not in text and 'archive' not in text

def test_a_clip_that_the_encoder_chokes_on_says_so(machine, study):
    class Sick(torch.nn.Module):
        def __init__(self): super().__init__(); self.weight = torch.nn.Parameter(torch.ones(1))
        def forward(self, clips): raise RuntimeError('out of memory')
    with pytest.raises(EchoError, match='3 failed, 0 set aside; first reason: .*: RuntimeError: out of memory'):
        Interpreter(replace(machine.bundle, video=Sick()), machine.index, machine.settings).interpret(study)

@pytest.mark.parametrize('said', ['ef=55', '{"ef": "x"}', '{"ef": [55]}', '{"ef": 400}', '[]', None])
def test_findings_of_a_bank_that_mean_nothing(machine, study, said):
    odd = ReportIndex(machine.index.embeddings, machine.index.table.assign(findings=said))
    with pytest.raises(EchoError, match='in the bank cannot be read'): Interpreter(machine.bundle, odd, machine.settings).interpret(study)

@pytest.mark.parametrize('given', [[], 3, dict(gate=3), dict(k='many'), dict(k=0), dict(pool=2.5), dict(temperature='warm'),
    dict(cuts={'lv_thrombus': 0}), dict(kinds=[1])])
def test_settings_that_mean_nothing(machine, given):
    with pytest.raises(EchoError, match='^phantom-tiny: '): Settings.of(replace(machine.bundle, config={'interpret': given}))

def test_one_clip_in_memory_at_a_time(machine, study):
    held, most = [], []
    def counted(clip):
        def read(i):
            frames = clip.read(i)
            import weakref
            held.append(weakref.ref(frames)); most.append(sum(w() is not None for w in held))
            return frames
        return read
    clips = [replace(c, id=f'{n:012x}', read=counted(c)) for n in range(2) for c in study.clips]
    r = machine.interpret(replace(study, clips=clips))
    assert len(r.views) == 6 and max(most) <= 2

def test_vote_is_within_what_was_said():
    rng = np.random.default_rng(0)
    for code, t in FINDINGS.items():
        draw = dict(graded=lambda t=t: rng.choice(t.grades), present=lambda t=t: bool(rng.integers(2)), measured=lambda t=t: float(rng.uniform(t.low, t.high)))
        values = [draw[t.kind]() for _ in range(9)]
        f = vote(code, values, rng.uniform(size=9))
        assert 0 <= f.confidence <= 1
        if t.kind == 'measured': assert min(values) - 1 <= f.value <= max(values) + 1 and f.interval[0] <= f.interval[1]

@pytest.mark.parametrize('code', CUTS)
def test_every_cut_is_followed(code):
    t, source = FINDINGS[code], FINDINGS[CUTS[code][0]]
    for value in np.linspace(source.low, source.high, 40):
        wrong = t.grades[-1] if t.kind == 'graded' else True
        assert consistent({code: Finding(code, wrong), source.code: Finding(source.code, float(value))})[code].value == grade(code, value)

def test_real_cine(machine):
    from pydicom.data import get_testdata_file
    from echo_lit.data.study import open_study
    path = get_testdata_file('examples_ybr_color.dcm', download=False)
    if path is None: pytest.skip('pydicom ships no colour cine here')
    r = machine.interpret(open_study(path))
    assert len(r.views) == 1 and not r.failures and html_page(r)
