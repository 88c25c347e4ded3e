"`echo_lit evaluate` of a table of clips with known answers."
import json
import pandas as pd, pytest
from echo_lit.cli import run
from echo_lit.data.manifest import manifest, write_manifest

@pytest.fixture
def table(clips):
    rows = [dict(clip_id=f'{i}{j}'*6, patient_id=f'p{i}', study_id=f's{i}', path=f's{i}/{name}.avi', kind='bmode', view=view, ef=40. + 20*i)
            for i in range(2) for j, (name, view) in enumerate((('a4c', 'A4C'), ('plax', 'Parasternal_Long')))]
    return manifest(rows, 'mine')

def evaluate(model, path, out, *words):
    return run(['evaluate', str(path), '--model', str(model), '--out', str(out), *words])

def test_a_table_of_clips(model, clips, table, tmp_path):
    path = write_manifest(table, clips/'known.csv')
    assert evaluate(model, path, tmp_path/'out') == 0
    metrics, answers = json.loads((tmp_path/'out'/'metrics.json').read_text()), pd.read_csv(tmp_path/'out'/'clips.csv')
    assert (metrics['patients'], metrics['views']['clips'], metrics['views']['failures']) == (2, 4, 0)
    right = (answers.true == answers.said).mean()
    assert metrics['views']['accuracy']['value'] == pytest.approx(right, abs=1e-4)
    found = pd.read_csv(tmp_path/'out'/'findings.csv')
    error = (found.said.fillna(metrics['ef']['constant']) - found.true).abs().mean()
    assert found.true.tolist() == [40, 60] and metrics['ef']['mae']['value'] == pytest.approx(error, abs=.01)

def test_a_lost_clip_is_a_wrong_answer_and_code_3(model, clips, table, tmp_path):
    more = dict(clip_id='f'*12, patient_id='p1', study_id='s1', path='s1/gone.avi', kind='bmode', view='A4C', ef=60.)
    path = write_manifest(manifest([*table.to_dict('records'), more], 'mine'), clips/'lost.csv')
    assert evaluate(model, path, tmp_path/'out') == 3
    metrics, answers = json.loads((tmp_path/'out'/'metrics.json').read_text()), pd.read_csv(tmp_path/'out'/'clips.csv')
    assert (metrics['views']['clips'], metrics['views']['failures'], len(answers)) == (5, 1, 5)
    assert answers.reason.notna().sum() == 1

@pytest.mark.parametrize('change, words', [
    (dict(patient_id=None, study_id=None), 'no patient_id'), (dict(view=None, ef=None), 'nothing to measure'), (dict(patient_id='one'), 'two patients'),
    (dict(view='4CH'), 'none of ours'), (dict(ef=.55), 'ef cannot be')])
def test_what_cannot_be_measured_is_one_line(model, clips, table, tmp_path, change, words, capfd):
    path = write_manifest(manifest(table.assign(**change).dropna(axis=1, how='all').to_dict('records'), 'mine'), clips/'odd.parquet')
    assert evaluate(model, path, tmp_path/'out') == 2
    err = capfd.readouterr().err
    assert words in err and 'Traceback' not in err and not (tmp_path/'out').exists()

@pytest.mark.slow
def test_steps_and_prompts_come_from_the_reading_of_the_bundle(tmp_path, capsys):
    few = 'evaluate phantom-tiny --studies 2 --workers 0 --no-control --steps --zeroshot --out'
    assert run([*few.split(), str(tmp_path)]) == 0
    metrics, steps = json.loads((tmp_path/'metrics.json').read_text()), pd.read_csv(tmp_path/'steps.csv').set_index('step')
    assert steps.loc['with the heads', 'value'] == pytest.approx(metrics['overlay_on']['ef']['mae']['value'], abs=1e-3)
    assert list(steps.index) == ['one frame', 'one clip', 'all clips alike', 'all clips, by view', 'with the heads']
    assert len(pd.read_csv(tmp_path/'zeroshot.csv')) == 0 and 'zeroshot.csv' in capsys.readouterr().out
    assert run(few.split()[:-1]) == 2 and 'need --out' in capsys.readouterr().err
