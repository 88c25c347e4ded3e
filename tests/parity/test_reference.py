"The plain reference against arrays of the published code, and the library against the reference."
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid

from echo_lit.data.cine import read_cine
from echo_lit.data.contract import yuv_colours
from echo_lit.evaluate.reference import plain_input, plain_mask, plain_towers, plain_vectors
from echo_lit.evaluate.study import agreement, fresh, seeded_towers, write_clips
from echo_lit.models.echoprime import echoprime_contract, echoprime_input, encode_study, in_precision

ARRAYS = np.load(Path(__file__).parent/'golden'/'echoprime'/'image.npz')


def labelled(n, h, w):
    "Stored Y, Cb, Cr of a moving fan with a label, a rule and a trace: the input of the golden arrays."
    v = np.zeros((n, h, w, 3), np.uint8)
    v[..., 1:] = 128
    y, x = np.mgrid[:h, :w]
    dy, dx = y - 8, x - w/2
    inside = (np.abs(dx) <= .8*dy) & (np.hypot(dx, dy) <= h - 14) & (dy >= 2)
    for f in range(n): v[f, ..., 0] = np.where(inside, 40 + (3*x + 5*y + 17*f) % 160, 0)
    v[:, 3:9, 3:23, 0], v[:, h - 6:h - 4, :, 0] = 200, 180
    for f in range(n): v[f, h - 12 + f % 3, :, 0] = 150
    return v


def dicom(path, stored):
    "Uncompressed multi-frame file of these numbers."
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.StudyInstanceUID = UltrasoundMultiFrameImageStorage, generate_uid(), generate_uid()
    ds.NumberOfFrames, ds.Rows, ds.Columns, ds.SamplesPerPixel = stored.shape
    ds.PlanarConfiguration, ds.PhotometricInterpretation, ds.Modality = 0, 'YBR_FULL', 'US'
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation, ds.PixelData = 8, 8, 7, 0, stored.tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path


def test_the_reference_masks_as_published():
    v = labelled(6, 120, 160)
    assert np.array_equal(yuv_colours(v)*(plain_mask(v) > 0)[..., None], ARRAYS['mask_a_out'])


@pytest.mark.parametrize('n', [20, 40, 254, 255, 257])
def test_upstream_is_the_reference_bit_for_bit(tmp_path, n):
    v = labelled(n, 64, 96)
    v[:, 30:40, 40:56, 1:] = 100, 200
    path = dicom(tmp_path/'a.dcm', v)
    assert torch.equal(plain_input(path), echoprime_input(read_cine(path), echoprime_contract('upstream')))


@pytest.mark.parametrize('seed', range(6))
def test_hues_on_black_are_counted_where_extremes_do_not_tell(tmp_path, seed):
    rng, v = np.random.default_rng(seed), labelled(12, 120, 160)
    dark = v[..., 0] == 0
    v[dark, 1:] = rng.integers(126 - seed, 131 + seed, (dark.sum(), 2))
    path = dicom(tmp_path/'a.dcm', v)
    assert torch.equal(plain_input(path), echoprime_input(read_cine(path), echoprime_contract('upstream')))


@pytest.mark.slow
def test_full_size_towers_give_the_rows_of_the_reference(tmp_path):
    bundle = seeded_towers()
    x = [echoprime_input(read_cine(p), echoprime_contract()) for p in write_clips(tmp_path, 1)]
    theirs, ours = plain_vectors(x, *plain_towers(bundle.video, bundle.views)), encode_study(bundle, x)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert agreement(encode_study(in_precision(bundle), x)[:, :512], theirs[:, :512]) > .999


@pytest.mark.slow
def test_memory_does_not_grow_with_the_study(tmp_path):
    paths = write_clips(tmp_path, 24)
    small, large = (fresh('quick', paths[:n], dict(video=dict(depths=(1, 1, 1, 1)), views=dict(depths=(1, 1, 1, 1)))) for n in (6, 24))
    kept = 18*60*3*224*224*4/2**20
    assert large['clips'] == 24 and large['mb'] < min(small['mb'] + kept/3, 1500)
