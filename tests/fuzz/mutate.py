"""A number becomes a hostile file, the same one each time: a file of corpus/ hurt by one to three mutations that know its format,
or a folder laid out to deceive."""
import gzip
import os
import struct
import zlib
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np

CORPUS = Path(__file__).parent/'corpus'
FORMATS = ('dicom',)*9 + ('avi',)*3 + ('mp4',)*4 + ('nifti',)*3 + ('folder',)
SUFFIX = {'dicom': ('.dcm',), 'avi': ('.avi',), 'mp4': ('.mp4',), 'nifti': ('.nii', '.gz')}
MORE = np.array([0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 4095, 8192, 8193, 32767, 32768, 65535, 65536, 1 << 20, 1 << 24, (1 << 31) - 1,
                 1 << 31, (1 << 32) - 8, (1 << 32) - 2, (1 << 32) - 1])


@cache
def corpus(form): return [(p.name, p.read_bytes()) for p in sorted(CORPUS.iterdir()) if p.suffix in SUFFIX[form]]

def make(number, folder):
    "Write input `number` under a folder: its path, its format, and what was done to it."
    rng = np.random.default_rng([20261123, number])
    form = FORMATS[number % len(FORMATS)]
    if form == 'folder': return hostile_folder(rng, folder)
    name, data = corpus(form)[rng.integers(len(corpus(form)))]
    box, done = Box(form, name, data), []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        mutate = rng.choice(OF[form] if rng.random() < .75 else ANY)
        done.append(mutate.__name__)
        mutate(box, rng)
    path = Path(folder)/f'{number}{"-" if rng.random() < .1 else "."}{SUFFIX[form][0][1:]}'
    path.write_bytes(box.packed(rng)[:1 << 24])
    return path, form, f'{name}: {", ".join(done)}'


class Box:
    "The bytes of a file without its outer compression, and where its parts are."
    def __init__(self, form, name, data):
        self.form, self.name, self.cover, self.level = form, name, b'', 0
        if name.startswith('deflated'):
            self.level, at = -15, 144 + struct.unpack_from('<L', data, 140)[0]
            self.cover, data = data[:at], zlib.decompress(data[at:], -15)
        elif name.endswith('.gz'): self.level, data = 31, gzip.decompress(data)
        self.data = bytearray(data)

    def packed(self, rng):
        if not self.level: return bytes(self.data)
        pump = zlib.compressobj(6, wbits=self.level)
        out = bytearray(self.cover + pump.compress(bytes(self.data)) + pump.flush())
        if rng.random() < .15: out[rng.integers(len(self.cover), len(out))] ^= 1 << rng.integers(8)
        return bytes(out[:rng.integers(len(out))] if rng.random() < .1 else out)

    @property
    def parts(self):
        "(start, place of its length field, bytes of that field, first byte of the content, end) of each part."
        walk = {'dicom': dicom_parts, 'avi': riff_parts, 'mp4': atom_parts, 'nifti': nifti_parts}[self.form]
        return list(islice(walk(self), 5000)) or [(0, 0, 4, 0, len(self.data))]

    @property
    def order(self): return '>' if self.form == 'mp4' or self.name.startswith('big') else '<'
    def put(self, at, n, value):
        code = {1: 'B', 2: 'H', 4: 'L', 8: 'Q'}[n]
        self.data[at:at + n] = struct.pack(self.order + code, int(value) % (1 << 8*n))


def dicom_parts(box):
    d, big, implicit = bytes(box.data), box.order, box.name.startswith('implicit')
    at = 0 if box.cover else 132
    while at + 8 <= len(d):
        meta = d[at:at + 2] == b'\x02\0'
        order = '<' if meta else big
        group = struct.unpack_from(order + 'H', d, at)[0]
        if group == 0xFFFE or implicit and not meta: size_at, n, start = at + 4, 4, at + 8
        elif d[at + 4:at + 6] in (b'OB', b'OW', b'SQ', b'UN', b'UT'): size_at, n, start = at + 8, 4, at + 12
        else: size_at, n, start = at + 6, 2, at + 8
        if start > len(d): return
        size = struct.unpack_from(order + ('H' if n == 2 else 'L'), d, size_at)[0]
        items = group == 0xFFFE and struct.unpack_from('<L', d.ljust(start + 4), start)[0] == 0x60180018
        inside = size == 0xFFFFFFFF or d[at + 4:at + 6] == b'SQ' or items
        end = start if inside else min(start + size, len(d))
        yield at, size_at, n, start, end
        at = end

