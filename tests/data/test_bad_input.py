"Folders as they come: every file gets its row or its one-line error, and nothing else is lost."
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import examples
from pydicom.uid import ExplicitVRLittleEndian

from echo_lit.core import EchoError
from echo_lit.data.cine import CineError, file_kind, read_cine, write_dicom, write_video
from echo_lit.data.sector import find_sector, sector_mask
from echo_lit.data.study import StudyError, open_study


def cine(n=6, h=96, w=128, seed=0):
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:h, :w]
    fan = (np.hypot(x - w/2, y) < .9*h) & (np.abs(x - w/2) < .8*y + 4)
    return np.repeat((rng.integers(20, 200, (n, h, w))*fan).astype(np.uint8)[..., None], 3, -1)

def grey(path, **tags):
    ds = pydicom.dcmread(write_dicom(path, cine(), 20, quality=None, study_uid='2.25.1', patient_id='P', instance_number=5))
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, 'MONOCHROME2'
    del ds.PlanarConfiguration
    ds.PixelData = cine()[..., 0].tobytes()
    for k, v in tags.items(): setattr(ds, k, v)
    ds.save_as(path)
    return path

@pytest.fixture
def folder(tmp_path):
    root = tmp_path/'study'
    deep = root/'a'/'b'
    deep.mkdir(parents=True)
    one = dict(study_uid='2.25.1', patient_id='P')
    write_dicom(root/'good.dcm', cine(seed=1), 20, **one)
    write_dicom(deep/'IM_0001', cine(seed=2), 20, instance_number=2, **one)
    write_dicom(root/'oneframe.dcm', cine(1, seed=3), 20, instance_number=3, **one)
    grey(root/'grey.dcm')
    for source, name in (('good.dcm', 'cut.dcm'), ('grey.dcm', 'cutgrey.dcm')):
        whole = (root/source).read_bytes()
        (root/name).write_bytes(whole[:int(.7*len(whole))])
    shutil.copy(root/'good.dcm', deep/'copy.dcm')
    (root/'text.dcm').write_text('not a cine\n'*30)
    (root/'empty.mp4').touch()
    (root/'truth.json').write_text('{}')
    (root/'loop').symlink_to(root)
    (root/'dangling.dcm').symlink_to(root/'nowhere')
    return root

def test_every_file_has_its_row(folder):
    study = open_study(folder)
    assert len(study) == 3 and all(c.fps == pytest.approx(20) for c in study)
    assert {f.clip for f in study.failures} == {'cut.dcm', 'cutgrey.dcm', 'text.dcm', 'empty.mp4', 'dangling.dcm'}
    assert sorted(s.kind for s in study.set_aside) == ['duplicate', 'other', 'still']
    assert len(study.table()) == 11 and all('\n' not in f.reason for f in study.failures)

def test_grey_is_three_equal_channels(folder):
    x = read_cine(folder/'grey.dcm')[[4, 0]]
    assert (x == cine()[[4, 0]]).all()

@pytest.mark.parametrize('name', ['cut.dcm', 'cutgrey.dcm', 'text.dcm', 'empty.mp4', 'dangling.dcm', 'truth.json'])
def test_one_line_errors(folder, name):
    with pytest.raises(CineError) as e: read_cine(folder/name)
    assert '\n' not in str(e.value) and name in str(e.value)

def test_files_that_may_not_be_opened(folder, monkeypatch):
    def denied(path, *mode): raise PermissionError(13, 'Permission denied', str(path))
    with monkeypatch.context() as m:
        m.setattr('echo_lit.data.cine.open', denied, raising=False)
        with pytest.raises(CineError, match=r'^good.dcm: cannot be opened \(Permission denied\)$'): read_cine(folder/'good.dcm')
    with pytest.raises(CineError, match='^a: a folder; open_study reads all of its files$'): read_cine(folder/'a')
    with pytest.raises(CineError, match='^dangling.dcm: no such file$'): read_cine(folder/'dangling.dcm')
    with pytest.raises(CineError): read_cine(folder/('x'*5000))

def test_files_that_vanish(folder, monkeypatch):
    kind = file_kind(folder/'good.dcm')
    def gone(path):
        path.unlink()
        return kind
    clip = read_cine(folder/'a'/'b'/'IM_0001')
    (folder/'a'/'b'/'IM_0001').unlink()
    with pytest.raises(CineError, match=r'^IM_0001: cannot be opened \(No such file or directory\)$'): clip[0]
    monkeypatch.setattr('echo_lit.data.cine.file_kind', gone)
    with pytest.raises(CineError, match=r'^good.dcm: cannot be opened \(No such file or directory\)$'): read_cine(folder/'good.dcm')

def test_empty_folder(tmp_path):
    with pytest.raises(StudyError, match='no files here'): open_study(tmp_path)

def test_only_bad_files(folder, tmp_path):
    bad = tmp_path/'bad'
    bad.mkdir()
    shutil.copy(folder/'cut.dcm', bad)
    with pytest.raises(StudyError, match='1 failed; first reason: cut.dcm'): open_study(bad)

