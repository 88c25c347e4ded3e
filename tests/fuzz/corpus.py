"""Write the files that `mutate.py` hurts into tests/fuzz/corpus. They are kept in the repository, so that a number means the same
input tomorrow; run this only to add one, and then add, never replace."""
import sys
from fractions import Fraction
from pathlib import Path

import av
import nibabel
import numpy as np

here = Path(__file__).parent
sys.path.insert(0, str(here.parent/'data'))
import test_dicom_golden as golden  # noqa: E402

DICOM = [('implicit', 'MONOCHROME2', 8), ('explicit', 'RGB', 8), ('explicit', 'PALETTE COLOR', 16), ('big', 'MONOCHROME1', 16),
         ('deflated', 'YBR_FULL_422', 8), ('rle', 'MONOCHROME2', 16), ('rle', 'RGB', 8), ('jpeg', 'YBR_FULL_422', 8),
         ('jpeg', 'MONOCHROME2', 8), ('sv1', 'MONOCHROME2', 16), ('jls', 'RGB', 8), ('jls', 'MONOCHROME2', 8), ('j2k', 'YBR_ICT', 8),
         ('j2k_lossless', 'MONOCHROME2', 16), ('j2k_lossless', 'RGB', 16)]


def frames(n=8, h=48, w=64):
    rng, (y, x) = np.random.default_rng(5), np.mgrid[:h, :w]
    blobs = [40 + 90*np.exp(-((x - 20 - 3*i)**2 + (y - 24)**2)/80) for i in range(n)]
    return np.stack([(b*(np.abs(x - w/2) < .9*y + 4) + rng.integers(0, 3, (h, w))).astype(np.uint8) for b in blobs])


def region():
    r = golden.Dataset()
    r.RegionSpatialFormat = r.RegionDataType = 1
    r.RegionLocationMinX0, r.RegionLocationMinY0, r.RegionLocationMaxX1, r.RegionLocationMaxY1 = 0, 0, 49, 35
    r.PhysicalUnitsXDirection = r.PhysicalUnitsYDirection = 3
    r.PhysicalDeltaX = r.PhysicalDeltaY = .05
    return r


def video(name, codec, pixels, **options):
    with av.open(str(here/'corpus'/name), 'w', options=options) as box:
        s = box.add_stream(codec, rate=Fraction(25))
        s.height, s.width, s.pix_fmt = 48, 64, pixels
        for f in frames(): box.mux(s.encode(av.VideoFrame.from_ndarray(np.repeat(f[..., None], 3, -1), format='rgb24')))
        box.mux(s.encode())


def volume(name, x, kind=nibabel.Nifti1Image, order='<', zooms=(.3, .3, 1), unit='mm'):
    header = kind.header_class(endianness=order)
    header.set_data_dtype(x.dtype.newbyteorder(order))
    header.set_xyzt_units(unit, 'msec')
    img = kind(x.astype(x.dtype.newbyteorder(order)), np.diag([*zooms[:2], 1, 1]), header)
    img.header.set_zooms(zooms)
    nibabel.save(img, here/'corpus'/name)


if __name__ == '__main__':
    (here/'corpus').mkdir(exist_ok=True)
    for syntax, tag, bits in DICOM:
        name = f'{syntax}-{tag.lower().replace(" ", "_")}-{bits}.dcm'
        golden.golden(here/'corpus'/name, syntax, tag, bits, SequenceOfUltrasoundRegions=[region()], PatientID='P')
    x = golden.picture()
    jpegs = [golden.jpeg('YBR_FULL', f) for f in x]
    jpegs = [j + b'\0'*(len(j) % 2) for j in jpegs]
    starts = np.cumsum([0] + [len(j) + 16 for j in jpegs[:-1]]).astype('<u4').tobytes()
    halves = [p for j in jpegs for p in (j[:400], j[400:])]
    golden.write(here/'corpus'/'jpeg-offsets-8.dcm', 'jpeg', golden.header('jpeg', 'YBR_FULL', 8), golden.items(halves, starts))
    video('mjpeg.avi', 'mjpeg', 'yuvj422p')
    video('mpeg4.avi', 'mpeg4', 'yuv420p')
    video('raw.avi', 'rawvideo', 'yuv420p')
    video('h264.mp4', 'libx264', 'yuv420p')
    video('fragments.mp4', 'libx264', 'yuv420p', movflags='frag_keyframe+empty_moov')
    video('mpeg4.mp4', 'mpeg4', 'yuv420p')
    video('mjpeg.mp4', 'mjpeg', 'yuvj422p')
    x = frames().transpose(2, 1, 0)
    volume('bytes.nii', x)
    volume('bytes.nii.gz', x)
    volume('deep.nii', x.astype('int16')*7 - 300)
    volume('big.nii.gz', x.astype('uint16')*7, order='>')
    volume('two.nii', x, nibabel.Nifti2Image)
    volume('timed.nii.gz', x[:, :, None].astype('float32')/255, zooms=(.3, .3, 1, 20))
