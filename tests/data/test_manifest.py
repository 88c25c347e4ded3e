"The table of a set: nothing lost, nobody on two sides, no site that gives the answer away unnoticed."
import csv

import numpy as np
import pandas as pd
import pytest

from echo_lit.core import cell_text, safe_cell
from echo_lit.data.cine import write_dicom, write_video
from echo_lit.data.manifest import ManifestError, counts, manifest, read_manifest, scan, write_manifest
from echo_lit.data.processes import in_processes
from echo_lit.data.splits import confounding, implausible, no_overlap, overlap, split_patients


def frames(seed, n=5): return np.random.default_rng(seed).integers(0, 255, (n, 48, 64, 3), np.uint8)

@pytest.fixture
def archive(tmp_path):
    root = tmp_path/'archive'
    for i in range(4):
        (root/f'p{i}').mkdir(parents=True)
        write_dicom(root/f'p{i}'/'a.dcm', frames(i), 20, patient_id=f'P{i//2}', study_uid=f'2.25.{i + 1}')
        write_video(root/f'p{i}'/'b.avi', frames(10 + i), 30)
    (root/'p0'/'copy.avi').write_bytes((root/'p0'/'b.avi').read_bytes())
    (root/'p1'/'cut.dcm').write_bytes((root/'p1'/'a.dcm').read_bytes()[:2000])
    (root/'p1'/'zero.mp4').touch()
    write_dicom(root/'p2'/'still.dcm', frames(30, 1), 20, patient_id='P1', study_uid='2.25.3')
    (root/'p2'/'=cmd.txt').write_text('a note')
    return root

def test_every_file_has_a_row_with_any_number_of_processes(archive, tmp_path):
    one, two = scan(archive), scan(archive, workers=2)
    pd.testing.assert_frame_equal(one, two)
    assert len(one) == sum(p.is_file() for p in archive.rglob('*')) == 13
    assert counts(one) == ('13 listed, 8 usable, 5 excluded: 2 failed (open), 1 duplicate, 1 set aside (other), 1 set aside (still)')
    assert one.patient_id[one.path.str.endswith('a.dcm')].nunique() == 2 and one.study_id.dropna().nunique() == 4
    pd.testing.assert_frame_equal(read_manifest(write_manifest(one, tmp_path/'deep'/'m.parquet')), one)

def test_rows_before_and_after_a_crash_are_kept():
    jobs = [str(i) if i not in (0, 21, 22, 39) else '__import__("os")._exit(1)' for i in range(40)]
    assert in_processes(eval, jobs, 2, batch=8) == [None if i in (0, 21, 22, 39) else i for i in range(40)]

def test_ids_from_paths_and_the_refusal_without_them(archive):
    with pytest.raises(ManifestError, match='4 of 8 usable rows have no patient_id'): split_patients(scan(archive))
    t = split_patients(scan(archive, ids=r'^(?P<patient_id>p\d)/'))
    assert no_overlap(t) is t and t.split[t.excluded].isna().all() and t.split[~t.excluded].notna().all()

@pytest.mark.parametrize('seed', range(3))
def test_shares_are_kept_and_nobody_moves_when_the_archive_grows(seed):
    rows = [dict(clip_id=f'{i:x}', path='x', patient_id=f'p{i//3}') for i in range(9000)]
    parts = {'a': .5, 'b': .3, 'c': .2}
    small, large = (split_patients(manifest(rows[:n], 'lab'), parts, seed) for n in (4000, 9000))
    assert (large.split[:4000] == small.split).all()
    share = large.drop_duplicates('patient_id').split.value_counts(normalize=True)
    assert all(abs(share[k] - v) < .04 for k, v in parts.items())
    assert not len(overlap(large))

def test_other_seeds_and_other_sets_draw_anew():
    rows = [dict(clip_id=f'{i:x}', path='x', patient_id=f'p{i}') for i in range(2000)]
    a, b, c = split_patients(manifest(rows, 'lab')), split_patients(manifest(rows, 'lab'), seed=1), split_patients(manifest(rows, 'clinic'))
    assert .5 < (a.split == b.split).mean() < .8 and .5 < (a.split == c.split).mean() < .8

def test_hashed_patients_meet_across_sets_and_plain_names_do_not():
    rows = [dict(clip_id='a', patient_id='0123456789ab', dataset='x'), dict(clip_id='b', patient_id='0123456789ab', dataset='y'),
            dict(clip_id='c', patient_id='12', dataset='x'), dict(clip_id='d', patient_id='12', dataset='y')]
    assert overlap(manifest(rows), 'dataset').id.tolist() == ['0123456789ab']

