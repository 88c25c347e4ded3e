"""Run notebooks, two at a time, each in a process of its own; end on the line that CI reads. `--flags slow` runs slow cells too.

A notebook that does not end within `--limit` seconds is stopped, and says where each of its threads stood."""
import argparse
import faulthandler
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastcore.script import str2bool
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor
from nbdev.test import test_nb


def skipped(path):
    proc = NBProcessor(path, procs=FrontmatterProc)
    proc.process()
    return str2bool(proc.nb.frontmatter_.get('skip_exec', False))


def run_here(path, flags, limit):
    "Run one notebook in this process; True if all of it passed."
    faulthandler.dump_traceback_later(limit, exit=True)
    cfg = get_config()
    os.chdir(cfg.nbs_path)
    ok, _ = test_nb(path, skip_flags=cfg.tst_flags, force_flags=flags, basepath=cfg.config_path, cell_timeout=cfg.cell_timeout)
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(not ok)          # threads or workers that a library left behind cannot hold it


def run(path, flags, limit):
    "Run one notebook in a fresh process: (passed, line to print)."
    command = [sys.executable, __file__, '--here', '--limit', str(limit), '--flags', *flags, '--', str(path)]
    start = time.time()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, 'OMP_NUM_THREADS': '1'}, start_new_session=True) as process:
        try: code = process.wait(limit + 30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            code = process.wait()
    print(f"{'FAIL' if code else 'ok  '} {time.time() - start:6.1f} s  {path.name}", flush=True)
    return code == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('notebooks', nargs='*', type=Path, help='default: all')
    parser.add_argument('--flags', nargs='*', default=[], help='run cells with these flags too: slow, cuda, hub')
    parser.add_argument('--limit', type=int, default=300, help='seconds for one notebook')
    parser.add_argument('--here', action='store_true', help='run one notebook in this very process')
    args = parser.parse_args()
    if args.here: run_here(args.notebooks[0], args.flags, args.limit)
    found = [p.absolute() for p in args.notebooks] or [p.absolute() for p in sorted(nbglob(get_config().nbs_path, as_path=True))]
    todo = [p for p in found if not (p.parent/'.notest').exists() and not skipped(p)]
    for path in sorted({*found} - {*todo}): print(f'skip           {path.name}', flush=True)
    with ThreadPoolExecutor(2) as pool: results = list(pool.map(lambda p: run(p, args.flags, args.limit), todo))
    print(f'{sum(results)} passed, {len(results) - sum(results)} failed')
    return not all(results)


if __name__ == '__main__': sys.exit(main())
