"""Every photometric interpretation in every transfer syntax that the standard allows it in: written here, read back.

Stored samples of lossless syntaxes must be equal; colour differences within one level of the exact conversion; lossy pictures
within one level of libjpeg-turbo or OpenJPEG (through Pillow) on the same stream, and within three of pydicom's own reading."""
import importlib.util
import io
import struct
import tracemalloc
import zlib
from fractions import Fraction

import av
import numpy as np
import pydicom
import pytest
import simplejpeg
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, UltrasoundMultiFrameImageStorage

from echo_lit.data.cine import CineError, read_cine
from echo_lit.data.dicom import DicomPixels

SYNTAX = {name: UID('1.2.840.10008.1.2' + end) for name, end in {
    'implicit': '', 'explicit': '.1', 'big': '.2', 'deflated': '.1.99', 'rle': '.5', 'jpeg': '.4.50', 'sv1': '.4.70', 'lossless14': '.4.57',
    'jls': '.4.80', 'j2k_lossless': '.4.90', 'j2k': '.4.91'}.items()}
COLOUR, GREY = ('RGB', 'YBR_FULL', 'YBR_FULL_422', 'YBR_RCT', 'YBR_ICT'), ('MONOCHROME1', 'MONOCHROME2', 'PALETTE COLOR')
SAMPLES = [(tag, bits, 0) for tag in GREY for bits in (8, 16)] + [('RGB', 8, 0), ('RGB', 16, 0), ('YBR_FULL', 8, 0)]
PLANES = [('RGB', 8, 1), ('RGB', 16, 1), ('YBR_FULL', 8, 1)]
ALLOWED = {
    **{name: [*SAMPLES, *PLANES, ('YBR_FULL_422', 8, 0)] for name in ('implicit', 'explicit', 'big', 'deflated')},
    'rle': [*SAMPLES, *PLANES], 'sv1': SAMPLES, 'lossless14': SAMPLES, 'jls': SAMPLES,
    'jpeg': [('MONOCHROME1', 8, 0), ('MONOCHROME2', 8, 0), ('RGB', 8, 0), ('YBR_FULL', 8, 0), ('YBR_FULL_422', 8, 0)],
    'j2k_lossless': [*SAMPLES, ('YBR_RCT', 8, 0)],
    'j2k': [('MONOCHROME1', 8, 0), ('MONOCHROME2', 8, 0), ('MONOCHROME2', 16, 0), ('RGB', 8, 0), ('YBR_FULL', 8, 0), ('YBR_ICT', 8, 0)]}
GRID = [(name, *case) for name, cases in ALLOWED.items() for case in cases]
H, W, N = 36, 50, 3
CHARLS = importlib.util.find_spec('jpeg_ls') is not None


# pictures: mostly grey, a patch of flow, some noise, as numbers of each kind

def picture(seed=0):
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:H, :W]
    grey = (rng.integers(30, 220, (N, H, W))*(np.abs(x - W/2) < .8*y)).astype(np.uint8)
    rgb = np.repeat(grey[..., None], 3, -1)
    rgb[:, 18:28, 20:25], rgb[:, 18:28, 26:31] = (200, 30, 10), (10, 60, 220)
    return rgb

def to_ybr(rgb):
    r, g, b = np.moveaxis(rgb.astype(float), -1, 0)
    ybr = np.stack([.299*r + .587*g + .114*b, 128 - .168736*r - .331264*g + .5*b, 128 + .5*r - .418688*g - .081312*b], -1)
    return ybr.round().clip(0, 255).astype(np.uint8)

def from_ybr(ybr):
    y, b, r = np.moveaxis(ybr.astype(float), -1, 0)
    return np.stack([y + 1.402*(r - 128), y - .344136*(b - 128) - .714136*(r - 128), y + 1.772*(b - 128)], -1).round().clip(0, 255)

