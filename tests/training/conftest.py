"A corpus of discs, and a run without labels that is killed in the middle."
import numpy as np
import pandas as pd
import pytest
import torch

from echo_lit.models.hub import load_model
from echo_lit.training.collapse import Collapse
from echo_lit.training.loaders import disc_corpus


@pytest.fixture(scope='module')
def corpus(tmp_path_factory): return disc_corpus(tmp_path_factory.mktemp('discs'), n=5)


@pytest.fixture
def goes_on(tmp_path, monkeypatch):
    "Asserts that `train(folder, say)`, killed after its first epoch, ends with the weights and signs of a run that was left alone."
    def check(train):
        def weights(folder): return load_model(train(folder, said.append)).video.state_dict()
        said, seen, after = [], [], Collapse.after_train
        whole = weights(tmp_path/'whole')
        def killed(self):
            after(self)
            seen.append(1)
            if len(seen) == 2: raise KeyboardInterrupt
        monkeypatch.setattr(Collapse, 'after_train', killed)
        with pytest.raises(KeyboardInterrupt): train(tmp_path/'cut', said.append)
        monkeypatch.undo()
        assert len(seen) == 2
        assert not any('goes on from' in line for line in said)
        cut = weights(tmp_path/'cut')
        assert any('goes on from' in line for line in said)
        a, b = (pd.read_csv(tmp_path/n/'signs.csv') for n in ('whole', 'cut'))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        for k, v in whole.items(): torch.testing.assert_close(v, cut[k], rtol=2e-3, atol=1e-5)
    return check
