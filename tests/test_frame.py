"The frame of the project: light import, sidebar, requirements, and the checks themselves."
import ast
import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml


def python(*args, **kw): return subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, **kw)


def test_import_is_light(root):
    heavy = "[m for m in ('torch', 'pandas', 'fastai', 'transformers', 'cv2', 'faiss', 'matplotlib') if m in sys.modules]"
    done = python('-c', f'import echo_lit, sys; dir(echo_lit); print({heavy})', cwd=root)
    assert done.stdout.strip() == '[]', done.stderr


def test_floor_zero_is_light(root):
    heavy = "[m for m in ('torch', 'pandas', 'fastai') if m in sys.modules]"
    done = python('-c', f'import echo_lit.core, echo_lit.vocabulary, echo_lit.evaluate.metrics, sys; print({heavy})', cwd=root)
    assert done.stdout.strip() == '[]', done.stderr


def test_top_level_names():
    import echo_lit
    assert {'open_study', 'Interpreter', 'load_model', 'read_cine'} <= set(dir(echo_lit))
    for name in echo_lit.__all__: assert getattr(echo_lit, name) is not None
    with pytest.raises(AttributeError, match='no attribute'): _ = echo_lit.nothing_of_the_kind


def notebooks(root): return sorted(str(p.relative_to(root/'nbs')) for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)


def test_sidebar_lists_every_notebook_in_order(root):
    contents = yaml.safe_load((root/'nbs/_quarto.yml').read_text())['website']['sidebar']['contents']
    listed = [page for item in contents for page in ([item] if isinstance(item, str) else item['contents'])]
    numbered = [page for page in listed if page[0].isdigit()]
    assert sorted(listed) == notebooks(root)
    assert numbered == sorted(numbered)


def test_notebooks_import_only_lower_numbers(root):
    import json
    order = {}
    for name in notebooks(root):
        cells = json.loads((root/'nbs'/name).read_text())['cells']
        source = '\n'.join(''.join(c['source']) for c in cells)
        found = re.search(r'^#\|\s*default_exp\s+(\S+)', source, re.M)
        if found: order[f'echo_lit.{found[1]}'] = name
    wrong = []
    for module, name in order.items():
        path = root/(module.replace('.', '/') + '.py')
        for node in ast.parse(path.read_text()).body:
            for used in imported(node, module):
                if used in order and order[used] > name: wrong.append(f'{name} imports {order[used]}')
    assert not wrong


def imported(node, module):
    if isinstance(node, ast.Import): return [a.name for a in node.names]
    if not isinstance(node, ast.ImportFrom): return []
    base = importlib.util.resolve_name('.'*node.level + (node.module or ''), module.rpartition('.')[0]) if node.level else node.module
    return [base, *(f'{base}.{a.name}' for a in node.names)]


def metadata(root):
    ini = configparser.ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini')
    return ini['DEFAULT'], tomllib.loads((root/'pyproject.toml').read_text())


def test_no_key_in_two_places(root):
    ini, toml = metadata(root)
    static = {*toml['project'], *toml['tool']['nbdev']} - {'dynamic'}
    assert not static & set(ini)
    assert not static & set(toml['project']['dynamic'])


def requirement_names(root, keys=('requirements', 'dev_requirements')):
    ini, _ = metadata(root)
    lines = [line for key in keys for line in ini[key].split('\n')]
    return {re.match(r'[\w.-]+', line.strip())[0].lower().replace('_', '-') for line in lines if line.strip()}


def test_each_requirement_is_pinned(root):
    pins = (root/'constraints.txt').read_text().split()
    assert requirement_names(root) <= {pin.split('==')[0].lower().replace('_', '-') for pin in pins}
    assert all('==' in pin for pin in pins)


def test_each_import_is_declared(root):
    package = {'cv2': 'opencv-python-headless', 'faiss': 'faiss-cpu', 'sklearn': 'scikit-learn', 'PIL': 'pillow', 'yaml': 'pyyaml',
               'open_clip': 'open-clip-torch'}
    used = set()
    for path in (root/'echo_lit').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import): used |= {a.name.split('.')[0] for a in node.names}
            if isinstance(node, ast.ImportFrom) and not node.level: used.add(node.module.split('.')[0])
    used -= {*sys.stdlib_module_names, 'echo_lit'}
    declared = requirement_names(root) | requirement_names(root, ('codecs_requirements',))
    assert {package.get(name, name).lower().replace('_', '-') for name in used} <= declared


@pytest.mark.parametrize('free_gb, stamped, code, line', [(3, False, 1, 'set-up: only 3 GB'), (3, True, 0, ''), (500, False, 1, 'could not make')])
def test_setup_stops_where_the_disk_is_full_and_not_where_all_is_there(root, tmp_path, free_gb, stamped, code, line):
    "With a disk that says so, and a Python that can make no environment."
    for name in ('tools/setup.sh', 'pyproject.toml', 'settings.ini', 'setup.py', 'constraints.txt'):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        shutil.copy(root/name, tmp_path/name)
    fakes = {'df': f'echo "Filesystem 1024-blocks Used Available"; echo "disk 0 0 {free_gb*1024**2}"',
             'python': f'[ "$1" = -m ] && exit 1; exec {sys.executable} "$@"'}
    for name, text in fakes.items():
        (tmp_path/name).write_text(f'#!/bin/sh\n{text}\n')
        (tmp_path/name).chmod(0o755)
    if stamped:
        key = re.search(r'^key=.*?\n(.*?)^PY$', (tmp_path/'tools/setup.sh').read_text(), re.M | re.S)[1]
        (tmp_path/'.venv/bin').mkdir(parents=True)
        (tmp_path/'.venv/bin/python').symlink_to(sys.executable)
        (tmp_path/'.venv/echo_lit.stamp').write_text(f'{python("-c", key, cwd=tmp_path).stdout.strip()} {tmp_path}\n')
    env = {k: v for k, v in os.environ.items() if k != 'ECHO_LIT_VENV_CACHE'} | {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'PYTHON': str(tmp_path/'python')}
    done = subprocess.run(['bash', 'tools/setup.sh'], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, line in done.stderr, len(done.stderr.splitlines())) == (code, True, code), done.stderr
    assert (tmp_path/'.venv').exists() == stamped