def stored(tag, bits):
    "Numbers as they shall be stored `[N,H,W]` or `[N,H,W,3]`."
    rgb, low = picture(), np.random.default_rng(1)
    if tag in GREY:
        x = rgb.max(-1)
        return x if bits == 8 else x.astype(np.uint16)*16 + low.integers(0, 16, x.shape, np.uint16)
    if tag == 'YBR_FULL_422':
        y = to_ybr(rgb)
        y[..., 1:] = y[..., ::2, 1:].repeat(2, -2)
        return y
    if tag == 'YBR_FULL': return to_ybr(rgb)
    return rgb if bits == 8 else rgb.astype(np.uint16)*256 + low.integers(0, 256, rgb.shape, np.uint16)

def palette(bits):
    n = 256 if bits == 8 else 4096
    return np.stack([np.linspace(0, 255, n), np.linspace(255, 0, n), np.linspace(0, 255, n)**2/255], -1).astype(np.uint16)*257

def expected(tag, bits, x):
    "RGB by the definitions, from stored numbers."
    if tag == 'PALETTE COLOR': return palette(bits)[x] >> 8
    if tag in GREY:
        g = np.repeat((x >> (bits - 8 - 4*(bits == 16)))[..., None], 3, -1)
        return 255 - g if tag == 'MONOCHROME1' else g
    return from_ybr(x) if tag.startswith('YBR_FULL') else x >> (bits - 8)


# encoders

def packbits(b):
    out, i = bytearray(), 0
    while i < len(b):
        run = 1
        while run < 128 and i + run < len(b) and b[i + run] == b[i]: run += 1
        if run > 2: out += bytes([257 - run, b[i]])
        else:
            run = min(len(b) - i, 2)
            out += bytes([run - 1]) + b[i:i + run]
        i += run
    return bytes(out)

def rle(x):
    planes = [x] if x.ndim == 2 else list(np.moveaxis(x, -1, 0))
    rows = [p.astype(p.dtype.newbyteorder('>')).tobytes() for p in planes]
    step = x.dtype.itemsize
    segments = [b''.join(packbits(r[i::step][y*W:(y + 1)*W]) for y in range(H)) for r in rows for i in range(step)]
    segments = [s + b'\0'*(len(s) % 2) for s in segments]
    offsets = [64 + sum(map(len, segments[:i])) for i in range(len(segments))]
    return struct.pack('<16L', len(segments), *offsets, *[0]*(15 - len(segments))) + b''.join(segments)

