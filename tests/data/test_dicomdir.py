"A DICOM file set, as a CD or an export folder holds it, is read by its DICOMDIR."
import numpy as np
import pydicom
import pytest
from pydicom.fileset import FileSet

from echo_lit.core import EchoError
from echo_lit.data.cine import write_dicom
from echo_lit.data.study import open_study, study_files

rng = np.random.default_rng(0)
pytestmark = pytest.mark.filterwarnings('ignore:Invalid value for VR')


@pytest.fixture
def medium(tmp_path):
    "A well-formed file set of two cines of one study, written by pydicom."
    made = FileSet()
    for i in (1, 2):
        frames = np.repeat(rng.integers(0, 255, (4, 48, 64, 1), dtype=np.uint8), 3, -1)
        path = write_dicom(tmp_path/f'{i}.dcm', frames, 25, patient_id='P7', study_uid='2.25.7', series_uid='2.25.71', instance_number=i)
        ds = pydicom.dcmread(path)
        ds.StudyDate, ds.StudyTime, ds.StudyID = '20240131', '101500', '7'
        made.add(ds)
    made.write(tmp_path/'medium')
    return tmp_path/'medium'


def renamed(medium, change):
    "The DICOMDIR with the file name of its last record changed."
    ds = pydicom.dcmread(medium/'DICOMDIR')
    record = ds.DirectoryRecordSequence[-1]
    record.ReferencedFileID = change(list(record.ReferencedFileID))
    ds.save_as(medium/'DICOMDIR')
    return medium/'DICOMDIR'


def test_a_file_set_is_a_study(medium):
    listed = list(study_files(medium/'DICOMDIR'))
    assert len(listed) == 2 and all(f.is_file() and not f.suffix for f in listed)
    study = open_study(medium/'DICOMDIR')
    assert [len(c) for c in study] == [4, 4] and not study.failures and not study.set_aside
    assert study.id == open_study(medium).id


def test_only_what_is_listed_belongs_to_it(medium):
    (medium/'LOOSE').write_bytes(next(f for f in study_files(medium/'DICOMDIR')).read_bytes()[:-2000])
    assert len(open_study(medium/'DICOMDIR').failures) == 0
    assert len(open_study(medium).failures) == 1


def test_a_listed_file_that_is_missing_is_a_failure(medium):
    list(study_files(medium/'DICOMDIR'))[-1].unlink()
    study = open_study(medium/'DICOMDIR')
    assert len(study) == 1
    assert [f.reason for f in study.failures] == ['no such file']


@pytest.mark.parametrize('name', [['..', 'secret'], ['..', '..', 'etc', 'passwd'], ['/etc', 'passwd']])
def test_names_outside_the_folder_are_refused(medium, name):
    (medium.parent/'secret').write_text('not for you')
    with pytest.raises(EchoError, match='outside'): list(study_files(renamed(medium, lambda _: name)))


def test_a_link_that_leaves_the_folder_is_refused(medium):
    (medium.parent/'secret').write_text('not for you')
    (medium/'LINK').symlink_to(medium.parent/'secret')
    with pytest.raises(EchoError, match='outside'): list(study_files(renamed(medium, lambda _: ['LINK'])))


def test_a_name_of_one_part(medium):
    renamed(medium, lambda parts: medium.joinpath(*parts).rename(medium/'IM0').name)
    assert [len(c) for c in open_study(medium/'DICOMDIR')] == [4, 4]


def test_wherever_a_directory_is_cut_off_nothing_is_lost_silently(medium):
    whole = (medium/'DICOMDIR').read_bytes()
    for keep in range(0, len(whole), 31):
        (medium/'DICOMDIR').write_bytes(whole[:keep])
        try: assert len(list(study_files(medium/'DICOMDIR'))) == 2, keep
        except EchoError as e: assert '\n' not in str(e) and str(e).startswith('DICOMDIR: ')
