"Clips as the published EchoPrime code prepares them, from the file to the tensor, bit for bit."
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid

from echo_lit.data.cine import read_cine, write_dicom
from echo_lit.data.contract import centre_square, prepare, published_frames, yuv_colours
from echo_lit.data.sector import published_mask
from echo_lit.models.echoprime import echoprime_contract, echoprime_input

GOLDEN = json.loads((Path(__file__).parent/'golden'/'echoprime'/'image.json').read_text())
ARRAYS = np.load(Path(__file__).parent/'golden'/'echoprime'/'image.npz')


def picture(h, w):
    y, x = np.mgrid[:h, :w]
    return np.stack([(3*x + 5*y) % 256, (7*x + 2*y + 40) % 256, (x*x//17 + y) % 256], -1).astype(np.uint8)


def fan(h, w):
    y, x = np.mgrid[:h, :w]
    dy, dx = y - 8, x - w/2
    return y, x, dy, dx, (np.abs(dx) <= .8*dy) & (np.hypot(dx, dy) <= h - 14) & (dy >= 2)


def labelled(n, h, w):
    "Stored Y, Cb, Cr of a moving fan with a label, a rule and a trace."
    v = np.zeros((n, h, w, 3), np.uint8)
    v[..., 1:] = 128
    y, x, *_, inside = fan(h, w)
    for f in range(n): v[f, ..., 0] = np.where(inside, 40 + (3*x + 5*y + 17*f) % 160, 0)
    v[:, 3:9, 3:23, 0], v[:, h - 6:h - 4, :, 0] = 200, 180
    for f in range(n): v[f, h - 12 + f % 3, :, 0] = 150
    return v


def coloured(n, h=120, w=160):
    "Stored Y, Cb, Cr of a moving fan with a coloured patch."
    v = np.zeros((n, h, w, 3), np.uint8)
    v[..., 1:] = 128
    y, x, dy, dx, inside = fan(h, w)
    flow = inside & (np.abs(dx) < 20) & (dy > 40) & (dy < 80)
    for f in range(n): v[f, ..., 0] = np.where(inside, 40 + (3*x + 5*y + 17*f) % 160, 0)
    v[:, flow, 1:] = 100, 200
    v[:, 3:9, 3:23, 0] = 200
    return v


def dicom(path, stored, tag='YBR_FULL'):
    "Uncompressed multi-frame file of these numbers."
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.StudyInstanceUID = UltrasoundMultiFrameImageStorage, generate_uid(), generate_uid()
    ds.NumberOfFrames, ds.Rows, ds.Columns = stored.shape[:3]
    ds.SamplesPerPixel = stored.shape[3] if stored.ndim == 4 else 1
    if ds.SamplesPerPixel == 3: ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = tag, 8, 8, 7, 0
    ds.Modality, ds.PixelData = 'US', stored.tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize('name', [k for k, v in GOLDEN['crop_and_scale'].items() if 'sum' in v and '_' not in k])
def test_crop(name):
    h, w = map(int, name.split('x'))
    want, x = GOLDEN['crop_and_scale'][name], centre_square(picture(h, w)[None], 224, .1)[0]
    assert int(x.sum(dtype=np.int64)) == want['sum'] and (int(x.min()), int(x.max())) == (want['min'], want['max'])
    for at, value in want['px'].items(): assert x[tuple(map(int, at.split(',')))].tolist() == value
    if f'crop_{name}' in ARRAYS: assert np.array_equal(x, ARRAYS[f'crop_{name}'])


def test_crop_to_another_size():
    assert np.array_equal(centre_square(picture(480, 640)[None], 64, 0)[0], ARRAYS['crop64_zoom0'])


@pytest.mark.parametrize('shape', [(300, 301), (301, 300)])
def test_sides_that_differ_by_one(shape):
    assert 'error' in GOLDEN['crop_and_scale']['x'.join(map(str, shape))]
    assert centre_square(picture(*shape)[None], 224, .1).any()


def test_colours_taken_for_others():
    for triple, want in GOLDEN['yuv2bgr_u8'].items():
        assert yuv_colours(np.uint8([[[tuple(json.loads(triple.replace("(", "[").replace(")", "]")))]]])).ravel().tolist() == want


def test_masked_frames_of_a_file(tmp_path):
    clip = read_cine(dicom(tmp_path/'a.dcm', labelled(6, 120, 160)))
    x, sector = published_frames(clip, np.arange(6), piece=4)
    assert np.array_equal(x, ARRAYS['mask_a_out']) and sector.mask.sum() == 8187
    assert x.any(-1).sum((1, 2)).tolist() == GOLDEN['mask']['a']['nonzero_per_frame']


def test_a_file_to_its_tensor(tmp_path):
    "Spec: 40 frames give these means, this pixel, and this value outside the mask."
    clip = read_cine(dicom(tmp_path/'a.dcm', coloured(40)))
    x = echoprime_input(clip, echoprime_contract('upstream'))
    np.testing.assert_allclose(x.mean((1, 2, 3)), [.97076, 1.11310, 1.45981], atol=6e-6)
    np.testing.assert_allclose(x[:, 0, 112, 112], [.22691, .81631, 3.17587], atol=6e-6)
    np.testing.assert_allclose(x[:, 0, 0, 0], [-.60661, -.60436, -.61644], atol=6e-6)


def test_a_short_file_to_its_tensor(tmp_path):
    clip = read_cine(dicom(tmp_path/'a.dcm', coloured(20)))
    x = echoprime_input(clip, echoprime_contract('upstream'))
    assert not x[:, 10:].any() and x[:, 9].any()
    np.testing.assert_allclose(x.mean((1, 2, 3)), [.60649, .69545, .91213], atol=6e-6)


def test_jpeg_components_are_those_of_the_file(tmp_path):
    "What libjpeg hands over when asked for Y, Cb, Cr: the luma of Pillow's decoder, before any conversion."
    import io

    from PIL import Image
    from pydicom import dcmread
    from pydicom.encaps import get_frame
    rgb = np.stack([cv2.cvtColor(cv2.GaussianBlur(f, (0, 0), 2), cv2.COLOR_YUV2RGB) for f in coloured(3)])
    path = write_dicom(tmp_path/'a.dcm', rgb, fps=30.)
    clip, data = read_cine(path), dcmread(path).PixelData
    for i, frame in enumerate(clip.stored(np.arange(3))):
        image = Image.open(io.BytesIO(get_frame(data, i, number_of_frames=3)))
        image.draft('YCbCr', image.size)
        assert np.array_equal(frame, np.asarray(image))


@pytest.mark.parametrize('n', [254, 255, 256])
def test_the_wrapping_count_survives_pieces(tmp_path, n):
    v = labelled(n, 64, 96)
    v[:, 3:9, 3:23, 0] = v[:, 58:60, :, 0] = 0
    clip = read_cine(dicom(tmp_path/'a.dcm', v))
    assert np.array_equal(published_frames(clip, np.arange(2))[1].mask, published_mask(v))


def test_grey_and_rgb_files_that_the_published_code_loses(tmp_path):
    "Grey files are dropped and RGB files turn green there; here both look like the same clip stored as Y, Cb, Cr."
    v = coloured(20)
    v[..., 1:] = 128
    same = [read_cine(dicom(tmp_path/f'{tag}.dcm', x, tag)) for tag, x in
            (('YBR_FULL', v), ('MONOCHROME2', v[..., 0].copy()), ('RGB', v[..., :1].repeat(3, -1)))]
    first, *rest = (prepare(echoprime_contract('upstream'), c)[0] for c in same)
    for x in rest: assert torch.equal(x, first)


def test_the_default_sees_almost_the_same(tmp_path):
    clip = read_cine(dicom(tmp_path/'a.dcm', coloured(40)))
    a, b = (prepare(echoprime_contract(p), clip)[0].float() for p in ('default', 'upstream'))
    assert (a - b).abs().mean() < 6 and not torch.equal(a, b)
