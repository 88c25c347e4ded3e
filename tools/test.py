"Run all quick or all slow checks, whatever fails, and end on one line: N passed, N failed."
import re
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

root = Path(__file__).resolve().parent.parent
scripts = Path(sysconfig.get_path('scripts'))
pytest = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'tests', '-m']

STAGES = {
    'quick': {
        'notebooks and modules in sync': [sys.executable, 'tools/sync.py'],
        'ruff': [scripts/'ruff', 'check', '.'],
        'floors': [scripts/'lint-imports', '--no-cache'],
        'README current': [sys.executable, 'tools/readme.py', '--check'],
        'notebooks': [sys.executable, 'tools/test_notebooks.py'],
        'pytest': [*pytest, 'not slow']},
    'slow': {
        'pytest, slow': [*pytest, 'slow'],
        'docs': [sys.executable, 'tools/docs.py'],
        'wheel': [sys.executable, 'tools/wheel.py']}}
NO_TESTS = 5


def counts(lines, code):
    "Passed and failed: summed where the stage counts its tests, else one for the stage."
    found = re.findall(r'(\d+) (passed|failed|error)', lines[-1] if lines else '')
    passed = sum(int(n) for n, what in found if what == 'passed')
    failed = sum(int(n) for n, what in found if what != 'passed')
    if code == NO_TESTS and not failed: return passed, 0
    if code and not failed: failed = 1
    return (passed, failed) if passed or failed else (1, 0)


def run(name, command):
    print(f'== {name}', flush=True)
    start, lines = time.time(), []
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace') as process:
        for line in process.stdout:
            print(line, end='', flush=True)
            if line.strip(): lines.append(line)
    passed, failed = counts(lines, process.returncode)
    print(f"-- {name}: {'FAILED' if failed else 'ok'}, {time.time() - start:.0f} s\n", flush=True)
    return passed, failed


if __name__ == '__main__':
    results = {name: run(name, command) for name, command in STAGES[sys.argv[1]].items()}
    for name, (_, wrong) in results.items():
        if wrong: print(f'FAILED {name}')
    passed, failed = (sum(r[i] for r in results.values()) for i in (0, 1))
    print(f'{passed} passed, {failed} failed')
    sys.exit(failed > 0)