def riff_parts(box, at=0, end=None, depth=0):
    d = box.data
    end = min(end or len(d), len(d))
    while at + 8 <= end:
        size, list_ = struct.unpack_from('<L', d, at + 4)[0], d[at:at + 4] in (b'RIFF', b'LIST')
        yield at, at + 4, 4, at + 8, min(at + 8 + size, len(d))
        if list_ and depth < 8: yield from riff_parts(box, at + 12, at + 8 + size, depth + 1)
        at += 8 + size + size % 2

INSIDE = (b'moov', b'trak', b'mdia', b'minf', b'stbl', b'edts', b'moof', b'traf', b'mvex', b'dinf')

def atom_parts(box, at=0, end=None, depth=0):
    d = box.data
    end = min(end or len(d), len(d))
    while at + 8 <= end:
        size = struct.unpack_from('>L', d, at)[0]
        yield at, at, 4, at + 8, min(at + max(size, 8), len(d))
        name = bytes(d[at + 4:at + 8])
        skip = 8 if name in INSIDE else {b'stsd': 16, b'avc1': 86, b'mp4v': 86, b'jpeg': 86}.get(name)
        if skip and depth < 12: yield from atom_parts(box, at + skip, at + size, depth + 1)
        at += max(size, 8)

NIFTI = {1: [(0, 4), (40, 2), (42, 2), (44, 2), (46, 2), (48, 2), (70, 2), (72, 2), (80, 4), (84, 4), (92, 4), (108, 4), (112, 4), (116, 4),
             (123, 1), (344, 4)],
         2: [(0, 4), (4, 4), (12, 2), (14, 2), (16, 8), (24, 8), (32, 8), (40, 8), (104, 8), (112, 8), (168, 8), (176, 8), (184, 8), (500, 4)]}

def nifti_parts(box): return ((at, at, n, at + n, at + n) for at, n in NIFTI[2 if box.name == 'two.nii' else 1] if at + n <= len(box.data))


# mutations that any file may suffer

def flip(box, rng):
    for _ in range(rng.integers(1, 9)): box.data[place(box, rng)] ^= 1 << rng.integers(8)

def scribble(box, rng):
    for _ in range(rng.integers(1, 33)): box.data[place(box, rng)] = rng.integers(256)

def place(box, rng):
    "Somewhere; half of the time near the start, where headers are."
    if not box.data: box.data += b'\0'
    return int(rng.integers(len(box.data) if rng.random() < .5 else min(len(box.data), 1500)))

def number(box, rng):
    n = int(rng.choice([2, 4, 8]))
    at = place(box, rng)
    if at + n <= len(box.data): box.put(at, n, rng.choice(MORE))

def cut(box, rng): del box.data[place(box, rng):]

