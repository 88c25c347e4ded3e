"Run notebooks in two processes, print the time of each, and end on the line that CI reads. `--flags slow` runs slow cells too."
import argparse
import os
import sys
from pathlib import Path

from fastcore.parallel import parallel
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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('notebooks', nargs='*', help='default: all')
    parser.add_argument('--flags', nargs='*', default=[], help='run cells with these flags too: slow, cuda, hub')
    args = parser.parse_args()
    cfg = get_config()
    found = [Path(p).absolute() for p in args.notebooks] or [p.absolute() for p in sorted(nbglob(cfg.nbs_path, as_path=True))]
    run = [p for p in found if not (p.parent/'.notest').exists() and not skipped(p)]
    os.chdir(cfg.nbs_path)
    results = parallel(test_nb, run, skip_flags=cfg.tst_flags, force_flags=args.flags, basepath=cfg.config_path, n_workers=2,
                       cell_timeout=cfg.cell_timeout)
    for path, (ok, seconds) in zip(run, results, strict=True): print(f"{'ok  ' if ok else 'FAIL'} {seconds:6.1f} s  {path.name}")
    for path in sorted({*found} - {*run}): print(f'skip           {path.name}')
    bad = sum(not ok for ok, _ in results)
    print(f'{len(run) - bad} passed, {bad} failed')
    return bad > 0


if __name__ == '__main__': sys.exit(main())
