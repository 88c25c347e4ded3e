"""Read hostile files in child processes and hold the library to its promises.

    python tests/fuzz/run.py --count 10000            # inputs 0 to 9,999; ends non-zero on any violation
    python tests/fuzz/run.py --replay 1234            # one input, in this process, with its file kept

Of each input: nothing but an EchoError of one line leaves the readers; `len(clip[idx]) == len(idx)`; each frame that the clip counts
is there, read alone as in a run; what the clip counts agrees with a count made by other means; a study lists each file or says why
not; 5 seconds and 1 GB above the interpreter are never passed; no codec takes the process down. Seconds are of processor time, so
that a busy machine raises no alarm; a process that waits for PATIENCE seconds by the clock is stopped too."""
import argparse
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from mutate import CORPUS, make  # noqa: E402

SECONDS, MEGABYTES, RECYCLE = 5, 1000, 400
PATIENCE = 120
MANY = 200_000_000
MEDIA = {'avi', 'mp4'} # FFmpeg refuses by this name what it takes for too much, and takes nothing


class Violation(Exception): "A promise that was not kept."

def require(ok, what):
    if not ok: raise Violation(what)

def one_line(e):
    text = str(e)
    require(text and text.isprintable() and len(text) <= 300, f'an error that is not one line: {text!r}')
    require('MemoryError' not in text or MEDIA & set(re.split(r'\W', text)), f'asked for more memory than there is: {text}')
    return text


# the promises

def checked(read):
    "What was read, or the error if it is one that may be."
    from echo_lit.core import EchoError
    try: return read(), None
    except EchoError as e: return None, one_line(e)

