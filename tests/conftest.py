import os
from pathlib import Path

import pytest

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('OMP_NUM_THREADS', '2')


@pytest.fixture(scope='session')
def root(): return Path(__file__).resolve().parent.parent