def test_two_studies_are_a_choice(folder):
    write_dicom(folder/'second.dcm', cine(seed=9), 20, study_uid='2.25.2', patient_id='P')
    with pytest.raises(StudyError, match='2 studies in one place') as e: open_study(folder)
    assert '2.25' not in str(e.value)
    short = str(e.value).split('on the command line): ')[1].split()[0]
    assert len(open_study(folder, study=short)) in (1, 3)
    assert len(open_study(folder, study='2.25.2')) == 1

def test_cut_videos(tmp_path):
    for name in ('v.mp4', 'v.avi'):
        p = write_video(tmp_path/name, cine(20), 25)
        whole = p.read_bytes()
        for share in (.02, .3, .6):
            p.write_bytes(whole[:int(share*len(whole))])
            try: read_cine(p)[:]
            except EchoError as e: assert '\n' not in str(e)

@pytest.mark.parametrize('seed', range(60))
def test_damaged_bytes_raise_only_our_errors(tmp_path, seed):
    p = write_dicom(tmp_path/'x.dcm', cine(4, 48, 64), 20, quality=None if seed % 2 else 90)
    data, rng = bytearray(p.read_bytes()), np.random.default_rng(seed)
    at = rng.integers(132, min(len(data), 2500 if seed % 3 else len(data)), 6)
    for i in at: data[i] = rng.integers(256)
    p.write_bytes(bytes(data))
    try: read_cine(p)[[0, -1]]
    except EchoError as e: assert '\n' not in str(e)

@pytest.mark.parametrize('tags', [dict(NumberOfFrames=10**9), dict(Rows=65535, Columns=65535)])
def test_hostile_sizes(tmp_path, tags):
    with pytest.raises(CineError): read_cine(grey(tmp_path/'x.dcm', **tags))

def stored(photometric):
    red, blue = [200, 30, 20], [10, 60, 220]
    rgb = np.array([[red, red, blue, blue], [[90]*3, [90]*3, [0]*3, [255]*3]], np.uint8)[None].repeat(2, 0)
    r, g, b = rgb.astype(float).transpose(3, 0, 1, 2)
    ybr = np.stack([.299*r + .587*g + .114*b, 128 - .168736*r - .331264*g + .5*b, 128 + .5*r - .418688*g - .081312*b], -1)
    ybr = ybr.round().clip(0, 255).astype(np.uint8)
    if photometric == 'RGB': return rgb, rgb.tobytes()
    if photometric == 'YBR_FULL': return rgb, ybr.tobytes()
    q = ybr.reshape(2, 2, 2, 2, 3)
    return rgb, np.concatenate([q[..., 0], q[..., :1, 1], q[..., :1, 2]], -1).tobytes()

@pytest.mark.parametrize('planar', [0, 1])
@pytest.mark.parametrize('photometric', ['RGB', 'YBR_FULL', 'YBR_FULL_422'])
def test_colours_of_uncompressed_files(tmp_path, photometric, planar):
    rgb, raw = stored(photometric)
    if planar:
        if photometric == 'YBR_FULL_422': pytest.skip('has no planar form')
        raw = np.frombuffer(raw, np.uint8).reshape(2, 2, 4, 3).transpose(0, 3, 1, 2).tobytes()
    ds = pydicom.dcmread(write_dicom(tmp_path/'x.dcm', rgb, 20, quality=None))
    ds.PhotometricInterpretation, ds.PixelData, ds.PlanarConfiguration = photometric, raw, planar
    ds.save_as(tmp_path/'x.dcm')
    clip = read_cine(tmp_path/'x.dcm')
    assert np.abs(clip[:].astype(int) - rgb).max() <= 2
    assert clip.colour_source == f'tag {photometric}' and ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian

@pytest.mark.parametrize('name', ['rgb_color', 'palette_color', 'jpeg2k', 'ybr_color'])
def test_colours_agree_with_pydicom(name):
    path = Path(examples.get_path(name))
    ds, ours = pydicom.dcmread(path), read_cine(path)[0][0]
    theirs = pydicom.pixels.pixel_array(path, index=0)
    if name == 'palette_color': theirs = (pydicom.pixels.apply_color_lut(theirs, ds) >> 8).astype(np.uint8)
    assert ours.shape[:2] == (ds.Rows, ds.Columns) and np.abs(ours.astype(int) - theirs).max() <= 3

def test_sector_is_never_empty():
    for x in (cine(), cine(1), cine(2, 40, 40), np.zeros((3, 50, 60, 3), np.uint8), np.full((2, 7, 9, 3), 255, np.uint8)):
        assert sector_mask(x).any()
    found, truth = find_sector(cine(16, 240, 320)), cine(16, 240, 320).max((0, 3)) > 0
    assert found.source == 'motion' and (found.mask & truth).sum()/(found.mask | truth).sum() > .93
