"README.md from nbs/index.ipynb. With --check: say whether it is current."
import json
import re
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent


def parts(nb):
    for cell in nb['cells']:
        source = ''.join(cell['source']).strip()
        if cell['cell_type'] == 'markdown': yield source
        if cell['cell_type'] != 'code' or re.search(r'^#\|\s*hide\s*$', source, re.M): continue
        code = re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip()
        if code: yield f'```python\n{code}\n```'
        for output in cell['outputs']:
            data = output.get('data', {})
            text = ''.join(data.get('text/markdown') or data.get('text/plain') or output.get('text', [])).rstrip()
            if text: yield text if 'text/markdown' in data else '\n'.join('    ' + line for line in text.splitlines())


def readme():
    text = '\n\n'.join(parts(json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8')))) + '\n'
    return re.sub(r'\]\((?!https?:|#|/|\.\./)([^)]+)\)', r'](nbs/\1)', text).replace('](../', '](')


if __name__ == '__main__':
    path = root/'README.md'
    if '--check' not in sys.argv: path.write_text(readme(), encoding='utf-8')
    elif path.read_text(encoding='utf-8') != readme(): sys.exit('README.md differs from nbs/index.ipynb: run python tools/readme.py')
    else: print('README.md is current')
