"Vendor echo reports: each rule, each unit, odd trees, hostile files, and a writer that is not ours."
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from echo_lit.core import EchoError
from echo_lit.data.codes import _UNITS, RULES, in_unit
from echo_lit.data.structured_report import _FORWARD, read_reports, read_structured_report, report_labels, sr_numbers, unread_codes
from echo_lit.vocabulary import FINDINGS

UCUM = {'cm': 'cm', 'cm²': 'cm2', 'mL': 'ml', 'm/s': 'm/s', 'cm/s': 'cm/s', 'ms': 'ms', 'mmHg': 'mm[Hg]', '%': '%', '': '1',
        'mL/m²': 'ml/m2', 'g/m²': 'g/m2'}

def code(value, scheme, meaning='x'):
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator, ds.CodeMeaning = value, scheme, meaning
    return ds

def item(kind, concept, *children, relation='CONTAINS', **value):
    ds = Dataset()
    ds.ConceptNameCodeSequence, ds.ValueType, ds.RelationshipType = [code(*concept)], kind, relation
    for k, v in value.items(): setattr(ds, k, v)
    if children: ds.ContentSequence = list(children)
    return ds

def modifier(concept, value): return item('CODE', (concept, 'SCT'), relation='HAS CONCEPT MOD', ConceptCodeSequence=[code(value, 'SCT')])

def number(concept, value, unit, *children, **kw):
    measured = Dataset()
    measured.NumericValue, measured.MeasurementUnitsCodeSequence = f'{value:.8g}', [code(unit, 'UCUM')]
    return item('NUM', concept, *children, MeasuredValueSequence=[measured], **kw)

def write(path, *children, syntax=ExplicitVRLittleEndian, **tags):
    ds = item('CONTAINER', ('125200', 'DCM', 'Adult Echocardiography Procedure Report'), *children)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID, ds.SOPClassUID, ds.SOPInstanceUID = syntax, '1.2.840.10008.5.1.4.1.1.88.33', generate_uid()
    ds.StudyInstanceUID, ds.PatientID, ds.Modality = '2.25.1', 'P', 'SR'
    for k, v in tags.items(): setattr(ds, k, v)
    ds.save_as(path, enforce_file_format=True)
    return path

def plausible(t): return t.low + .4*(t.high - t.low)

@pytest.mark.parametrize('key', sorted(RULES), ids='-'.join)
def test_each_code_in_each_unit_is_its_finding(tmp_path, key):
    for i, rule in enumerate(RULES[key]):
        t = FINDINGS[rule.finding]
        mods = [modifier('363698007', rule.site)] if rule.site else []
        mods += [modifier('260674002', '397417004')] if rule.flow == 'backward' else []
        for unit, factor in _UNITS[t.unit].items():
            stored = plausible(t)/factor
            r = read_structured_report(write(tmp_path/f'{i}.dcm', number(key, stored, unit, *mods)))
            assert {f.code: f.value for f in r.findings} == {rule.finding: pytest.approx(plausible(t), rel=1e-5)}, unit

def test_units_that_do_not_fit_are_listed(tmp_path):
    r = read_structured_report(write(tmp_path/'a.dcm', number(('18026-5', 'LN'), 60, 'ml/m2'), number(('29436-3', 'LN'), 4.7, 'furlong')))
    assert not r.findings and len(r.unused) == 2 and r.unused.note.str.contains('does not fit').all()

def test_the_nearest_place_counts(tmp_path):
    peak, aortic, pulmonic = ('11726-7', 'LN'), '34202007', '39057004'
    inner = item('CONTAINER', ('125007', 'DCM'), number(peak, 3, 'm/s', modifier('363698007', pulmonic)), number(peak, 2, 'm/s'))
    r = read_structured_report(write(tmp_path/'a.dcm', item('CONTAINER', ('121070', 'DCM'), modifier('363698007', aortic), inner)))
    assert {f.code: f.value for f in r.findings} == {'pulmonic_peak_velocity': 3, 'av_peak_velocity': 2}

def test_a_place_does_not_leak_into_the_next_section(tmp_path):
    peak = ('11726-7', 'LN')
    first = item('CONTAINER', ('121070', 'DCM'), modifier('363698007', '34202007'), number(peak, 2, 'm/s'))
    r = read_structured_report(write(tmp_path/'a.dcm', first, number(peak, 3, 'm/s')))
    assert [f.value for f in r.findings] == [2] and r.unused.note.tolist() == ['no finding for this place and flow']

def test_numbers_below_numbers_are_not_measurements(tmp_path):
    normal = number(('29436-3', 'LN'), 9, 'cm', relation='INFERRED FROM')
    r = read_structured_report(write(tmp_path/'a.dcm', number(('29436-3', 'LN'), 5, 'cm', normal)))
    assert len(r.measurements) == 1 and r.findings[0].value == 5

def test_chosen_before_mean_before_median(tmp_path):
    mean = item('CODE', ('121401', 'DCM'), relation='HAS CONCEPT MOD', ConceptCodeSequence=[code('373098007', 'SCT', 'Mean')])
    chosen = item('CODE', ('121404', 'DCM'), relation='HAS PROPERTIES', ConceptCodeSequence=[code('121410', 'DCM', 'User chosen value')])
    lvidd = ('29436-3', 'LN')
    beats = [number(lvidd, x, 'cm') for x in (4, 5, 6.5)]
    for extra, want in (([], 5), ([number(lvidd, 5.2, 'cm', mean)], 5.2),
                        ([number(lvidd, 5.2, 'cm', mean), number(lvidd, 6.4, 'cm', chosen)], 6.4)):
        assert read_structured_report(write(tmp_path/'a.dcm', *beats, *extra)).findings[0].value == want

