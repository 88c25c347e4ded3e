"`echo_lit bench ranks`: what it compares is one training, and one that fails says why."
import numpy as np
import pytest

from echo_lit.core import EchoError
from echo_lit.training.ranks import started

TINY = dict(clips=8, batch=4, epochs=2, width=24, depth=1)


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one():
    (fast, one), (slow, two) = (started(ranks, 1, **TINY) for ranks in (1, 2))
    assert min(fast, slow) > 0
    np.testing.assert_allclose(two, one, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize('ranks', [1, 2])
def test_a_training_that_fails_is_one_line(ranks):
    with pytest.raises(EchoError, match=f'training with {ranks} ranks failed: .*EchoError: a batch of 3 cannot be shared|two are needed') as e:
        started(ranks, 1, **TINY | (dict(epochs=1) if ranks == 1 else dict(batch=3)))
    assert '\n' not in str(e.value)
