"""32 frames of an 850-frame cine of 708 by 1016 pixels: few bytes read, little memory. Run as a script to time it beside pydicom."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from pydicom import dcmread
from pydicom.encaps import encapsulate

from echo_lit.data.cine import read_cine, write_dicom
from echo_lit.data.phantom import phantom_clip, random_heart

FRAMES, HEIGHT, WIDTH, WANTED = 850, 708, 1016, 32
CHILD = """
import re, sys, time
import numpy as np
from {module} import {name}
peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])/1024
base, start = peak(), time.process_time()
{work}
print(time.process_time() - start, peak() - base)
"""
OURS = """x = read_cine(sys.argv[1])[np.linspace(0, {last}, {wanted}).astype(int)]
assert x.shape == ({wanted}, {h}, {w}, 3)"""
THEIRS = "x = pixel_array(sys.argv[1]); assert len(x) == {n}"


def long_cine(path, n=FRAMES):
    "A beating heart, repeated: each frame a JPEG of the size that scanners write."
    beat = phantom_clip(random_heart(1), 'a4c', seed=1, seconds=.2, fps=50, height=700)[:]
    pad = np.zeros((len(beat), HEIGHT, WIDTH, 3), np.uint8)
    pad[:, :beat.shape[1], :beat.shape[2]] = beat
    write_dicom(path, pad[:1], 50)
    jpegs = [simplejpeg.encode_jpeg(f, 92, 'RGB', '422') for f in pad]
    ds = dcmread(path)
    ds.NumberOfFrames, ds.PixelData = n, encapsulate([jpegs[i % len(jpegs)] for i in range(n)])
    ds.save_as(path)
    return path

def measured(path, module, name, work):
    "CPU seconds, and MB above the interpreter with its imports, in a process of its own."
    done = subprocess.run([sys.executable, '-c', CHILD.format(module=module, name=name, work=work), str(path)], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return [float(v) for v in done.stdout.split()]

def ours(path, n=FRAMES):
    return measured(path, 'echo_lit.data.cine', 'read_cine', OURS.format(last=n - 1, wanted=WANTED, h=HEIGHT, w=WIDTH))

@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='peak memory is read from /proc')
def test_memory_of_sampled_frames(tmp_path):
    path = long_cine(tmp_path/'long.dcm')
    assert len(read_cine(path)) == FRAMES
    assert ours(path)[1] < 300

if __name__ == '__main__':
    folder, some = Path(sys.argv[1]), 100
    rows = [('read_cine', *ours(long_cine(folder/'long.dcm')))]
    seconds, megabytes = measured(long_cine(folder/'short.dcm', some), 'pydicom.pixels', 'pixel_array', THEIRS.format(n=some))
    rows.append((f'pixel_array, {some} frames by {FRAMES/some:g}', seconds*FRAMES/some, megabytes*FRAMES/some))
    for who, seconds, megabytes in rows: print(f'{who}: {seconds:.2f} CPU s, {megabytes:.0f} MB')
