"NIfTI cines and masks: kinds of pixels, odd axes, damaged files, and the CAMUS text files."
import gzip

import nibabel
import numpy as np
import pytest

from echo_lit.core import EchoError
from echo_lit.data.camus import read_info
from echo_lit.data.cine import file_kind, read_cine
from echo_lit.data.manifest import scan
from echo_lit.data.nifti import read_labels, read_nifti, read_volume, write_nifti
from echo_lit.data.study import open_study


def stored(path, x, **header):
    img = nibabel.Nifti1Image(x, np.diag([.3, .5, 1, 1]))
    img.header.set_xyzt_units('mm')
    for k, v in header.items(): img.header[k] = v
    nibabel.save(img, path)
    return path

def ramp(dtype, scale=1): return (np.arange(5*4*3).reshape(5, 4, 3)*scale).astype(dtype)

@pytest.mark.parametrize('name', ['a.nii', 'a.nii.gz'])
@pytest.mark.parametrize('dtype,scale,note', [('uint8', 4, False), ('int16', 4, False), ('uint16', 1000, True), ('int16', -100, True),
                                              ('float32', 1/60, True), ('float64', 4, False)])
def test_pixels(tmp_path, name, dtype, scale, note):
    x = ramp(dtype, scale)
    clip = read_nifti(stored(tmp_path/name, x))
    assert (len(clip), clip.height, clip.width, bool(clip.notes)) == (3, 4, 5, note)
    got = clip[:][..., 0].transpose(2, 1, 0).astype(float)
    low, high = (0, 255) if not note else (0, 1) if dtype == 'float32' else (x.min(), x.max())
    assert np.abs(got - (x.astype(float) - low)*255/(high - low)).max() <= .51
    assert (clip[[2, 0, 2]] == clip[:][[2, 0, 2]]).all() and clip.cm_per_px == pytest.approx((.03, .05))

@pytest.mark.parametrize('shape,frames', [((5, 4), 1), ((5, 4, 1), 1), ((5, 4, 1, 3), 3), ((5, 4, 3, 1), 3), ((5, 4, 1, 1, 3), 3)])
def test_axes(tmp_path, shape, frames):
    x = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    clip = read_nifti(stored(tmp_path/'a.nii.gz', x))
    assert len(clip) == frames and clip.kind == ('still' if frames == 1 else 'bmode')
    assert (clip[:][..., 0].transpose(2, 1, 0) == x.reshape(5, 4, frames)).all()

@pytest.mark.parametrize('shape', [(5, 4, 3, 2), (5,), (5, 4, 2, 3)])
def test_volumes_in_time_are_no_cine(tmp_path, shape):
    with pytest.raises(EchoError, match='not a cine'): read_nifti(stored(tmp_path/'a.nii', np.zeros(shape, np.uint8)))

def test_colour_is_refused(tmp_path):
    rgb = np.zeros((5, 4, 3), np.dtype([(c, 'u1') for c in 'RGB']))
    with pytest.raises(EchoError, match='are not an echo'): read_nifti(stored(tmp_path/'a.nii', rgb))

def test_no_numbers_are_refused(tmp_path):
    x = ramp('float32')
    x[0, 0, 0] = np.inf
    with pytest.raises(EchoError, match='no numbers'): read_nifti(stored(tmp_path/'a.nii', x))

def test_slope_is_used(tmp_path):
    img = nibabel.Nifti1Image(ramp('uint8'), np.eye(4))
    img.header.set_slope_inter(2, 10)
    nibabel.save(img, tmp_path/'a.nii')
    assert read_nifti(tmp_path/'a.nii')[0].max() == int(np.asarray(nibabel.load(tmp_path/'a.nii').dataobj)[..., 0].max())

def test_a_pixel_of_one_millimetre_is_no_scale(tmp_path):
    nibabel.save(nibabel.Nifti1Image(ramp('uint8'), np.eye(4)), tmp_path/'a.nii')
    assert read_nifti(tmp_path/'a.nii').cm_per_px is None

def test_damaged_files_are_one_line(tmp_path):
    whole = write_nifti(tmp_path/'whole.nii', np.zeros((6, 20, 30), np.uint8)).read_bytes()
    rng = np.random.default_rng(0)
    for i in range(200):
        data = bytearray(whole[:rng.integers(0, len(whole))] if i % 2 else whole)
        for _ in range(4):
            if data: data[rng.integers(0, min(len(data), 352))] = rng.integers(256)
        name = f'hurt.nii{".gz" if i % 3 else ""}'
        (tmp_path/name).write_bytes(gzip.compress(data) if i % 3 else data)
        try: clip = read_nifti(tmp_path/name)
        except EchoError as e: assert '\n' not in str(e) and str(e).startswith(name)
        else: assert clip[:1].shape == (1, clip.height, clip.width, 3)

