"The phrase codec against what the published functions made of an invented menu (rows 10 to 12 of the parity table)."
import json
import math
from pathlib import Path

import pytest

from echo_lit.data.echoprime import (
    BANK_SECTIONS, PHENOTYPES, labels_of, phrase_decode, phrase_ids, read_label_rules, read_phrases, section_text, structured, without_parts)

GOLDEN = json.loads((Path(__file__).parent/'golden'/'echoprime'/'text.json').read_text())
WORDS = 'alpha bravo carmine delta ember'.split()

def menu():
    return {s: {f'{s}:': [f'Chamber {i} looks {WORDS[i % 5]}.', f'Chamber {i} looks {WORDS[i % 5]} and quiet.'], ' ': [],
                '=num': [f'Index {i} equals <numerical> units.', f'Ratio {i} (peak) is <numerical>+X units'],
                'wall': [f'Patch of the <string> is {WORDS[i % 5]}.', 'Shared plain finding.']} for i, s in enumerate(BANK_SECTIONS)}

def rules():
    def one(i, p):
        if p in ('ejection_fraction', 'pulmonary_artery_pressure_continuous'):
            return dict(section=f'FNDG_{i}', mode='regression', label_sources=[f'Gauge {p} first reading <#>%', f'Gauge {p} is <#>'], range=[0, 100])
        return dict(section=f'FNDG_{i}', mode='binary', label_sources=[f'MARKER {p} PRESENT', f'. moderate {p} sign'])
    return {p: one(i, p) for i, p in enumerate(PHENOTYPES)}

@pytest.fixture(scope='module')
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp('assets')
    (folder/'all_phr.json').write_text(json.dumps(menu()))
    (folder/'per_section.json').write_text(json.dumps(rules()))
    return read_phrases(folder/'all_phr.json'), read_label_rules(folder/'per_section.json')

@pytest.mark.parametrize('case', GOLDEN['phrase_decode'], ids=lambda c: c['name'])
def test_decode(case, assets): assert phrase_decode(case['ids'], assets[0]) == case['out']

@pytest.mark.parametrize('case', GOLDEN['extract_section'])
def test_section(case): assert section_text(case['report'], case['section'], preset='upstream') == case['out']

@pytest.mark.parametrize('case', GOLDEN['extract_features'])
def test_labels(case, assets):
    out = list(labels_of(case['report'], assets[1], preset='upstream').values())
    assert [None if math.isnan(v) else v for v in out] == case['out']

@pytest.mark.parametrize('case', GOLDEN['structure_rep'])
def test_structured(case, assets): assert structured(case['report'], assets[0], preset='upstream') == case['out']

@pytest.mark.parametrize('case', GOLDEN['remove_subsets'])
def test_without_parts(case): assert without_parts(case['inp']) == case['out']

def test_default_keeps_what_upstream_mangles(assets):
    "Every phrase of every section, with a number or a word in its gap, survives the way to text and back."
    ids = [(s, p, '12.5' if '<num' in words else 'outer 2.5 cm rim' if '<str' in words else None)
           for s, section in enumerate(assets[0]) for p, words in enumerate(section)]
    assert phrase_ids(phrase_decode(ids, assets[0]), assets[0]) == ids
    report = 'Left Ventricle:  Chamber 0 looks alpha and quiet.  stray words [SEP]'
    assert structured(report, assets[0]) == 'Left Ventricle: Chamber 0 looks alpha and quiet. [SEP]'

def test_hostile_text_ends_soon(assets):
    "A gap has an end, so a long run without a full stop is no burden."
    text = 'Left Ventricle: ' + 'Patch of the '*3000 + '[SEP]'
    assert phrase_ids(text, assets[0]) == []
