"Bundles that were interrupted, tampered with or nested in the wrong place."
import subprocess
import sys

import pytest
import torch

from echo_lit.models.hub import Bundle, BundleError, load_bundle, phantom_tiny, save_bundle


def test_an_interrupted_save_leaves_the_old_bundle(tmp_path, monkeypatch):
    folder = save_bundle(phantom_tiny(), tmp_path/'b', metrics={'run': 1})
    def full(*args, **kwargs): raise OSError('no space left')
    monkeypatch.setattr('safetensors.torch.save_file', full)
    with pytest.raises(OSError): save_bundle(phantom_tiny(), folder, metrics={'run': 2})
    assert '"run": 1' in (folder/'metrics.json').read_text() and [p.name for p in tmp_path.iterdir()] == ['b']
    load_bundle(folder)


def test_pickled_weights_are_never_opened(tmp_path):
    folder = save_bundle(phantom_tiny(), tmp_path/'b')
    torch.save({'x': torch.zeros(1)}, folder/'model.safetensors')
    with pytest.raises(BundleError, match='cannot be read'): load_bundle(folder)


def test_a_bundle_may_lack_parts(tmp_path):
    whole = phantom_tiny()
    part = load_bundle(save_bundle(Bundle('views-only', views=whole.views, contract=whole.contract), tmp_path/'b'))
    assert list(part.parts()) == ['views'] and part.video is None


def test_the_hub_loads_no_pandas_or_fastai():
    code = "import sys, echo_lit.models.hub as h; print({'pandas', 'fastai', 'transformers'} & {*sys.modules})"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == 'set()'
