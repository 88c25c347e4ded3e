import numpy as np, pandas as pd, pytest, torch
from echo_lit.data.cine import write_video
from echo_lit.data.heart import random_heart
from echo_lit.data.phantom import phantom_clip, phantom_reports
from echo_lit.models.hub import phantom_tiny, save_bundle
from echo_lit.vocabulary import findings_json

@pytest.fixture(scope='session')
def model(tmp_path_factory):
    "Parts of phantom-tiny, untrained, with a bank of random vectors and gates that let everything pass."
    torch.manual_seed(0)
    rows = [(f'r{s}', f'p{s}', text, findings_json(found)) for s, found, text in phantom_reports(200)]
    bundle = phantom_tiny()
    bundle.text = None
    bundle.config = dict(interpret=dict(gate=dict(present=0, graded=0, measured=0), similarity=-1), trained_on='nothing <b>at all</b>')
    bank = np.random.default_rng(0).normal(size=(200, 128)), pd.DataFrame(rows, columns=['report_id', 'patient_id', 'text', 'findings'])
    return save_bundle(bundle, tmp_path_factory.mktemp('model')/'untrained', bank=bank)

@pytest.fixture(scope='session')
def clips(tmp_path_factory):
    "Two folders of two AVI clips, one and a third seconds long."
    root = tmp_path_factory.mktemp('studies')
    for i in range(2):
        for view in ('a4c', 'plax'):
            clip = phantom_clip(random_heart(i), view, seed=i, seconds=1.3, height=144)
            (root/f's{i}').mkdir(exist_ok=True)
            write_video(root/f's{i}'/f'{view}.avi', clip[:], clip.fps)
    return root