def test_every_kind_of_leak_is_found():
    rows = [dict(clip_id=f'c{i}', path='x', patient_id=f'p{i}', study_id=f's{i}', split=s) for i, s in enumerate(['train', 'test']*5)]
    assert not len(overlap(manifest(rows, 'lab')))
    assert overlap(manifest([r | {'study_id': 's'} for r in rows], 'lab')).what.tolist() == ['study']
    t = manifest(rows, 'lab')
    both = pd.concat([t, t.assign(split='val')])
    assert overlap(both).what.value_counts().to_dict() == {'patient': 10, 'study': 10, 'clip': 10}
    assert not len(overlap(both.assign(excluded=both.split == 'val')))

def test_chance_finds_a_confounded_site_one_time_in_twenty():
    r, p = np.random.default_rng(0), []
    for i in range(60):
        rows = [dict(clip_id=f'{j}', patient_id=f'{j//2}', dataset='ab'[j//2 % 2], ef=e) for j, e in enumerate(r.normal(55, 10, 60))]
        p.append(confounding(manifest(rows), 'ef', draws=39, seed=i).p)
    assert np.mean(np.array(p) <= .05) < .15 and .35 < np.mean(p) < .65

def test_controls_from_another_source_are_suspect_however_few():
    rows = [dict(clip_id=f'{i}', patient_id=f'{i}', dataset='PHI' if i < 6 else 'clinic', mitral_regurgitation='none' if i % 2 or i < 6 else 'mild')
        for i in range(40)]
    found = confounding(manifest(rows), 'mitral_regurgitation')
    assert found.suspect and found.table.highest['PHI'] == 0 and '%' in str(found)
    with pytest.raises(ManifestError, match='in one view only'): confounding(manifest(rows).assign(view='A4C'), 'mitral_regurgitation', 'view')
    with pytest.raises(ManifestError, match="no label 'ef'"): confounding(manifest(rows), 'ef')

def test_implausible_labels_are_named():
    t = manifest([dict(clip_id='a', ef=58., lvidd=4.8, lv_thrombus=True), dict(clip_id='b', ef=.58, lvidd=48., lv_thrombus=False), dict(clip_id='c')])
    assert implausible(t)[['clip_id', 'label']].to_numpy().tolist() == [['b', 'ef'], ['b', 'lvidd']]

@pytest.mark.parametrize('rows, words', [
    ([dict(clip_id='a'), dict(clip_id='a')], 'stands in 2 usable rows'), ([dict(path='x')], '1 usable rows have no clip_id'),
    ([dict(clip_id='a', excluded=True)], 'excluded without a reason')])
def test_a_broken_table_is_refused(rows, words):
    with pytest.raises(ManifestError, match=words): manifest(rows)

def test_an_empty_table_is_a_table():
    assert counts(manifest([])) == '0 listed, 0 usable, 0 excluded'

def test_a_csv_is_the_same_table(archive, tmp_path):
    t = scan(archive)
    t['mitral_regurgitation'], t['ef'] = [None, 'none']*6 + [None], [1/3, None]*6 + [None]
    pd.testing.assert_frame_equal(read_manifest(write_manifest(t, tmp_path/'m.csv')), t)
    assert (tmp_path/'m.csv').read_text().startswith('dataset,')
    with pytest.raises(ManifestError, match='nothere: a manifest is'): read_manifest('nothere')

def test_no_name_of_a_file_is_a_formula_and_every_name_comes_back(tmp_path):
    root = tmp_path/'archive'
    root.mkdir()
    for name in ('=1+1.avi', "'=1.avi", '-x.avi', '+x.avi', '@x.avi', '|x.avi', ' =x.avi', '\tx.avi', '=a\n=b.avi', 'ok.avi'):
        write_video(root/name.strip(' \t\n').replace('=a', 'a').replace('\n', ''), frames(len(name)), 20).rename(root/name)
    (root/'=cut.dcm').write_bytes(b'\0'*128 + b'DICM')
    t = scan(root, '=lab').assign(**{'=label': '-', '-1': -1.5})
    pd.testing.assert_frame_equal(read_manifest(write_manifest(t, tmp_path/'m.csv')), t)
    with open(tmp_path/'m.csv', newline='', encoding='utf-8') as f: cells = [c for row in csv.reader(f) for c in row]
    assert len(cells) == 12*len(t.columns) and not [c for c in cells if c.lstrip(' ')[:1] in tuple('=+-@|\t') and c != '-1.5']
    r = np.random.default_rng(0)
    for _ in range(300):
        x = ''.join(r.choice(list("'=+-@| \t\na1"), r.integers(0, 7)))
        assert cell_text(safe_cell(x)) == x and safe_cell(x).lstrip()[:1] not in tuple('=+-@|')

def test_what_was_not_compared_has_not_passed():
    rows = [dict(clip_id='a', path='x', split='train'), dict(clip_id='b', path='x', patient_id='p', split='test'), dict(clip_id='c', path='x')]
    with pytest.raises(ManifestError, match='1 of 2 usable rows have no patient_id'): no_overlap(manifest(rows))
    with pytest.raises(ManifestError, match='none of 1 usable rows is in a split'): no_overlap(manifest(rows[2:]))
    assert len(no_overlap(manifest(rows), 'each clip')) == 3
