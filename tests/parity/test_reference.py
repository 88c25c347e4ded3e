"The plain reference against arrays of the published code, and the library against the reference."
import numpy as np
import pytest
import torch
from test_echoprime_image import ARRAYS, GOLDEN, coloured, dicom, labelled, picture

from echo_lit.data.cine import read_cine
from echo_lit.data.contract import yuv_colours
from echo_lit.evaluate.reference import plain_input, plain_mask, plain_square, plain_towers, plain_vectors
from echo_lit.evaluate.study import agreement, fresh, seeded_towers, write_clips
from echo_lit.models.echoprime import echoprime_contract, echoprime_input, encode_study, in_precision


def test_the_reference_masks_as_published():
    v = labelled(6, 120, 160)
    assert np.array_equal(yuv_colours(v)*(plain_mask(v) > 0)[..., None], ARRAYS['mask_a_out'])


@pytest.mark.parametrize('name', ['480x640', '708x1016', '112x112'])
def test_the_reference_crops_as_published(name):
    h, w = map(int, name.split('x'))
    assert int(plain_square(picture(h, w)).sum(dtype=np.int64)) == GOLDEN['crop_and_scale'][name]['sum']


@pytest.mark.parametrize('n, make', [(40, coloured), (20, coloured), (60, labelled), (254, labelled), (255, labelled), (257, labelled)])
def test_upstream_is_the_reference_bit_for_bit(tmp_path, n, make):
    v = make(n, 64, 96)
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
    assert large['clips'] == 24 and large['mb'] < min(small['mb'] + 60, 1500)
