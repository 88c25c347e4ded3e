"EchoCLIP's text tidying, sentence tokens and frame normalisation against what the published code gave."
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from echo_lit.core import EchoError
from echo_lit.data.contract import centre_square
from echo_lit.interpret.zeroshot import measured_value, presence_score
from echo_lit.models.echoclip import echoclip_contract
from echo_lit.models.templates import TemplateTokenizer, read_sentences, split_variables, template_ids, tidy_report

GOLDEN = json.loads((Path(__file__).parent/'golden'/'echoprime'/'echoclip.json').read_text())
EF = 'LV EJECTION FRACTION IS <#>%. '

def picture(h, w):
    "The drawn test picture: three channels of ramps and a parabola."
    y, x = np.mgrid[:h, :w]
    return np.stack([3*x + 5*y, 7*x + 2*y + 40, x*x//17 + y], -1).astype(np.uint8)

def vocabulary():
    "770 invented sentences, one of them where the published list has its ejection fraction."
    lines = [f'INVENTED SENTENCE {chr(65 + i//26)}{chr(65 + i % 26)}. ' for i in range(770)]
    lines[627 - 5] = EF
    return TemplateTokenizer(lines)

@pytest.mark.parametrize('row', GOLDEN['clean_text'], ids=lambda r: r['inp'][:20])
def test_tidy(row):
    out = tidy_report(row['inp'])
    if row['inp'].startswith('LV Ejection'): out = read_sentences(vocabulary(), row['inp'])[0][0][0].replace('<#>', '55')
    assert out == row['out']

@pytest.mark.parametrize('row', GOLDEN['extract_variables'], ids=lambda r: r['inp'][:20])
def test_variables(row): assert list(split_variables(row['inp'])) == row['out']

def test_ids():
    t, official = vocabulary(), GOLDEN['official_vocab']
    assert (t.start, t.end, t.vocab_size) == (official['BOS'], official['EOS'], official['EOS'] + 1)
    assert (min(t.phrases.values()), max(t.phrases.values())) == (official['first_line_id'], official['last_line_id'])
    assert {k: i + official['len_template_vocab'] for k, i in official['ids_of'].items() if k != '[UNK]'}.items() <= t.pieces.items()
    assert t.start == official['len_template_vocab'] + official['len_variable_vocab']

@pytest.mark.parametrize('text, key', [('LV ejection fraction is 20%.', 'ids_ef20'), ('LV EJECTION FRACTION IS 12.5 %', 'ids_ef125'),
                                       ('nothing that is known', 'ids_empty'), ('', 'ids_empty')])
def test_template_ids(text, key): assert template_ids(vocabulary(), text) == GOLDEN[key]

def test_a_whole_report():
    "The ids of a published report, from sentences invented to have as many slots as each of its ids."
    t, ids = vocabulary(), [i for i in GOLDEN['example_report_ids'][1:] if i and i != 908]
    back, groups = {i: p for p, i in t.pieces.items()}, []
    for i in ids:
        if i < 775: groups.append((i, []))
        else: groups[-1][1].append(back[i])
    lines = list(t.phrases)
    for i, pieces in groups:
        slots = ''.join(pieces).count('‡') + 1 if pieces else 0
        lines[i - 5] = f'INVENTED {chr(65 + i//26 % 26)}{chr(65 + i % 26)}{chr(65 + i//676)}{" <#>,"*slots} END. '
    text = ''
    for i, pieces in groups:
        values = ''.join(pieces).split('‡')
        part = lines[i - 5]
        for v in values if pieces else (): part = part.replace('<#>', v, 1)
        text += part
    assert template_ids(TemplateTokenizer(lines), text) == GOLDEN['example_report_ids']

def test_crop():
    assert int(centre_square(picture(480, 640)[None], 224, .1).sum()) == GOLDEN['crop_and_scale_480x640_224']['sum']


def unit(name): return torch.from_numpy(np.load(Path(__file__).parent/'golden'/'echoprime'/'echoclip.npz')[name])

def test_presence(): assert torch.allclose(presence_score(unit('video'), unit('binary_prompts')), torch.tensor(GOLDEN['binary']), atol=1e-6)

@pytest.mark.parametrize('prompts, key', [(slice(None), 'regression'), (slice(0, 101), 'regression_1prompt_101')])
def test_numbers(prompts, key):
    found = measured_value(unit('video'), unit('reg_prompts')[prompts], unit('reg_values')[prompts])
    assert torch.allclose(found, torch.tensor(GOLDEN[key]), atol=1e-4)

def test_too_few_prompts():
    with pytest.raises(EchoError, match='at least 5'): measured_value(unit('video'), unit('reg_prompts')[:4], unit('reg_values')[:4])

def test_frames_are_normalised_as_published():
    x = echoclip_contract('upstream').normalise(torch.from_numpy(picture(224, 224)).permute(2, 0, 1)[None, :, None])
    golden = GOLDEN['preprocess_img224']
    assert x[0, :, 0, 10, 20].tolist() == pytest.approx(golden['px'], abs=1e-5) and x.double().sum().item() == pytest.approx(golden['sum'], abs=.05)