def check_file(path, rng):
    from echo_lit.data.cine import file_kind, read_cine
    clip, wrong = checked(lambda: read_cine(path))
    if wrong: return 'refused'
    n, frame = len(clip), clip.height*clip.width*3
    require(n >= 1 and clip.fps is None or 1 <= clip.fps <= 2000, f'{n} frames, {clip.fps} frames per second')
    require(clip.cm_per_px is None or all(0 < s < 1 for s in clip.cm_per_px), f'a scale of {clip.cm_per_px}')
    require(all(r.x1 <= clip.width and r.y1 <= clip.height for r in clip.regions), f'regions {clip.regions}')
    some = rng.integers(-n, n, max(1, min(5, MANY//frame//4)))
    lost = None
    for idx, t in ((some, len(some)), (some[:1], 1), ([], 0), (np.arange(n) == n - 1, 1)):
        x, lost = checked(lambda: clip[idx])
        if lost: return 'opened, frames damaged'
        require(len(x) == t and x.dtype == np.uint8, f'{t} frames asked for, {len(x)} {x.dtype} came')
        require(x.shape[1:] == (clip.height, clip.width, 3), f'frames of {x.shape}')
    if n*frame > MANY: return 'read'
    whole, lost = checked(lambda: clip[:])
    if lost: return 'opened, frames damaged'
    require(len(whole) == n, f'{len(whole)} of {n} frames')
    kind = file_kind(path)
    if kind in ('dicom', 'nifti') or 'motion JPEG' in clip.colour_source:
        require(np.array_equal(clip[some], whole[some]), 'frames read alone differ from frames read in a run')
    count_again(path, kind, clip)
    return 'read'

def count_again(path, kind, clip):
    "The number of frames by other means than the reader's."
    n, data = len(clip), path.read_bytes()
    if kind == 'nifti':
        held = unpacked_bytes(data, n*clip.height*clip.width)
        require(n*clip.height*clip.width <= held, f'{n} frames of {clip.height} by {clip.width} in {held} bytes')
    elif kind == 'dicom' and n > 1 and b'\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff' in data:
        items = data.count(b'\xfe\xff\0\xe0')
        require(n <= items, f'{n} frames in {items} items')
    elif kind in ('avi', 'mp4'):
        shown = decoded_in_order(path)
        require(shown is None or shown <= n, f'{n} frames, {shown} by decoding from the first to the last')

def unpacked_bytes(data, enough):
    "Bytes that can be had, counted until there are enough."
    held, left = 0, data
    if data[:2] != b'\x1f\x8b': return len(data)
    while left[:2] == b'\x1f\x8b' and held < enough:
        pump = zlib.decompressobj(31)
        try:
            while left and not pump.eof and held < enough:
                held += len(pump.decompress(left, 4096))
                left = pump.unconsumed_tail
        except zlib.error: break
        left = pump.unused_data
    return held

def decoded_in_order(path):
    "Frames that whole packets give, from the first to the last."
    import av
    try:
        with av.open(str(path)) as box: return sum(len(p.decode()) for p in box.demux(video=0) if not p.is_corrupt)
    except (av.error.FFmpegError, OSError, ValueError, TypeError, IndexError): return None

def check_folder(path):
    from echo_lit.data.manifest import scan
    from echo_lit.data.study import open_study
    study, wrong = checked(lambda: open_study(path))
    if path.is_dir():
        table, lost = checked(lambda: scan(path))
        require(lost or table.exclude_reason[table.excluded].str.len().gt(5).all(), 'a file was excluded without a reason')
    if wrong: return 'refused'
    require(len(study) and all(one_line(f.reason) for f in study.failures), 'a study without clips')
    require(all('\n' not in x.clip + x.reason for x in (*study.failures, *study.set_aside)), 'a label of two lines')
    study.table()
    return 'read'

def check(number, folder):
    "Format, what was done, and the outcome of one input."
    path, form, done = make(number, folder)
    rng = np.random.default_rng(number)
    outcome = check_folder(path) if form == 'folder' else check_file(path, rng)
    if form != 'folder' and number % 4 == 0: check_folder(path if number % 8 else path.parent)
    return form, done, outcome


# the child

def status(field): return next(int(x.split()[1])//1024 for x in Path('/proc/self/status').read_text().splitlines() if x.startswith(field))

def child():
    "Read numbers from standard input, and answer each with a line of JSON."
    out, sys.stdout = sys.stdout, sys.stderr
    from echo_lit.data.study import open_study
    checked(lambda: open_study(CORPUS))
    base = status('VmRSS')
    resource.setrlimit(resource.RLIMIT_AS, ((status('VmSize') << 20) + (3 << 30),)*2)
    for line in sys.stdin:
        folder, start, clock = tempfile.mkdtemp(dir=sys.argv[2]), time.process_time(), time.time()
        Path('/proc/self/clear_refs').write_text('5')
        answer = {'number': int(line)}
        try: answer |= dict(zip(('format', 'done', 'outcome'), check(int(line), folder)))
        except Violation as e: answer['violation'] = str(e)
        except Exception as e: answer['violation'] = f'{type(e).__name__} came through: {str(e)[:200]}'
        answer |= {'seconds': time.process_time() - start, 'clock': time.time() - clock, 'megabytes': status('VmHWM') - base}
        shutil.rmtree(folder)
        print(json.dumps(answer), file=out, flush=True)


# the parent

class Child:
    "A process that reads hostile files, watched."
    def __init__(self, folder):
        self.done, self.line = 0, b''
        self.process = subprocess.Popen([sys.executable, __file__, '--child', str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        self.number = None

    def give(self, number):
        self.number, self.done, self.since, self.used = number, self.done + 1, time.time(), None
        self.process.stdin.write(f'{number}\n'.encode())
        self.process.stdin.flush()

    def busy(self):
        "Processor seconds since the input was given."
        try: fields = Path(f'/proc/{self.process.pid}/stat').read_text().rsplit(') ', 1)[1].split()
        except OSError: return 0.
        now = (int(fields[11]) + int(fields[12]))/os.sysconf('SC_CLK_TCK')
        if self.used is None: self.used = now
        return now - self.used

    def answer(self):
        "The answer, a violation, or None while it works."
        if select.select([self.process.stdout], [], [], 0)[0]:
            line = self.process.stdout.readline()
            if line: return json.loads(line)
            code = self.process.wait()
            name = signal.Signals(-code).name if code < 0 else f'exit {code}'
            return {'number': self.number, 'violation': f'the process died ({name})'}
        if self.done > 1 and self.busy() > 2*SECONDS or time.time() - self.since > PATIENCE:
            self.process.kill()
            self.process.wait()
            return {'number': self.number, 'violation': f'more than {SECONDS} seconds'}

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def judged(answer):
    "The answer, with a violation where a limit was passed."
    if 'violation' not in answer:
        if answer['seconds'] > SECONDS: answer['violation'] = f'{answer["seconds"]:.1f} seconds'
        elif answer['megabytes'] > MEGABYTES: answer['violation'] = f'{answer["megabytes"]} MB'
    return answer

def run(numbers, workers=2, progress=lambda answers: None):
    "The answers to all numbers, in the order in which they came."
    todo, answers = iter(numbers), []
    with tempfile.TemporaryDirectory(prefix='fuzz') as folder:
        children = [Child(folder) for _ in range(workers)]
        for c in children: c.number = next(todo, None)
        for c in children:
            if c.number is not None: c.give(c.number)
        while any(c.number is not None for c in children):
            busy = [c.process.stdout for c in children if c.number is not None]
            select.select(busy, [], [], .5)
            for i, c in enumerate(children):
                if c.number is None or (answer := c.answer()) is None: continue
                answers.append(judged(answer))
                progress(answers)
                if c.process.poll() is not None or c.done >= RECYCLE:
                    c.close()
                    children[i] = c = Child(folder)
                c.number = next(todo, None)
                if c.number is not None: c.give(c.number)
        for c in children: c.close()
    return answers

def table(answers):
    "Inputs by format and outcome."
    count = Counter((a.get('format', '?'), 'VIOLATION' if 'violation' in a else a['outcome']) for a in answers)
    forms, outcomes = ('dicom', 'avi', 'mp4', 'nifti', 'folder', '?'), ('refused', 'opened, frames damaged', 'read', 'VIOLATION')
    rows = [f'{"":8}' + ''.join(f'{o:>24}' for o in outcomes)]
    rows += [f'{f:8}' + ''.join(f'{count[f, o]:>24,}' for o in outcomes) for f in forms if any(count[f, o] for o in outcomes)]
    slow, clock, big = (max(a.get(k, 0) for a in answers) for k in ('seconds', 'clock', 'megabytes'))
    most = f'slowest {slow:.1f} s of processor time, {clock:.1f} s by the clock; most memory {big} MB above the interpreter'
    return '\n'.join([*rows, f'{len(answers):,} inputs; {most}'])


if __name__ == '__main__':
    if sys.argv[1:2] == ['--child']: sys.exit(child())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--count', type=int, default=10_000)
    parser.add_argument('--start', type=int, default=0)
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--replay', type=int)
    a = parser.parse_args()
    if a.replay is not None:
        folder = tempfile.mkdtemp(prefix=f'fuzz-{a.replay}-')
        print(folder)
        print(check(a.replay, folder))
        sys.exit()
    def progress(answers):
        if 'violation' in answers[-1]: print(f'{answers[-1]["number"]}: {answers[-1]["violation"]}', flush=True)
        if len(answers) % 1000 == 0: print(f'{len(answers):,} of {a.count:,}', flush=True)
    answers = run(range(a.start, a.start + a.count), a.workers, progress)
    print(table(answers))
    sys.exit(any('violation' in x for x in answers) or len(answers) != a.count)
