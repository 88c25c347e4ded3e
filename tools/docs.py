"""Build the documentation site into _docs without quarto, and fail on broken links.

Modules import heavy packages only where they are used, but nbdev evaluates all annotations: what a module imports under
TYPE_CHECKING is put among the builtins of the one process that renders the pages."""
import json
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

root = Path(__file__).resolve().parent.parent
scripts = Path(sysconfig.get_path('scripts'))

PROC = '''
import ast, builtins, pathlib
from nbdev.quarto import _pre_docs
for path in pathlib.Path('echo_lit').rglob('*.py'):
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING':
            exec(ast.unparse(node.body), vars(builtins))
_pre_docs(n_workers=0)
'''


def output_name(path):
    "File name that nbdev's links expect: its `output-file` where it sets one."
    first = json.loads(path.read_text(encoding='utf-8'))['cells'][:1]
    name = re.search(r'^output-file:\s*(\S+)\.html', ''.join(first[0]['source']), re.M) if first else None
    return f'{name[1]}.ipynb' if name else path.name


def stage(folder):
    "Rename pages to their output names, in the files and in every link."
    names = {p.name: output_name(p) for p in folder.rglob('*.ipynb')}
    pattern = re.compile('|'.join(rf'(?<![\w.-]){re.escape(a)}' for a in sorted(names, key=len, reverse=True)))
    for path in sorted(folder.rglob('*.ipynb')): path.rename(path.with_name(names[path.name]))
    for path in [*folder.rglob('*.ipynb'), *folder.glob('*.yml')]:
        text = path.read_text(encoding='utf-8')
        text = re.sub(r'"output-file: [^"]*\\n",?\s*|output-file: [^"\\]*\\n', '', text)
        path.write_text(pattern.sub(lambda m: names[m[0]], text), encoding='utf-8')


if __name__ == '__main__':
    proc, out = root/'_proc', root/'_docs'
    for folder in (proc, out): shutil.rmtree(folder, ignore_errors=True)
    done = subprocess.run([sys.executable, '-c', PROC], cwd=root, capture_output=True, text=True)
    if done.returncode or not proc.exists(): sys.exit(f'processing the notebooks failed:\n{done.stderr[-3000:]}')
    stage(proc)
    for command in ('render', 'check'):
        done = subprocess.run([scripts/'smalldocs', command, proc], cwd=root, capture_output=True, text=True)
        if done.returncode: sys.exit(f'{done.stdout}{done.stderr}\nsmalldocs {command} failed')
    (proc/'_docs').rename(out)
    print(f'{len(list(out.rglob("*.html")))} pages in _docs')
