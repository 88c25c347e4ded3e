"PanEcho against what the published code gave for formula weights and a formula clip."
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from echo_lit.models.hub import load_model
from echo_lit.models.panecho import PANECHO_CONTRACT, PANECHO_TASKS, FrameTransformer, PanEchoTower, panecho_answers
from echo_lit.models.vit import sine_table

FOLDER = Path(__file__).parent/'golden'/'echoprime'
GOLDEN = json.loads((FOLDER/'panecho.json').read_text())
PE = 'encoder.time_encoder.pe'

def rows(kind): return {k.split('::')[1]: torch.tensor(v['first8']).view(v['shape']) for k, v in GOLDEN.items() if k.startswith(f'panecho_{kind}::')}

def formula_weights(shapes, keep=()):
    "A wave for every tensor, by its place among the sorted names; those in `keep` only take a place."
    out = {}
    for i, k in enumerate(sorted(shapes)):
        n = math.prod(shapes[k])
        u = np.sin(.37*((np.arange(n, dtype=np.int64)*7919 + 104729*i) % 10007).astype(np.float64))
        if 'layer_scale' in k or k.endswith('gamma'): u *= .1
        elif len(shapes[k]) >= 2: u /= math.sqrt(n/shapes[k][0])
        else: u = 1 + .1*u if k.endswith('weight') else .02*u
        if k not in keep: out[k] = torch.from_numpy(u.reshape(shapes[k])).float()
    return out

def formula_clip(b, t):
    "uint8 [b,3,t,224,224]."
    i = np.meshgrid(*map(np.arange, (b, 3, t, 224, 224)), indexing='ij', sparse=True)
    return torch.from_numpy(((13*i[0] + 37*i[1] + 11*i[2] + 3*i[3] + 5*i[4] + i[3]*i[4]//7) % 256).astype(np.uint8))

def layout(net):
    "Names and shapes of a module."
    return {k: tuple(v.shape) for k, v in net.state_dict().items()}

def published_layout():
    with torch.device('meta'): return {**layout(PanEchoTower()), PE: (1, 16, 768)}

def write_download(folder):
    "panecho.pt as the release has it, with formula weights."
    weights = {**formula_weights(published_layout(), keep=[PE]), PE: sine_table(16, 768)[None]}
    torch.save({'weights': weights}, folder/'panecho.pt')
    return folder

def test_answers_of_every_head():
    raw, act = rows('raw'), rows('act')
    assert list(raw) == list(PANECHO_TASKS) and len(raw) == 40
    ours = panecho_answers(raw, preset='upstream')
    for name, x in act.items(): assert torch.allclose(ours[name], x, atol=1e-6), name
    signed = panecho_answers(raw)
    assert [k for k in signed if not torch.equal(signed[k], ours[k])] == ['GLS'] and torch.equal(signed['GLS'], -act['GLS'])

def test_layout():
    shapes = published_layout()
    assert len(shapes) == 309 and round(sum(map(math.prod, shapes.values()))/1e6, 2) == 42.06
    assert shapes['encoder.transformer.layers.3.self_attn.in_proj_weight'] == (2304, 768) and shapes['E|EAvg_head.1.weight'] == (1, 768)

@pytest.mark.slow
def test_from_download_to_answers(tmp_path):
    bundle = load_model('panecho', write_download(tmp_path))
    clip, arrays = formula_clip(2, 16), np.load(FOLDER/'panecho.npz')
    with torch.inference_mode():
        vectors = bundle.video(clip)
        assert np.abs(vectors.numpy() - arrays['panecho_backbone']).max() < 1e-4
        assert np.abs(bundle.video.frame_vectors(clip[:, :, :1])[:, 0].numpy() - arrays['panecho_image_encoder']).max() < 1e-4
        logits = bundle.video.logits(vectors)
    for name, x in rows('raw').items(): assert torch.allclose(logits[name], x, atol=1e-4), name
    for name, x in rows('act').items(): assert torch.allclose(panecho_answers(logits, 'upstream')[name], x, atol=1e-4), name

@pytest.mark.slow
def test_thirty_two_frames():
    net = FrameTransformer().eval()
    shapes = {**layout(net), 'time_encoder.pe': (1, 32, 768)}
    net.load_state_dict(formula_weights(shapes, keep=['time_encoder.pe']))
    with torch.inference_mode(): vector = net(PANECHO_CONTRACT.normalise(formula_clip(1, 32)))
    assert np.abs(vector.numpy() - np.load(FOLDER/'panecho.npz')['panecho_backbone_cliplen32_bare']).max() < 1e-4
