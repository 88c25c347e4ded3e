"Build the wheel, install it in a bare environment outside the clone, import every module and load the embedded model."
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
PROBE = '''
import importlib, pkgutil, sys
root = sys.argv[1]
def watch(event, args):
    if event == 'open' and isinstance(args[0], str) and args[0].startswith(root + '/'):
        if not args[0].startswith(root + '/.venv/'): sys.exit(f'a file was taken from the clone: {args[0]}')
sys.addaudithook(watch)
import echo_lit
names = [m.name for m in pkgutil.walk_packages(echo_lit.__path__, 'echo_lit.')]
for name in names: importlib.import_module(name)
stray = [m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'echo_lit' and not m.__file__.startswith(sys.prefix)]
if stray: sys.exit(f'not from the wheel: {stray}')
from echo_lit.models.hub import load_model
bundle = load_model('phantom-tiny')
print(f'{len(names)} modules imported from the wheel, {bundle.name} loaded')
'''


def build(out):
    "Wheel of a copy, so that nothing stale in build/ gets in."
    copy = out/'source'
    copy.mkdir()
    shutil.copytree(root/'echo_lit', copy/'echo_lit', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'settings.ini', 'setup.py', 'constraints.txt', 'MANIFEST.in', 'README.md', 'LICENSE'): shutil.copy(root/name, copy)
    subprocess.run([sys.executable, '-m', 'pip', '-q', 'wheel', '--no-deps', '--no-build-isolation', '-w', out, copy], check=True)
    return next(out.glob('*.whl'))


def main(out):
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'VIRTUAL_ENV')}
    subprocess.run([sys.executable, '-m', 'venv', out/'bare'], check=True)
    python = out/'bare/bin/python'
    wheel = build(out)
    subprocess.run([python, '-m', 'pip', '-q', '--disable-pip-version-check', 'install', '--no-deps', wheel], check=True, env=env)
    site = subprocess.check_output([python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'], text=True, env=env).strip()
    (Path(site)/'dependencies.pth').write_text('\n'.join(p for p in sys.path if p.endswith('site-packages')))
    print(f'{wheel.name}: {wheel.stat().st_size/1e6:.1f} MB')
    return subprocess.run([python, '-c', PROBE, root], cwd=out, env=env).returncode


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as tmp: sys.exit(main(Path(tmp).resolve()))
