"Bundles that were interrupted, tampered with or nested in the wrong place."
import json
import shutil
import subprocess
import sys

import pytest
import torch

from echo_lit.core import EchoError
from echo_lit.models.hub import Bundle, BundleError, load_bundle, load_model, origins, phantom_tiny, save_bundle


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


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    from echo_lit.models.text import train_tokenizer
    bundle = phantom_tiny(train_tokenizer([f'Ejection fraction is {v}%.' for v in range(20, 70)], vocab_size=200))
    return save_bundle(bundle, tmp_path_factory.mktemp('bundle')/'mine')


def refusal(folder):
    with pytest.raises(EchoError) as e: load_model(folder)
    assert str(folder) in str(e.value)
    return str(e.value)


@pytest.mark.parametrize('changes', [
    dict(video=[1]), dict(video='frames'), dict(views=5), dict(text=True), dict(name=[]), dict(licence=5),
    dict(contract='16 frames'), dict(contract=[1]), dict(contract=dict(frames='16')), dict(contract=dict(frame=16)), dict(contract=dict(mean=5)),
    dict(video=dict(kind=['frames'], contract={})), dict(video=dict(kind='frames', widths=[], contract={})), dict(video=dict(kind='frames', contract=5)),
    dict(text=dict(vocab_size=-1)), dict(text=dict(pool='last')), dict(views=dict(kind='resnet', contract={})), dict(attention=dict(dim='wide')),
    dict(origins=[1]), dict(origins=dict(video=5)), dict(origins=dict(video=[dict(owner='x')])),
    dict(origins=dict(video=[dict(name='x', licence=5, redistribute=True)]))], ids=lambda c: ' '.join(f'{k}={v}' for k, v in c.items())[:50])
def test_a_damaged_configuration_is_one_line(whole, tmp_path, changes):
    folder = shutil.copytree(whole, tmp_path/'b')
    (folder/'config.json').write_text(json.dumps(json.loads((whole/'config.json').read_text()) | changes))
    refusal(folder)


@pytest.mark.parametrize('share', [0, .1, .9, None])
def test_a_tokenizer_that_was_cut_or_lost(whole, tmp_path, share):
    folder = shutil.copytree(whole, tmp_path/'b')
    text = (whole/'tokenizer.json').read_bytes()
    if share is None: (folder/'tokenizer.json').unlink()
    else: (folder/'tokenizer.json').write_bytes(text[:int(share*len(text))])
    assert 'tokenizer' in refusal(folder)


def test_a_tokenizer_of_another_model(whole, tmp_path):
    from echo_lit.models.text import train_tokenizer
    folder = shutil.copytree(whole, tmp_path/'b')
    train_tokenizer([f'{a}{b}{c}' for a in 'rstvwx' for b in 'aeiou' for c in 'bdfgklmn'], vocab_size=600).save(str(folder/'tokenizer.json'))
    assert 'different models' in refusal(folder)


def test_terms_do_not_grow_with_every_saving(tmp_path):
    bundle = Bundle('mine', views=phantom_tiny().views)
    for i in range(3): bundle = load_model(save_bundle(bundle, tmp_path/f'{i}', licence='internal only'))
    assert bundle.config['licence'] == 'internal only (holds weights of mine: not to be passed on)' and not bundle.config['redistribute']
    assert [(o.name, o.redistribute) for o in origins(bundle)] == [('mine', False)]


def test_a_folder_in_the_way_is_not_the_model(root, tmp_path):
    "In a process of its own, where no page is known yet; the answer before and after knowing them is the same."
    for name in ('echoprime', 'phantom-tiny'): (tmp_path/name).mkdir()
    code = ("from echo_lit.models.hub import load_model, known_models\n"
            "for _ in range(2):\n"
            "    for path in (None, 'nowhere'):\n"
            "        try: load_model('echoprime', path=path)\n"
            "        except ValueError as e: print(str(e)[:22])\n"
            "    known_models()\n"
            "print(load_model('phantom-tiny').folder.parent.name)")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split('\n')[:-1] == ['echoprime needs the pl', 'no folder nowhere']*2 + ['bundles'], done.stderr
    for options in (dict(path='nowhere'), dict(preset='upstream')):
        with pytest.raises(BundleError, match='it takes no'): load_model(tmp_path/'echoprime', **options)