def cut_at_part(box, rng):
    start, size_at, n, first, end = part(box, rng)
    del box.data[int(rng.choice([start, size_at, size_at + n, first, (first + end)//2, max(end - 1, 0), end])):]

def part(box, rng):
    parts = box.parts
    return parts[rng.integers(len(parts))]

def lie(box, rng):
    "A wrong length."
    for _ in range(rng.integers(1, 3)):
        _, at, n, first, end = part(box, rng)
        box.put(at, n, rng.choice([*MORE, end - first + 1, max(end - first - 1, 0), 2*(end - first), rng.integers(1 << 31)]))

def drop(box, rng):
    start, *_, end = part(box, rng)
    del box.data[start:end]

def double(box, rng):
    start, *_, end = part(box, rng)
    box.data[end:end] = box.data[start:end]*int(rng.choice([1, 2, 50]))

def fill(box, rng):
    "A value of one letter only."
    *_, first, end = part(box, rng)
    n = min(end - first, 4096)
    box.data[first:first + n] = bytes(rng.choice([b'\0', b'\xff', b'9', b'-', b'\\', b'.', b'\n']))*n

def swap(box, rng):
    (a, *_, b), (c, *_, d) = sorted([part(box, rng), part(box, rng)])
    if b <= c: box.data[a:d] = box.data[c:d] + box.data[b:c] + box.data[a:b]

def splice(box, rng):
    "A piece of another file of the format."
    _, other = corpus(box.form)[rng.integers(len(corpus(box.form)))]
    a, at = int(rng.integers(len(other))), place(box, rng)
    box.data[at:at + int(rng.integers(2000))] = other[a:a + int(rng.integers(1, 2000))]

def repeat(box, rng):
    at = place(box, rng)
    piece = bytes(box.data[at:at + int(rng.integers(1, 64))])
    box.data[at:at] = piece*int(rng.choice([10, 1000, 20_000]))

def noise(box, rng):
    at = place(box, rng)
    box.data[at:at] = rng.bytes(int(rng.integers(1, 4000)))


# DICOM

NUMBERS = [b'', b'0', b'-1', b'1', b'2', b'4', b'1000000', b'99999999999999999999', b'NaN', b'inf', b'1e308', b'3\\4', b'0.0000001', b'x']
TEXTS = {0x00280008: NUMBERS, 0x00181063: NUMBERS,
         0x00280004: [b'RGB ', b'YBR_FULL', b'YBR_FULL_422', b'YBR_RCT ', b'YBR_ICT ', b'MONOCHROME1 ', b'MONOCHROME2 ',
                      b'PALETTE COLOR ', b'HSV ', b'']}
WORDS = {0x00280002: [0, 1, 2, 3, 4, 65535], 0x00280006: [0, 1, 2, 65535], 0x00280010: [0, 1, 35, 37, 72, 4096, 8192, 8193, 65535],
         0x00280011: [0, 1, 49, 51, 100, 4096, 8192, 8193, 65535], 0x00280100: [0, 1, 4, 7, 8, 12, 16, 24, 32, 64, 65535],
         0x00280101: [0, 1, 7, 8, 9, 12, 16, 17, 65535], 0x00280102: [0, 7, 11, 15, 16, 65535], 0x00280103: [0, 1, 2]}
SYNTAXES = [b'1.2.840.10008.1.2' + s for s in (b'', b'.1', b'.2', b'.1.99', b'.5', b'.4.50', b'.4.51', b'.4.57', b'.4.70', b'.4.80', b'.4.81',
            b'.4.90', b'.4.91', b'.4.92', b'.4.93', b'.4.100', b'.4.102', b'.4.201', b'.4.202', b'.7', b'.8.1')] + [b'1.2.3', b'', b'x'*64]
PIXELS = 0x7FE00010

def element(box, tag):
    "The part with a tag, or None."
    want = struct.pack(box.order + 'HH', tag >> 16, tag & 0xFFFF)
    return next((p for p in box.parts if bytes(box.data[p[0]:p[0] + 4]) == want), None)

def set_value(box, tag, value):
    if (found := element(box, tag)) is None: return
    _, at, n, first, end = found
    box.put(at, n, len(value))
    box.data[first:end] = value

def odd_header(box, rng):
    "Attributes of the picture that say something absurd."
    for _ in range(rng.integers(1, 4)):
        tag = int(rng.choice([*WORDS, *TEXTS]))
        value = (WORDS | TEXTS)[tag][rng.integers(len((WORDS | TEXTS)[tag]))]
        set_value(box, tag, value + b' '*(len(value) % 2) if tag in TEXTS else struct.pack(box.order + 'H', value))

def other_syntax(box, rng):
    "Frames that are not what the transfer syntax says."
    if box.cover: return
    uid = SYNTAXES[rng.integers(len(SYNTAXES))]
    order, box.name = box.name, 'meta'
    set_value(box, 0x00020010, uid + b'\0'*(len(uid) % 2))
    box.name = order

def nested(box, rng):
    "Sequences within sequences, closed or not."
    depth, start = int(rng.choice([3, 50, 990, 5000, 40_000])), part(box, rng)[0]
    implicit, o = box.name.startswith('implicit'), box.order
    tag = struct.pack(o + 'HH', 0x0018, 0x6011) if rng.random() < .5 else struct.pack(o + 'HH', 0x0009, 0x1010)
    step = tag + (b'' if implicit else b'SQ\0\0') + b'\xff'*4 + struct.pack(o + 'HH', 0xFFFE, 0xE000) + b'\xff'*4
    close = struct.pack(o + 'HHLHHL', 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    box.data[start:start] = step*depth + close*(depth if rng.random() < .5 else 0)

def items(box):
    "Items of encapsulated pixels: (start, first byte, end)."
    if (pixels := element(box, PIXELS)) is None: return []
    mark = struct.pack(box.order + 'HH', 0xFFFE, 0xE000)
    return [(p[0], p[3], p[4]) for p in box.parts if p[0] >= pixels[3] and bytes(box.data[p[0]:p[0] + 4]) == mark]

def odd_items(box, rng):
    "Offset table and fragments that lie."
    found = items(box)
    if not found: return odd_header(box, rng)
    start, first, end = found[rng.integers(len(found))]
    what = rng.integers(6)
    if what == 0: box.put(first - 4, 4, rng.choice([*MORE, end - first + 2, max(end - first - 2, 0)]))
    elif what == 1:
        a = found[0]
        table = np.sort(rng.integers(0, 1 << int(rng.choice([8, 14, 32])), int(rng.choice([1, 3, 4, 5000]))).astype('<u4')).tobytes()
        box.data[a[0]:a[2]] = struct.pack('<HHL', 0xFFFE, 0xE000, len(table)) + table
    elif what == 2: del box.data[start:end]
    elif what == 3: box.data[start:start] = struct.pack('<HHL', 0xFFFE, 0xE000, 0)*int(rng.choice([1, 100, 100_000]))
    elif what == 4:
        at = int(rng.integers(first, end + 1))
        box.data[at:at] = struct.pack('<HHL', 0xFFFE, 0xE000, end - at)
    else: box.data[end:] = box.data[end:-8] if rng.random() < .5 else box.data[end:] + bytes(box.data[start:end])*5

def odd_stream(box, rng):
    "The first bytes of a compressed frame, where its own header is."
    found = [i for i in items(box) if i[2] - i[1] > 100]
    if not found: return odd_header(box, rng)
    _, first, end = found[rng.integers(len(found))]
    for _ in range(rng.integers(1, 4)):
        at = first + int(rng.integers(min(end - first, rng.choice([20, 60, 200, 1 << 20]))))
        n = int(rng.choice([1, 2, 4]))
        box.data[at:at + n] = struct.pack('>Q', int(rng.choice(MORE)))[-n:]

def great_picture(box, rng):
    "A small stream that says it is a huge picture, and a header that agrees."
    h, w = (int(x) for x in rng.choice([[4096, 4096], [8192, 8192], [65535, 65535], [8192, 1], [1, 65535], [4096, 2048]]))
    for p in items(box):
        for sof in (b'\xff\xc0', b'\xff\xc2', b'\xff\xc3', b'\xff\xf7'):
            at = box.data.find(sof, p[1], p[2])
            if at > 0: box.data[at + 5:at + 9] = struct.pack('>HH', h, w)
        if box.data[p[1]:p[1] + 2] == b'\xff\x4f':
            box.data[p[1] + 8:p[1] + 16] = struct.pack('>LL', w, h)
            if rng.random() < .7: box.data[p[1] + 24:p[1] + 32] = struct.pack('>LL', w, h)
    set_value(box, 0x00280010, struct.pack(box.order + 'H', h))
    set_value(box, 0x00280011, struct.pack(box.order + 'H', w))

def odd_region(box, rng):
    "Numbers of the screen areas, which lie at the start of the data set."
    at = box.data.find(b'\x18\0\x18\x60')
    if at < 0: return odd_header(box, rng)
    for _ in range(4):
        p = at + int(rng.integers(220))
        if p + 8 <= len(box.data): box.data[p:p + 4] = struct.pack('<L', int(rng.choice(MORE)))

def inflating(box, rng):
    "A small deflated data set that has no end."
    if not box.cover: return nested(box, rng)
    box.data[:] = box.data + bytes(int(rng.choice([1 << 20, 1 << 26])))


# AVI, MP4

def odd_video_header(box, rng):
    "Sizes, rates and counts of a video's header."
    names = b'avih strh strf idx1 mvhd tkhd mdhd stsz stts stsc stco ctts stss elst avc1 mp4v avcC trun tfhd trex'.split()
    at = 0 if box.form == 'avi' else 4
    found = [p for p in box.parts if box.data[p[0] + at:p[0] + at + 4] in names]
    if not found: return lie(box, rng)
    for _ in range(rng.integers(1, 4)):
        *_, first, end = found[rng.integers(len(found))]
        if end - first < 4: continue
        at = first + int(rng.integers((end - first)//2))*2
        box.put(at, int(rng.choice([2, 4])), rng.choice(MORE))

def other_codec(box, rng):
    "Packets that are not what the header says."
    codes = b'MJPG H264 FFV1 XVID cvid MPNG HFYU av01 hev1 avc1 mp4v jpeg tscc FLV1 VP80 CRAM'.split()
    new = codes[rng.integers(len(codes))]
    for old in (b'MJPG', b'FMP4', b'I420', b'avc1', b'mp4v', b'jpeg'):
        at = -1
        while (at := box.data.find(old, at + 1)) >= 0 and rng.random() < .8: box.data[at:at + 4] = new

def great_frame(box, rng):
    "A frame size that the packets do not have."
    h, w = (int(x) for x in rng.choice([[8192, 8192], [16384, 16384], [65535, 65535], [0, 0], [2, 65535]]))
    if box.form == 'mp4':
        for p in box.parts:
            if box.data[p[0] + 4:p[0] + 8] in (b'avc1', b'mp4v', b'jpeg'): box.data[p[0] + 32:p[0] + 36] = struct.pack('>HH', w, h)
    else:
        at = box.data.find(b'strf')
        if at > 0: box.data[at + 12:at + 20] = struct.pack('<LL', w, h)
    at = -1
    while (at := box.data.find(b'\xff\xc0', at + 1)) > 0: box.data[at + 5:at + 9] = struct.pack('>HH', h, w)

def odd_packet(box, rng):
    "Scribbles where the pictures are."
    at = max(box.data.find(b'movi' if box.form == 'avi' else b'mdat'), 0)
    for _ in range(rng.integers(1, 20) if len(box.data) > at else 0): box.data[int(rng.integers(at, len(box.data)))] = rng.integers(256)

def deep_boxes(box, rng):
    depth = int(rng.choice([5, 100, 5000]))
    start = part(box, rng)[0]
    if box.form == 'avi': box.data[start:start] = b''.join(struct.pack('<4sL4s', b'LIST', 12*(depth - i), b'rec ') for i in range(depth))
    else: box.data[start:start] = b''.join(struct.pack('>L', 8*(depth - i)) + b'moov' for i in range(depth))

def many_chunks(box, rng):
    "Empty parts without number."
    start, n, kind = part(box, rng)[0], int(rng.choice([1000, 200_000])), b'00dc JUNK ix00 LIST'.split()[rng.integers(4)]
    box.data[start:start] = (kind + b'\0\0\0\0' if box.form == 'avi' else b'\0\0\0\x08free')*n


# NIfTI

REALS = [np.nan, np.inf, -np.inf, -1, 0, 1e-30, 1e30, .5, 1e9]
VOLUMES = [(8192, 8192, 1), (30_000, 30_000, 9000), (1, 1, 32767), (4096, 4096, 16), (2, 2, 32767), (0, 5, 5), (-1, 1, 1), (8192, 1, 30_000)]

def odd_field(box, rng):
    "A header field with a number that no echo has."
    for _ in range(rng.integers(1, 4)):
        _, at, n, *_ = part(box, rng)
        if n < 4 or rng.random() < .5: box.put(at, n, rng.choice(MORE))
        else: box.data[at:at + n] = struct.pack('<f' if n == 4 else '<d', rng.choice(REALS))

def other_type(box, rng):
    two = box.name == 'two.nii'
    box.put(12 if two else 70, 2, rng.choice([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 9999]))

def great_volume(box, rng):
    dims = VOLUMES[rng.integers(len(VOLUMES))]
    if box.name == 'two.nii': box.data[16:48] = struct.pack('<4q', 3, *(x << 16*(rng.random() < .3) for x in dims))
    else: box.data[40:48] = struct.pack(box.order + '4h', 3, *dims)

def bomb(box, rng):
    "Zeros without end in a small file; the header believes in them."
    great_volume(box, rng)
    box.level = 31
    mega = gzip.compress(bytes(1 << 20))*int(rng.choice([16, 300, 1500]))
    box.packed = lambda rng: gzip.compress(bytes(box.data)) + mega

def odd_gzip(box, rng):
    box.level = 31
    good, kind = gzip.compress(bytes(box.data)), rng.integers(4)
    bad = [good[:int(rng.integers(len(good)))], good + rng.bytes(50), good[:-8] + rng.bytes(8), good[:10] + rng.bytes(len(good))][kind]
    box.packed = lambda rng: bad


ANY = [flip, scribble, number, cut, cut_at_part, lie, drop, double, fill, swap, splice, repeat, noise]
OF = {'dicom': [odd_header, odd_header, other_syntax, nested, odd_items, odd_items, odd_stream, odd_stream, great_picture, odd_region,
                inflating, lie, cut_at_part, flip],
      'avi': [odd_video_header, odd_video_header, other_codec, great_frame, odd_packet, deep_boxes, many_chunks, lie, cut_at_part],
      'mp4': [odd_video_header, odd_video_header, other_codec, great_frame, odd_packet, deep_boxes, many_chunks, lie, cut_at_part],
      'nifti': [odd_field, odd_field, other_type, great_volume, bomb, odd_gzip, lie, cut]}


# folders

def hostile_folder(rng, folder):
    "A file set that points elsewhere, loops, or names what no file system has."
    root = Path(folder)/'set'
    root.mkdir()
    name, good = corpus('dicom')[rng.integers(len(corpus('dicom')))]
    (root/'GOOD').write_bytes(good)
    what = ['file set', 'loops', 'names', 'kinds'][rng.integers(4)]
    if what == 'file set': return file_set(rng, root), 'folder', 'file set'
    if what == 'loops':
        (root/'self').symlink_to('self')
        (root/'up').symlink_to(root.parent)
        (root/'here').symlink_to(root)
        for i in range(int(rng.choice([1, 40]))): (root/f'chain{i}').symlink_to(f'chain{i + 1}')
        (root/'null.dcm').symlink_to('/dev/zero')
    elif what == 'names':
        for bad in (b'a\nb.dcm', b'\xff\xfe.dcm', b'-rf.dcm', b'\x1b[31m.dcm', b'<b>.avi', b'x'*250 + b'.dcm', '\u202egnp.dcm'.encode()):
            (root/bad.decode(errors='surrogateescape')).write_bytes(good[:int(rng.integers(len(good)))] if rng.random() < .7 else good)
    else:
        os.mkfifo(root/'pipe.dcm')
        (root/'folder.dcm').mkdir()
        (root/'DICOMDIR').mkdir()
        (root/'empty.nii.gz').touch()
        (root/'tiny.mp4').write_bytes(b'\0\0\0\x08ftyp')
        (root/'short.avi').write_bytes(b'RIFF\0\0\0\0AVI ')
    return root, 'folder', what

NAMES = ['GOOD', '..\\..\\..\\etc\\passwd', '/etc/passwd', '..', '.', '', 'GOOD\\GOOD', 'a\0b', 'x'*5000, 'loop', 'DICOMDIR', '\\',
         'C:\\windows', 'LOST']

def file_set(rng, root):
    (root/'loop').symlink_to('loop')
    records = b''
    for i in rng.integers(len(NAMES), size=int(rng.choice([1, 3, 3000]))):
        name = NAMES[int(i) if rng.random() < .3 else 0].encode()
        name += b' '*(len(name) % 2)
        item = struct.pack('<HH2sH', 4, 0x1500, b'CS', len(name)) + name
        records += struct.pack('<HHL', 0xFFFE, 0xE000, len(item)) + item
    meta = struct.pack('<HH2sH', 2, 0x10, b'UI', 20) + b'1.2.840.10008.1.2.1\0'
    body = struct.pack('<HH2sHL', 4, 0x1220, b'SQ', 0, len(records)) + records
    data = bytearray(bytes(128) + b'DICM' + meta + body)
    box = Box('dicom', 'explicit', bytes(data))
    if rng.random() < .5: ANY[rng.integers(len(ANY))](box, rng)
    if rng.random() < .2: nested(box, rng)
    (root/'DICOMDIR').write_bytes(bytes(box.data))
    return root/'DICOMDIR'
