"The first 300 hostile files; `make fuzz` reads ten thousand."
import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='memory and processor time are read from /proc')


def test_hostile_files():
    spec = importlib.util.spec_from_file_location('fuzz_run', Path(__file__).parent/'run.py')
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    answers = fuzz.run(range(300), workers=1)
    assert not [(a['number'], a['violation']) for a in answers if 'violation' in a]
    assert len(answers) == 300 and {a['outcome'] for a in answers} == {'refused', 'opened, frames damaged', 'read'}