def test_a_number_without_a_value(tmp_path):
    empty = item('NUM', ('29436-3', 'LN'))
    blank = number(('29438-9', 'LN'), 3, 'cm')
    blank.MeasuredValueSequence = []
    r = read_structured_report(write(tmp_path/'a.dcm', empty, blank))
    assert r.unused.note.tolist() == ['no value']*2

def test_implicit_vr_and_private_tags(tmp_path):
    path = write(tmp_path/'a.dcm', number(('29436-3', 'LN'), 47, 'mm'), syntax=ImplicitVRLittleEndian)
    ds = pydicom.dcmread(path)
    ds.private_block(0x0011, 'ACME', create=True).add_new(1, 'LO', 'secret')
    ds.save_as(path, enforce_file_format=True)
    assert read_structured_report(path).findings[0].value == pytest.approx(4.7)

def test_control_characters_do_not_pass(tmp_path):
    r = read_structured_report(write(tmp_path/'a.dcm', number(('X\x1b[31m', '99A', 'evil\x1b[2J\nname'), 1, 'cm')))
    assert '\x1b' not in r.measurements.name[0] and '\n' not in r.measurements.name[0]

def test_deep_and_wide_trees_end(tmp_path):
    deep = number(('29436-3', 'LN'), 5, 'cm')
    for _ in range(100): deep = item('CONTAINER', ('121070', 'DCM'), deep)
    assert read_structured_report(write(tmp_path/'deep.dcm', deep)).findings[0].value == 5
    wide = item('CONTAINER', ('121070', 'DCM'), *[item('CONTAINER', ('121070', 'DCM')) for _ in range(300)])
    with pytest.raises(EchoError, match='more than 200 items'): sr_numbers(wide, limit=200)

def test_damaged_reports_are_one_line(tmp_path):
    whole = write(tmp_path/'whole.dcm', *[number(('29436-3', 'LN'), 5, 'cm') for _ in range(20)]).read_bytes()
    rng = np.random.default_rng(0)
    for i in range(60):
        data = bytearray(whole[:rng.integers(140, len(whole))] if i % 2 else whole)
        for _ in range(8): data[rng.integers(132, len(data))] = rng.integers(256)
        (tmp_path/'hurt.dcm').write_bytes(data)
        try: read_structured_report(tmp_path/'hurt.dcm')
        except EchoError as e: assert '\n' not in str(e) and str(e).startswith('hurt.dcm')

def test_a_folder_becomes_a_table(tmp_path):
    for k in range(3): write(tmp_path/f'{k}.dcm', number(('29436-3', 'LN'), 4 + k, 'cm'), StudyInstanceUID=f'2.25.{k//2}', ContentDate=f'2024010{k + 1}')
    (tmp_path/'notes.txt').write_text('not DICOM')
    reports = read_reports(tmp_path)
    table = report_labels(reports)
    assert len(reports) == 3 and table.lvidd.tolist() == [5, 6] and table.reports.tolist() == [2, 1]
    assert report_labels([]).columns.tolist() == ['patient_id', 'study_id', 'reports', 'verified'] and unread_codes([]).empty

def test_reports_of_another_writer(tmp_path):
    hd = pytest.importorskip('highdicom.sr')
    from highdicom.sr.value_types import CodeContentItem, ContainerContentItem, NumContentItem
    from pydicom.sr.codedict import codes
    C = hd.CodedConcept
    def num(value, scheme, meaning, x, unit):
        return NumContentItem(C(value, scheme, meaning), x, C(unit, 'UCUM', unit), relationship_type=hd.RelationshipTypeValues.CONTAINS)
    site = CodeContentItem(codes.SCT.FindingSite, C('34202007', 'SCT', 'Aortic valve'), hd.RelationshipTypeValues.HAS_CONCEPT_MOD)
    section = ContainerContentItem(codes.DCM.Findings, relationship_type=hd.RelationshipTypeValues.CONTAINS)
    section.ContentSequence = hd.ContentSequence([site, num('11726-7', 'LN', 'Peak Systolic Velocity', 412, 'cm/s')])
    ef = num('79991-6', 'LN', 'Left ventricular ejection fraction biplane (MOD)', 57.2, '%')
    root = ContainerContentItem(C('125200', 'DCM', 'Adult Echocardiography Procedure Report'), template_id='5200')
    root.ContentSequence = hd.ContentSequence([section, ef])
    ds = Dataset()
    ds.update(root)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID, ds.SOPClassUID, ds.SOPInstanceUID = ExplicitVRLittleEndian, '1.2.840.10008.5.1.4.1.1.88.72', generate_uid()
    ds.save_as(tmp_path/'a.dcm', enforce_file_format=True)
    assert {f.code: f.value for f in read_structured_report(tmp_path/'a.dcm').findings} == {'ef': 57.2, 'av_peak_velocity': pytest.approx(4.12)}

def test_conversion_tables_cover_the_vocabulary():
    for t in FINDINGS.values():
        if t.kind == 'measured': assert in_unit(1., UCUM[t.unit], t.unit) == 1, t.code
    assert '' in _FORWARD
