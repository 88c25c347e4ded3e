"What `make lab` starts is JupyterLab on the notebooks, for its owner alone."
import json
import os
import signal
import socket
import subprocess
import sys
import time
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

import pytest

TOKEN = 'only-for-this-test'


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.fixture
def ask(root, tmp_path):
    "Asks the server that `make lab` started for a page; the server ends with the test."
    port, log = free_port(), tmp_path/'lab.log'
    flags = f'--no-browser --ip=127.0.0.1 --port={port} --ServerApp.port_retries=0 --IdentityProvider.token={TOKEN}'
    command = ['make', '--no-print-directory', '-o', 'setup', 'lab', f'python={sys.executable}', f'lab_flags={flags}']
    folders = {f'JUPYTER_{name}_DIR': str(tmp_path/name.lower()) for name in ('CONFIG', 'DATA', 'RUNTIME')}
    with log.open('w') as out:
        process = subprocess.Popen(command, cwd=root, env=os.environ | folders, stdout=out, stderr=out, start_new_session=True)
    opener = build_opener(ProxyHandler({}))

    def page(path, token=TOKEN):
        with opener.open(f'http://127.0.0.1:{port}/{path}?token={token}', timeout=60) as answer: return answer.read().decode()

    try:
        for _ in range(240):
            try: page('api/status')
            except HTTPError: raise
            except URLError: time.sleep(.5)
            else: break
            assert process.poll() is None, log.read_text()[-2000:]
        yield page
    finally:
        if process.poll() is None: os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


@pytest.mark.slow
def test_lab_serves_the_notebooks(ask, root):
    assert json.loads(ask('api/status'))['kernels'] == 0
    assert 'JupyterLab' in ask('lab')
    listed = {item['name'] for item in json.loads(ask('api/contents'))['content']}
    assert {p.name for p in (root/'nbs').glob('*.ipynb')} <= listed
    core = json.loads(ask('api/contents/00_core.ipynb'))
    assert core['type'] == 'notebook' and '# Core' in core['content']['cells'][0]['source']
    with pytest.raises(HTTPError, match='403'): ask('api/contents', token='somebody-else')