def lossless_jpeg(x, bits):
    "JPEG process 14, predictor 1: each number as its difference from the left."
    x = x.reshape(H, W, -1).astype(np.int64)
    before = np.concatenate([np.concatenate([np.full((1, 1, x.shape[-1]), 1 << (bits - 1)), x[:-1, :1]]), x[:, :-1]], 1)
    d = (x - before + 32768) % 65536 - 32768
    words = []
    for v in d.ravel().tolist():
        size = abs(v).bit_length()
        words.append(f'{size:05b}' + (f'{v if v > 0 else v + (1 << size) - 1:0{size}b}' if 0 < size < 16 else ''))
    code = ''.join(words)
    code += '1'*(-len(code) % 8)
    n, c = 17, x.shape[-1]
    table = b'\xff\xc4' + struct.pack('>H', 19 + n) + b'\0' + bytes([0]*4 + [n] + [0]*11) + bytes(range(n))
    frame = b'\xff\xc3' + struct.pack('>HBHHB', 8 + 3*c, bits, H, W, c) + b''.join(bytes([i + 1, 0x11, 0]) for i in range(c))
    scan = b'\xff\xda' + struct.pack('>HB', 6 + 2*c, c) + b''.join(bytes([i + 1, 0]) for i in range(c)) + b'\x01\0\0'
    return b'\xff\xd8' + table + frame + scan + int(code, 2).to_bytes(len(code)//8, 'big').replace(b'\xff', b'\xff\0') + b'\xff\xd9'

def j2k(x, mct, **k):
    if x.ndim == 3 and x.dtype == np.uint16:
        c = av.CodecContext.create('jpeg2000', 'w')
        c.width, c.height, c.pix_fmt, c.time_base, c.options = W, H, 'rgb48le', Fraction(1, 25), {'format': 'j2k', 'pred': 'dwt53'}
        return b''.join(map(bytes, c.encode(av.VideoFrame.from_ndarray(x, format='rgb48le')) + c.encode(None)))
    Image.fromarray(x).save(out := io.BytesIO(), 'JPEG2000', no_jp2=True, mct=mct, num_resolutions=3, **k)
    return out.getvalue()

def jpeg(tag, x):
    if tag in GREY: return simplejpeg.encode_jpeg(np.ascontiguousarray(x[..., None]), 90, 'GRAY')
    if tag == 'RGB':
        Image.fromarray(x).save(out := io.BytesIO(), 'JPEG', quality=92, keep_rgb=True)
        return out.getvalue()
    return simplejpeg.encode_jpeg(x, 90, 'RGB', '422' if tag.endswith('422') else '444')

def encode(syntax, tag, bits, x):
    "One frame in a compressed syntax."
    if syntax == 'rle': return rle(x)
    if syntax in ('sv1', 'lossless14'): return lossless_jpeg(x, 12 if bits == 16 and tag in GREY else bits)
    if syntax == 'jls':
        import jpeg_ls
        return bytes(jpeg_ls.encode_array(x, interleave_mode=None if x.ndim == 2 else 2))
    if syntax == 'j2k_lossless': return j2k(x, int(tag == 'YBR_RCT'), irreversible=False)
    if syntax == 'j2k': return j2k(x, int(tag == 'YBR_ICT'), irreversible=True, quality_mode='rates', quality_layers=[4])
    return jpeg(tag, x if tag == 'RGB' or tag in GREY else from_ybr(x).astype(np.uint8))

def native(syntax, tag, planar, x):
    "All frames, uncompressed."
    if tag == 'YBR_FULL_422':
        q = x.reshape(N, H, W//2, 2, 3)
        x = np.concatenate([q[..., 0], q[..., 0, 1:]], -1)
    if planar: x = np.moveaxis(x, -1, 1)
    return np.ascontiguousarray(x, x.dtype.newbyteorder('>' if syntax == 'big' else '<')).tobytes()

def items(parts, table=b'', end=True):
    item = lambda b: struct.pack('<HHL', 0xFFFE, 0xE000, len(b)) + b
    return item(table) + b''.join(item(p + b'\0'*(len(p) % 2)) for p in parts) + struct.pack('<HHL', 0xFFFE, 0xE0DD, 0)*end

def header(syntax, tag, bits, planar=0, **more):
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.StudyInstanceUID, ds.Modality = UltrasoundMultiFrameImageStorage, '2.25.3', '2.25.2', 'US'
    ds.Rows, ds.Columns, ds.NumberOfFrames, ds.FrameTime = H, W, N, '25'
    ds.PhotometricInterpretation, ds.SamplesPerPixel = tag, 3 if tag in COLOUR else 1
    if tag in COLOUR: ds.PlanarConfiguration = planar
    ds.BitsAllocated, ds.PixelRepresentation = bits, 0
    ds.BitsStored = 12 if bits == 16 and tag in GREY else bits
    ds.HighBit = ds.BitsStored - 1
    if tag == 'PALETTE COLOR':
        t = palette(bits)
        for i, c in enumerate(('Red', 'Green', 'Blue')):
            setattr(ds, f'{c}PaletteColorLookupTableDescriptor', [len(t), 0, 16])
            setattr(ds, f'{c}PaletteColorLookupTableData', t[:, i].astype('>u2' if syntax == 'big' else '<u2').tobytes())
    for k, v in more.items():
        if v is None: del ds[k]
        else: setattr(ds, k, v)
    return ds

def write(path, syntax, ds, pixels, vr=None):
    "Header by pydicom, pixels by hand; a deflated file is deflated here."
    uid = SYNTAX[syntax]
    little, implicit = syntax != 'big', syntax == 'implicit'
    body = io.BytesIO()
    pydicom.dcmwrite(body, ds, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    packed = syntax not in ('implicit', 'explicit', 'big', 'deflated')
    length, vr = (0xFFFFFFFF if packed else len(pixels) + len(pixels) % 2), vr or ('OB' if packed or ds.BitsAllocated == 8 else 'OW')
    end = '<' if little else '>'
    size = struct.pack('<L', length) if implicit else vr.encode() + b'\0\0' + struct.pack(end + 'L', length)
    head = struct.pack(end + 'HH', 0x7FE0, 0x10) + size
    body = body.getvalue() + head + pixels + b'\0'*(len(pixels) % 2)
    if syntax == 'deflated':
        pump = zlib.compressobj(wbits=-15)
        body = pump.compress(body) + pump.flush()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = ds.SOPClassUID, '2.25.3', uid
    with open(path, 'wb') as f:
        f.write(b'\0'*128 + b'DICM')
        pydicom.filewriter.write_file_meta_info(f, meta)
        f.write(body)
    return path

def golden(path, syntax, tag, bits, planar=0, **more):
    x = stored(tag, bits)
    packed = syntax not in ('implicit', 'explicit', 'big', 'deflated')
    frames = [encode(syntax, tag, bits, f) for f in x] if packed else None
    write(path, syntax, header(syntax, tag, bits, planar, **more), items(frames) if packed else native(syntax, tag, planar, x))
    return path, x, frames


@pytest.mark.parametrize('syntax,tag,bits,planar', GRID)
def test_golden(tmp_path, syntax, tag, bits, planar):
    if syntax == 'jls' and not CHARLS: pytest.skip('pyjpegls, which writes JPEG-LS, is not here')
    path, x, frames = golden(tmp_path/'x.dcm', syntax, tag, bits, planar)
    clip, p = read_cine(path), DicomPixels(path)
    assert len(clip) == N and clip.fps == 40 and not clip.notes
    got = clip[[2, 0]].astype(int)
    if syntax in ('jpeg', 'j2k'):
        raw = np.stack([np.asarray(Image.open(io.BytesIO(frames[i]))) for i in (2, 0)])
        if syntax == 'j2k': want = expected(tag, bits, raw)
        else: want = expected(tag, 8, raw) if tag in GREY else raw
        assert np.abs(got - want).max() <= 1
        assert np.abs(got - expected(tag, bits, x[[2, 0]])).mean() < 25
    else:
        assert all((p.samples(i) == x[i]).all() for i in range(N))
        want = expected(tag, bits, x[[2, 0]])
        assert np.abs(got - want).max() <= (1 if tag.startswith('YBR_FULL') else 0)
    sources = {'jpeg': ('JPEG', 'tag', 'one component'), 'j2k': ('tag', 'J2K'), 'j2k_lossless': ('tag', 'J2K')}
    assert clip.colour_source.startswith(sources.get(syntax, ('tag',)))
    assert ('12 bits by BitsStored' in clip.colour_source) == (bits == 16 and tag.startswith('MONO'))

def test_grid_is_what_the_standard_allows():
    assert len(GRID) == len(set(GRID)) == 112
    assert {tag for _, tag, _, _ in GRID} == {*COLOUR, *GREY} and {name for name, *_ in GRID} == {*SYNTAX}
    assert not [g for g in GRID if g[3] and g[0] not in ('implicit', 'explicit', 'big', 'deflated', 'rle')]


# how colour was read

def strip(data, *markers):
    "A JPEG without some of its APPn segments."
    out, i = data[:2], 2
    while data[i + 1] != 0xDA:
        end = i + 2 + struct.unpack('>H', data[i + 2:i + 4])[0]
        if data[i + 1] not in markers: out += data[i:end]
        i = end
    return out + data[i:]

def jpegs(kind):
    rgb = picture()
    if kind in ('APP14', 'ids', 'bare rgb'):
        frames = [jpeg('RGB', f) for f in rgb]
        if kind != 'APP14': frames = [strip(f, 0xEE) for f in frames]
        if kind != 'bare rgb': return frames
        numbered = [f.replace(b'R\x11\0G\x11\0B\x11\0', b'\1\x11\0\2\x11\0\3\x11\0') for f in frames]
        return [f.replace(b'R\0G\0B\0', b'\1\0\2\0\3\0') for f in numbered]
    frames = [simplejpeg.encode_jpeg(f, 92, 'RGB', '422' if kind == 'halved' else '444') for f in rgb]
    return frames if kind == 'JFIF' else [strip(f, 0xE0) for f in frames]

@pytest.mark.parametrize('kind,tag,source', [
    ('JFIF', 'RGB', 'JPEG JFIF marker'), ('APP14', 'YBR_FULL', 'JPEG APP14 marker'), ('ids', 'YBR_FULL_422', 'JPEG component ids'),
    ('halved', 'RGB', 'JPEG subsampling'), ('bare', 'YBR_FULL', 'tag YBR_FULL'), ('bare', 'RGB', 'pixels, against tag RGB'),
    ('bare rgb', 'RGB', 'tag RGB'), ('bare rgb', 'YBR_FULL', 'pixels, against tag YBR_FULL')])
def test_colour_source(tmp_path, kind, tag, source):
    clip = read_cine(write(tmp_path/'x.dcm', 'jpeg', header('jpeg', tag, 8), items(jpegs(kind))))
    assert clip.colour_source == source
    r, g, b = clip[1][0, 22:25, 22].mean(0)
    assert abs(r - 200) < 40 and g < 80 and b < 60
    assert np.abs(clip[:].astype(int) - picture())[:, :16].mean() < 12

@pytest.mark.parametrize('syntax,tag,told', [
    ('explicit', 'YBR_FULL', 'RGB'), ('explicit', 'RGB', 'YBR_FULL'), ('rle', 'YBR_FULL', 'RGB'), ('j2k_lossless', 'YBR_FULL', 'RGB')])
def test_wrong_tags_are_overruled_by_pixels(tmp_path, syntax, tag, told):
    path, x, _ = golden(tmp_path/'x.dcm', syntax, tag, 8, PhotometricInterpretation=told)
    clip = read_cine(path)
    assert clip.colour_source == f'pixels, against tag {told}' and np.abs(clip[:].astype(int) - expected(tag, 8, x)).max() <= 1

@pytest.mark.parametrize('name', ['jpeg', 'j2k'])
@pytest.mark.parametrize('tag', ['RGB', 'YBR_FULL', 'YBR_FULL_422', 'YBR_ICT'])
def test_lossy_agrees_with_pydicom(tmp_path, name, tag):
    if (name, tag, 8, 0) not in GRID: pytest.skip('not in the standard')
    path, *_ = golden(tmp_path/'x.dcm', name, tag, 8)
    assert np.abs(read_cine(path)[1][0].astype(int) - pydicom.pixels.pixel_array(path, index=1)).max() <= 3

def test_tint_is_not_taken_for_a_wrong_tag(tmp_path):
    sepia = (picture()*[1, .85, .6]).astype(np.uint8)
    frames = [strip(simplejpeg.encode_jpeg(f, 95, 'RGB', '444'), 0xE0) for f in sepia]
    clip = read_cine(write(tmp_path/'x.dcm', 'jpeg', header('jpeg', 'YBR_FULL', 8), items(frames)))
    assert clip.colour_source == 'tag YBR_FULL' and np.abs(clip[:].astype(int) - sepia).mean() < 8


# eight bits from sixteen

def test_big_endian_words_of_bytes(tmp_path):
    x = stored('RGB', 8)
    swapped = np.frombuffer(x.tobytes(), '<u2').astype('>u2').tobytes()
    path = write(tmp_path/'x.dcm', 'big', header('big', 'RGB', 8), swapped, vr='OW')
    assert (read_cine(path)[[2, 1]] == x[[2, 1]]).all()

@pytest.mark.parametrize('syntax', ['explicit', 'big', 'rle', 'sv1', 'j2k_lossless'])
@pytest.mark.parametrize('function', ['LINEAR', 'LINEAR_EXACT', 'SIGMOID'])
def test_window(tmp_path, syntax, function):
    more = dict(WindowCenter=[1500, 3], WindowWidth=[1000, 9], RescaleSlope=2, RescaleIntercept=-100, VOILUTFunction=function)
    path, x, _ = golden(tmp_path/'x.dcm', syntax, 'MONOCHROME1', 16, **more)
    v = x*2. - 100
    linear = ((v - 1499.5)/999 + .5)*255
    y = {'LINEAR': linear, 'LINEAR_EXACT': ((v - 1500)/1000 + .5)*255, 'SIGMOID': 255/(1 + np.exp(-4*(v - 1500)/1000))}[function]
    clip = read_cine(path)
    assert np.abs(255 - y.clip(0, 255) - clip[:][..., 0]).max() <= .51
    assert clip.colour_source == 'tag MONOCHROME1, 12 bits by window 1500/1000'

def test_signed_and_overlay_bits(tmp_path):
    x = stored('MONOCHROME2', 16).astype(np.int64)
    raw = native('explicit', 'MONOCHROME2', 0, (((x - 2048) & 0xFFF) | 0x3000).astype(np.uint16))
    path = write(tmp_path/'x.dcm', 'explicit', header('explicit', 'MONOCHROME2', 16, PixelRepresentation=1), raw)
    assert (DicomPixels(path).samples(1) == x[1] - 2048).all() and (read_cine(path)[:][..., 0] == x >> 4).all()
    high = (x << 4 | 5).astype(np.uint16)
    raw = native('explicit', 'MONOCHROME2', 0, high)
    path = write(tmp_path/'y.dcm', 'explicit', header('explicit', 'MONOCHROME2', 16, HighBit=15), raw)
    assert (DicomPixels(path).samples(2) == x[2]).all()


# where the frames are

PACKED = ['rle', 'jpeg', 'sv1', 'j2k_lossless', 'j2k']

def offsets(frames, pieces):
    at, out = 0, []
    for k in pieces:
        out.append(at)
        at += sum(len(p) + len(p) % 2 + 8 for p in k)
    return struct.pack(f'<{len(out)}L', *out)

@pytest.mark.parametrize('syntax', PACKED)
@pytest.mark.parametrize('table', ['none', 'right', 'zeros', 'wild'])
@pytest.mark.parametrize('pieces', [1, 3])
@pytest.mark.parametrize('count', [N, None, 1, 2, 7, 0])
def test_frame_table(tmp_path, syntax, table, pieces, count):
    if syntax == 'rle' and pieces > 1: pytest.skip('a run-length frame is one piece')
    x = stored('MONOCHROME2', 8)
    frames = [encode(syntax, 'MONOCHROME2', 8, f) for f in x]
    step = [len(f)//pieces//2*2 for f in frames]
    cut = [[f[k*s:(k + 1)*s if k < pieces - 1 else None] for k in range(pieces)] for f, s in zip(frames, step)]
    bot = {'none': b'', 'right': offsets(frames, cut), 'zeros': bytes(4*N), 'wild': struct.pack('<3L', 0, 77, 10**9)}[table]
    ds = header(syntax, 'MONOCHROME2', 8, NumberOfFrames=count)
    clip = read_cine(write(tmp_path/'x.dcm', syntax, ds, items([p for f in cut for p in f], bot)))
    assert len(clip) == N and bool(clip.notes) == (count != N)
    if syntax in ('rle', 'sv1', 'j2k_lossless'): assert (clip[[2, 0, 1]][..., 0] == x[[2, 0, 1]]).all()
    else: assert np.abs(clip[[2, 0, 1]][..., 0].astype(int) - x[[2, 0, 1]]).mean() < 25

@pytest.mark.parametrize('syntax', ['implicit', 'big', 'deflated'])
@pytest.mark.parametrize('count', [None, 0, 1, 2, 7])
def test_frame_count_of_uncompressed_files(tmp_path, syntax, count):
    path, x, _ = golden(tmp_path/'x.dcm', syntax, 'RGB', 8, NumberOfFrames=count)
    clip = read_cine(path)
    assert len(clip) == N and (clip[-1][0] == x[-1]).all()
    assert any('NumberOfFrames' in note for note in clip.notes)

def test_unfinished_sequence_is_cut_off(tmp_path):
    frames = [encode('jpeg', 'MONOCHROME2', 8, f) for f in stored('MONOCHROME2', 8)]
    path = write(tmp_path/'x.dcm', 'jpeg', header('jpeg', 'MONOCHROME2', 8, NumberOfFrames=5), items(frames, end=False))
    with pytest.raises(CineError, match='cut off: 3 of 5 frames are there'): read_cine(path)


# hostile files: one line, little memory

def refused(path):
    tracemalloc.start()
    try:
        with pytest.raises(CineError) as e: read_cine(path)[:]
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally: tracemalloc.stop()
    assert '\n' not in str(e.value) and str(e.value).startswith(path.name)
    return str(e.value)

@pytest.mark.parametrize('more', [dict(Rows=65535, Columns=65535), dict(NumberOfFrames=2**31 - 1), dict(Rows=0), dict(BitsAllocated=64),
    dict(SamplesPerPixel=200), dict(PhotometricInterpretation='CMYK')])
@pytest.mark.parametrize('syntax', ['explicit', 'jpeg', 'rle', 'j2k_lossless', 'deflated'])
def test_declared_sizes(tmp_path, syntax, more): refused(golden(tmp_path/'x.dcm', syntax, 'RGB', 8, **more)[0])

@pytest.mark.parametrize('syntax', ['jpeg', 'sv1', 'j2k_lossless'])
def test_stream_larger_than_header(tmp_path, syntax):
    frames = [encode(syntax, 'MONOCHROME2', 8, f) for f in stored('MONOCHROME2', 8)]
    if syntax.startswith('j2k'): i, big = 8, struct.pack('>LL', 60000, 60000)
    else: i, big = max(frames[1].find(m) for m in (b'\xff\xc0', b'\xff\xc3')) + 5, struct.pack('>HH', 60000, 60000)
    frames[1] = frames[1][:i] + big + frames[1][i + len(big):]
    path = write(tmp_path/'x.dcm', syntax, header(syntax, 'MONOCHROME2', 8), items(frames))
    assert '60000 by 60000 pixels, the header says 36 by 50' in refused(path)

def test_run_length_bomb(tmp_path):
    path = write(tmp_path/'x.dcm', 'rle', header('rle', 'RGB', 8, Rows=2048, Columns=4096), items([rle(f) for f in picture()]))
    assert 'too short for its picture' in refused(path)

def test_deflate_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr('echo_lit.data.dicom.INFLATED_LIMIT', 1 << 24)
    path = write(tmp_path/'x.dcm', 'deflated', header('deflated', 'RGB', 8), bytes(1 << 25))
    assert path.stat().st_size < 1e5 and 'inflates to more than 16 MB' in refused(path)

@pytest.mark.parametrize('depth,defined', [(200_000, False), (2000, True)])
def test_sequences_within_sequences(tmp_path, depth, defined):
    inner = b''
    tag, item = struct.pack('<HH2sH', 0x0008, 0x1140, b'SQ', 0), struct.pack('<HH', 0xFFFE, 0xE000)
    if not defined: inner = (tag + b'\xff'*4 + item + b'\xff'*4)*depth
    for _ in range(depth*defined): inner = tag + struct.pack('<L', len(inner) + 8) + item + struct.pack('<L', len(inner)) + inner
    path = golden(tmp_path/'x.dcm', 'explicit', 'RGB', 8)[0]
    whole = path.read_bytes()
    at = whole.index(b'\x28\0\x02\0US')
    path.write_bytes(whole[:at] + inner + whole[at:])
    if defined: assert len(read_cine(path)) == N
    else: assert 'the header is damaged (RecursionError)' in refused(path)

def test_elements_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr('echo_lit.data.dicom.READS_LIMIT', 1 << 12)
    zeros = bytes(1 << 20)
    item = struct.pack('<HH2sHL', 0x0008, 0x1140, b'SQ', 0, 0xFFFFFFFF) + struct.pack('<HHL', 0xFFFE, 0xE000, 0xFFFFFFFF)
    path = golden(tmp_path/'x.dcm', 'deflated', 'RGB', 8)[0]
    whole = path.read_bytes()
    at = 144 + struct.unpack_from('<L', whole, 140)[0]
    for endless in (zeros, item + zeros):
        pump = zlib.compressobj(wbits=-15)
        path.write_bytes(whole[:at] + pump.compress(endless) + pump.flush())
        assert path.stat().st_size < 1e5 and 'parts are not believed' in refused(path)

def test_pieces_in_an_uncompressed_file(tmp_path):
    path = golden(tmp_path/'x.dcm', 'jpeg', 'YBR_FULL', 8)[0]
    whole = path.read_bytes()
    jpeg, plain = b'1.2.840.10008.1.2.4.50', b'1.2.840.10008.1.2.1\0\0\0'
    assert jpeg in whole
    path.write_bytes(whole.replace(jpeg, plain))
    assert 'Explicit VR Little Endian cannot hold pixels in pieces' in refused(path)

def test_elements_longer_than_the_file(tmp_path):
    path, *_ = golden(tmp_path/'x.dcm', 'explicit', 'RGB', 8)
    whole = path.read_bytes()
    at = whole.index(b'\x28\0\x02\0US')
    path.write_bytes(whole[:at] + struct.pack('<HH2sHL', 9, 0x1001, b'OB', 0, 0xFFFFFFF0) + whole[at:])
    refused(path)
    at = whole.index(b'\xe0\x7f\x10\0OB')
    path.write_bytes(whole[:at + 8] + struct.pack('<L', 0xFFFFFFF0) + whole[at + 12:])
    assert len(read_cine(path)) == N
    path.write_bytes(whole[:at + 8] + struct.pack('<L', 0xFFFFFFF0) + whole[at + 12:-2000])
    assert 'cut off: 2 of 3 frames are there' in refused(path)

def test_huge_private_element_is_skipped(tmp_path):
    path, x, _ = golden(tmp_path/'x.dcm', 'explicit', 'RGB', 8)
    whole = path.read_bytes()
    at = whole.index(b'\x28\0\x02\0US')
    with open(path, 'wb') as f:
        f.write(whole[:at] + struct.pack('<HH2sHL', 9, 0x1001, b'OB', 0, 60_000_000))
        f.seek(60_000_000, 1)
        f.write(whole[at:])
    tracemalloc.start()
    try:
        assert (read_cine(path)[:] == x).all() and tracemalloc.get_traced_memory()[1] < 20e6
    finally: tracemalloc.stop()


# real files

@pytest.mark.parametrize('name', [
    'JPGLosslessP14SV1_1s_1f_8b.dcm', 'color-pl.dcm', 'color-px.dcm', 'OBXXXX1A.dcm', 'OBXXXX1A_rle.dcm', 'OBXXXX1A_2frame.dcm',
    'OBXXXX1A_expb.dcm', 'US1_J2KI.dcm', 'US1_J2KR.dcm', 'US1_UNCI.dcm', 'US1_UNCR.dcm', 'gdcm-US-ALOKA-16.dcm',
    'gdcm-US-ALOKA-16_big.dcm', 'ExplVR_BigEnd.dcm'])
def test_real_files(name):
    path = pydicom.data.get_testdata_file(name, download=False)
    if path is None: pytest.skip('pydicom-data is not here')
    clip = read_cine(path)
    x = clip[:]
    assert x.max() > 100 and len(clip) == int(pydicom.dcmread(path).get('NumberOfFrames', 1))

def test_planes_and_pixels_are_the_same_picture():
    a, b = (pydicom.data.get_testdata_file(f'color-{k}.dcm', download=False) for k in ('pl', 'px'))
    if not a: pytest.skip('pydicom-data is not here')
    assert (read_cine(a)[:] == read_cine(b)[:]).all()