def test_masks_keep_their_numbers(tmp_path):
    x = np.random.default_rng(0).integers(0, 4, (3, 20, 30), dtype=np.uint8)
    assert (read_labels(write_nifti(tmp_path/'gt.nii.gz', x), x.shape) == x).all()
    with pytest.raises(EchoError, match='masks of'): read_labels(tmp_path/'gt.nii.gz', (3, 30, 20))

@pytest.mark.parametrize('text,want', [('', {}), ('ED: x\nES: -\n', {}), ('garbage\0\n::\n', {}), ('ES: 3', dict(es_frame=2)),
                                       ('EF:54\nFrameRate:  50.5 \n', dict(ef=54, fps=50.5)), ('LVef: 54.5', dict(ef=54.5))])
def test_text_files(tmp_path, text, want):
    (tmp_path/'Info_2CH.cfg').write_text(text)
    assert read_info(tmp_path/'Info_2CH.cfg') == want

def noise(n=4, h=20, w=30): return np.random.default_rng(1).integers(0, 255, (n, h, w), dtype=np.uint8)

@pytest.mark.parametrize('suffix', ['.nii', '.nii.gz'])
def test_known_by_content(tmp_path, suffix):
    x = noise()
    path = write_nifti(tmp_path/f'a{suffix}', x, (.03, .05)).rename(tmp_path/'IM_7')
    clip = read_cine(path)
    assert file_kind(path) == 'nifti' and (clip[[3, 1]][..., 0] == x[[3, 1]]).all() and clip.cm_per_px == pytest.approx((.03, .05))

@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('kind', [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_versions_and_byte_orders(tmp_path, kind, order):
    x = ramp('uint16')
    img = kind(x.astype(f'{order}u2'), np.eye(4), kind.header_class(endianness=order))
    nibabel.save(img, tmp_path/'a.nii')
    assert (read_cine(tmp_path/'a.nii')[:][..., 0].transpose(2, 1, 0) == x).all()

@pytest.mark.parametrize('unit,step,fps', [('sec', .02, 50), ('msec', 20, 50), ('usec', 20_000, 50), ('sec', 1, None), (None, 20, None)])
def test_frame_rate(tmp_path, unit, step, fps):
    img = nibabel.Nifti1Image(np.zeros((5, 4, 1, 3), np.uint8), np.eye(4))
    img.header.set_xyzt_units('mm', unit)
    img.header['pixdim'][4] = step
    nibabel.save(img, tmp_path/'a.nii')
    clip = read_nifti(tmp_path/'a.nii')
    assert clip.fps == (fps and pytest.approx(fps)) and clip.fps_source == ('pixdim' if fps else 'missing')

def test_only_the_asked_frames_are_read(tmp_path):
    x = noise(64, 100, 100)
    path = write_nifti(tmp_path/'a.nii', x)
    clip, v = read_cine(path), read_volume(path)
    with open(path, 'r+b') as f:
        f.seek(v.offset)
        f.write(bytes(10*v.size))
    assert (clip[[10, 63]][..., 0] == x[[10, 63]]).all() and not clip[9].any()

def test_scan_and_study_of_the_camus_layout(tmp_path):
    folder = tmp_path/'database_nifti'/'patient0001'
    folder.mkdir(parents=True)
    for view in ('2CH', '4CH'):
        x = np.roll(noise(), len(view) + (view == '4CH'), 2)
        write_nifti(folder/f'patient0001_{view}_half_sequence.nii.gz', x)
        write_nifti(folder/f'patient0001_{view}_half_sequence_gt.nii.gz', (x > 200).astype(np.uint8) + (view == '4CH'))
        (folder/f'Info_{view}.cfg').write_text('ED: 1')
    t = scan(tmp_path, ids=r'(?P<patient_id>patient\d+)/')
    assert t[~t.excluded].path.str.contains('half_sequence.nii').all() and (~t.excluded).sum() == 2
    assert t.exclude_reason.str.startswith('set aside (labels)').sum() == 2 and (t.patient_id == 'patient0001').all()
    study = open_study(tmp_path)
    assert len(study) == 2 and sorted(s.kind for s in study.set_aside) == ['labels', 'labels', 'other', 'other'] and not study.failures

def test_many_zeros_in_a_small_file(tmp_path):
    bomb = bytearray(write_nifti(tmp_path/'a.nii', noise()).read_bytes())
    bomb[40:48] = np.array([3, 1000, 1000, 20_000], '<i2').tobytes()
    (tmp_path/'b.nii.gz').write_bytes(gzip.compress(bomb) + gzip.compress(bytes(1 << 20))*200)
    with pytest.raises(EchoError, match='inflates to more than'): read_cine(tmp_path/'b.nii.gz')
