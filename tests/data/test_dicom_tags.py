"What the tags say of time, space and kind, contradictions included."
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from echo_lit.core import Region
from echo_lit.data.cine import CineError, read_cine, write_dicom
from echo_lit.data.study import open_study, read_header


def frames(n=4, h=60, w=80, seed=0):
    return np.repeat(np.random.default_rng(seed).integers(30, 200, (n, h, w, 1), np.uint8), 3, -1)

def dicom(path, regions=None, n=4, **tags):
    ds = pydicom.dcmread(write_dicom(path, frames(n), 50, quality=None, study_uid='2.25.4', patient_id='P'))
    if regions is not None: ds.SequenceOfUltrasoundRegions = [region(*r) for r in regions]
    for k, v in tags.items():
        if v is None: del ds[k]
        else: setattr(ds, k, v)
    ds.save_as(path)
    return path

def region(x0, y0, x1, y1, form=1, data=1, delta=(.05, .05), units=(3, 3)):
    r = Dataset()
    r.RegionLocationMinX0, r.RegionLocationMinY0, r.RegionLocationMaxX1, r.RegionLocationMaxY1 = x0, y0, x1, y1
    r.RegionSpatialFormat, r.RegionDataType, r.RegionFlags = form, data, 0
    r.PhysicalUnitsXDirection, r.PhysicalUnitsYDirection = units
    r.PhysicalDeltaX, r.PhysicalDeltaY = delta
    return r

TIME, VECTOR = 0x00181063, 0x00181065

@pytest.mark.parametrize('tags,fps,source,notes', [
    (dict(), 50, 'FrameTime', 0), (dict(FrameTimeVector=[0, 40, 40, 40]), 50, 'FrameTime', 1),
    (dict(FrameTimeVector=[0, 40, 40, 40], FrameIncrementPointer=VECTOR), 25, 'FrameTimeVector', 1),
    (dict(FrameTimeVector=[0, 40, 40, 40], FrameIncrementPointer=VECTOR, FrameTime=None), 25, 'FrameTimeVector', 0),
    (dict(FrameTime=None, FrameIncrementPointer=TIME, CineRate='30', RecommendedDisplayFrameRate='25'), 30, 'CineRate', 1),
    (dict(FrameTime=None, FrameIncrementPointer=None, RecommendedDisplayFrameRate='25'), 25, 'RecommendedDisplayFrameRate', 0),
    (dict(FrameTime='0', CineRate='0'), None, 'missing', 0), (dict(CineRate='50'), 50, 'FrameTime', 0),
    (dict(FrameTime='0.0001'), None, 'missing', 0), (dict(FrameTimeVector=[0, 20, 20, 60], FrameTime=None), 30, 'FrameTimeVector', 1)])
def test_frame_rate(tmp_path, tags, fps, source, notes):
    clip = read_cine(dicom(tmp_path/'x.dcm', **tags))
    assert (clip.fps and round(clip.fps), clip.fps_source, len(clip.notes)) == (fps, source, notes)

@pytest.mark.parametrize('box,want', [
    ((0, 0, 79, 59), (0, 0, 80, 60)), ((10, 5, 200, 40), (10, 5, 80, 41)), ((20, 10, 159, 119), (10, 5, 80, 60)), ((90, 5, 99, 40), None),
    ((30, 40, 10, 50), None), ((0, 0, 2**31, 2**31), (0, 0, 79, 79))])
def test_regions_stay_inside(tmp_path, box, want):
    clip = read_cine(dicom(tmp_path/'x.dcm', [box]))
    for r in clip.regions: assert 0 <= r.x0 < r.x1 <= 80 and 0 <= r.y0 < r.y1 <= 60
    if want and max(want) < 79 or box == (0, 0, 79, 59): assert [(r.x0, r.y0, r.x1, r.y1) for r in clip.regions] == [want]
    if want is None: assert not clip.regions and 'outside the frame' in clip.notes[0]

def test_scale_of_each_region(tmp_path):
    boxes = [(0, 0, 39, 39, 1, 1, (.05, .04)), (40, 0, 79, 39, 3, 3, (.01, .5), (4, 7)), (0, 40, 79, 49, 1, 2, (5, 5)), (0, 50, 79, 59, 4, 10)]
    clip = read_cine(dicom(tmp_path/'x.dcm', boxes))
    assert [r.kind for r in clip.regions] == ['bmode', 'spectral', 'colour', 'ecg']
    assert [r.cm_per_px for r in clip.regions[:3]] == [(.05, .04), None, None]
    assert clip.cm_per_px == (.05, .04)

@pytest.mark.parametrize('regions,tags,kind', [
    ([(0, 0, 79, 59)], {}, 'bmode'), ([(0, 0, 79, 59), (20, 20, 40, 40, 1, 2)], {}, 'colour'), ([(0, 0, 79, 29), (0, 30, 79, 59, 3, 4)], {}, 'spectral'),
    ([(0, 0, 79, 29), (0, 30, 79, 59, 2, 1)], {}, 'mmode'), ([(0, 0, 79, 59, 2, 2)], {}, 'mmode'), ([(0, 50, 79, 59, 4, 10)], {}, 'bmode'),
    (None, dict(ImageType=['ORIGINAL', 'PRIMARY', '', '0009']), 'spectral'), (None, dict(ImageType=['ORIGINAL', 'PRIMARY', '', '0011']), 'colour'),
    (None, dict(ImageType=['ORIGINAL', 'PRIMARY', '', 'ffzz']), 'bmode'), (None, dict(SOPClassUID='1.2.840.10008.5.1.4.1.1.7.4'), 'capture'),
    (None, dict(ConversionType='WSD'), 'capture'), (None, dict(PatientName='MMODE^PLA COLOUR'), 'bmode')])
def test_kind(tmp_path, regions, tags, kind): assert read_cine(dicom(tmp_path/'x.dcm', regions, **tags)).kind == kind

def test_one_frame_is_a_still_unless_captured(tmp_path):
    dicom(tmp_path/'still.dcm', [(0, 0, 79, 59, 3, 3)], n=1)
    assert read_cine(tmp_path/'still.dcm').kind == 'still'
    dicom(tmp_path/'page.dcm', n=1, SOPClassUID='1.2.840.10008.5.1.4.1.1.7', SOPInstanceUID='2.25.9', InstanceNumber=7)
    dicom(tmp_path/'cine.dcm')
    assert sorted(s.kind for s in open_study(tmp_path).set_aside) == ['capture', 'still']

def test_headers_without_meta(tmp_path):
    path = dicom(tmp_path/'x.dcm')
    whole = path.read_bytes()
    path.write_bytes(whole[whole.index(b'\x08\0\x08\0CS'):])
    assert (read_cine(path)[:] == frames()).all()
    assert read_header(path).patient == 'P'

def test_written_region_comes_back(tmp_path):
    r = Region(5, 6, 70, 50, 'colour', (.03, .04))
    assert read_cine(write_dicom(tmp_path/'x.dcm', frames(), 40, region=r)).regions == (r,)

def test_video_inside_dicom_says_so(tmp_path):
    ds = pydicom.dcmread(write_dicom(tmp_path/'x.dcm', frames(), 40))
    ds.file_meta.TransferSyntaxUID = '1.2.840.10008.1.2.4.102'
    ds.save_as(tmp_path/'x.dcm')
    with pytest.raises(CineError, match='a video inside DICOM is not read'): read_cine(tmp_path/'x.dcm')
