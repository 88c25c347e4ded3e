"""A decoder whose threads hold packets that Python owns can wait for Python while Python waits for it. It happens now and then, when
reading ends before the video does, and then for ever; so it is tried often, in a process that may be stopped."""
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import echo_lit
from echo_lit.data.cine import write_video

READ_OFTEN = '''
import sys
import numpy as np
from echo_lit.data.video import packet_frames, packet_table, read_video
path = sys.argv[1]
table = packet_table(path)
assert table.direct
for i in range(60): assert packet_frames(path, table, np.array([11, i % 9])).shape == (2, 120, 160, 3)
clip = read_video(path)
for i in range(20): assert clip[[i]].shape == (1, 120, 160, 3)
'''

@pytest.fixture
def noise(tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (20, 120, 160, 1), dtype=np.uint8)
    return write_video(tmp_path/'noise.mp4', np.repeat(x, 3, -1), 25)


def test_reading_that_ends_early_never_hangs(noise):
    subprocess.run([sys.executable, '-c', READ_OFTEN, str(noise)], check=True, timeout=120)

def test_no_decoder_of_own_packets_has_frame_threads():
    "Wherever a packet is made from bytes, the decoder takes one packet at a time."
    made = [s for p in Path(echo_lit.__file__).parent.rglob('*.py') if 'av.Packet(' in (s := p.read_text())]
    assert len(made) == 2
    for s in made:
        for f in re.split(r'^def ', s, flags=re.M):
            if 'av.Packet(' in f: assert "'SLICE'" in f or 'thread_count = 1' in f
