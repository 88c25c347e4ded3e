"EchoCLIP and EchoCLIP-R as users have them, complete in file names, tensor names and shapes, with weights by formula: from the folder to an answer."
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from echo_lit.core import Clip
from echo_lit.interpret.zeroshot import Question, finding_question, measured_value, zero_shot
from echo_lit.models.echoclip import distinct_frames
from echo_lit.models.hub import licences, load_model


def shapes(words=49408):
    "The 493 tensors of open_clip's convnext_base, with this many word vectors."
    import open_clip
    with torch.device('meta'): names = {k: tuple(v.shape) for k, v in open_clip.CLIP(**open_clip.get_model_config('convnext_base')).state_dict().items()}
    return {**names, 'token_embedding.weight': (words, 512)}


def formula(names):
    "One sine for all, so that tensors share the storage in the file."
    wave = torch.sin(.37*((7919*torch.arange(max(map(math.prod, names.values())) + 10007)) % 10007))
    small, gain = .03*wave, 1 + .1*wave
    return {k: (gain if len(s) == 1 and k.endswith('weight') else small)[(104729*i) % 10007:][:math.prod(s)].view(s)
            for i, (k, s) in enumerate(sorted(names.items()))}


def write_download(folder, words=49408, prefix=''):
    "open_clip_config.json and open_clip_pytorch_model.bin."
    import open_clip
    pixels = dict(mean=[.48145466, .4578275, .40821073], std=[.26862954, .26130258, .27577711], interpolation='bicubic', resize_mode='shortest')
    (folder/'open_clip_config.json').write_text(json.dumps(dict(model_cfg=open_clip.get_model_config('convnext_base'), preprocess_cfg=pixels)))
    torch.save({f'{prefix}{k}': v for k, v in formula(shapes(words)).items()}, folder/'open_clip_pytorch_model.bin')
    return folder


def write_vocabulary(folder):
    "template_vocab.txt: 770 invented sentences."
    lines = [f'INVENTED SENTENCE {chr(65 + i//26)}{chr(65 + i % 26)}. \n' for i in range(769)] + ['LV EJECTION FRACTION IS <#>%. \n']
    (folder/'template_vocab.txt').write_text(''.join(lines))


def grey_clip(n=6):
    frames = np.random.default_rng(0).integers(0, 256, (n, 120, 160, 1), dtype=np.uint8).repeat(3, 3)
    return Clip('0'*12, n, 120, 160, lambda i: frames[i], fps=30.)


@pytest.mark.slow
def test_echoclip(tmp_path):
    import open_clip
    bundle, clip = load_model('echoclip', write_download(tmp_path), preset='upstream'), grey_clip()
    assert len(shapes()) == 493 and 'echoclip' in set(licences()['name'])
    every = finding_question('ef')
    question = Question('ef', 'measured', *map(tuple, zip(*[(p, v) for p, v in zip(every.prompts, every.values) if not v % 10])))
    table, lost = zero_shot(bundle, [clip], [question, 'impella'])
    assert lost == [] and table.question.tolist() == ['ef', 'impella']
    net = open_clip.CLIP(**open_clip.get_model_config('convnext_base')).eval()
    net.load_state_dict(formula(shapes()))
    x = bundle.contract.normalise(bundle.contract.clip_tensor(clip)[None, :, :3])[0].transpose(0, 1)
    with torch.inference_mode():
        frames = net.encode_image(x, normalize=True)
        prompts = net.encode_text(open_clip.tokenize(list(question.prompts)), normalize=True)
    torch.testing.assert_close(distinct_frames(bundle.video, clip), frames, atol=1e-5, rtol=0)
    torch.testing.assert_close(F.normalize(bundle.text.encode(list(question.prompts)), dim=1), prompts, atol=1e-5, rtol=0)
    assert table.value[0] == pytest.approx(measured_value(frames, prompts, torch.tensor(question.values)).item())


@pytest.mark.slow
def test_echoclip_r_by_its_weight_file(tmp_path):
    write_download(tmp_path, words=909, prefix='module.')
    write_vocabulary(tmp_path)
    bundle = load_model('echoclip-r', tmp_path/'open_clip_pytorch_model.bin')
    assert bundle.text.tokenizer.vocab_size == 909
    low, again, high = F.normalize(bundle.text.encode(['LV ejection fraction is 20 %', 'Lv Ejection Fraction is 20%.', 'LV ejection fraction is 70%.']), dim=1)
    assert torch.allclose(low, again, atol=1e-6) and not torch.allclose(low, high, atol=1e-4)
    assert bundle.video(bundle.contract.clip_tensor(grey_clip())[None, :, :2]).norm() <= 1 + 1e-5
