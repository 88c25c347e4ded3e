"Random findings survive being written and read."
import pytest
from hypothesis import given, settings, strategies as st

from echo_lit.data.reports import read_findings, read_report, write_report
from echo_lit.vocabulary import FINDINGS, Finding, findings_from_json, findings_json


def values(t):
    "Values that a finding of this type can take."
    if t.kind == 'present': return st.booleans()
    return st.sampled_from(t.grades) if t.kind == 'graded' else st.floats(t.low, t.high)


def any_finding(code): return values(FINDINGS[code]).map(lambda v: Finding(code, v))


some_codes = st.lists(st.sampled_from(list(FINDINGS)), unique=True, max_size=40)
some_findings = some_codes.flatmap(lambda codes: st.tuples(*map(any_finding, codes)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(some_findings, st.integers(0, 2**31))
def test_round_trip(findings, seed):
    report = write_report(findings, seed)
    assert findings_json(read_findings(report.text)) == findings_json(findings)
    assert {f.code for f in report.findings} == {f.code for f in findings}
    assert list(read_report(report.text).sections) == list(report.sections)
    assert findings_json(findings_from_json(findings_json(findings))) == findings_json(findings)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=400), st.sampled_from(['', 'Left Ventricle', 'IVC', 'Mitral Valve']))
def test_any_text_is_read(text, section):
    for f in read_findings(text, section): assert f.code in FINDINGS


monsters = ['ef 500-' * 20_000, 'ef 500 ' * 20_000,
            'no left ventricular ' * 5_000, '\n' * 200_000, ' ' * 200_000, '9' * 200_000, '-1 to ' * 20_000, 'a' * 200_000,
             '(' * 20_000,
            'IVC:' * 20_000]


@pytest.mark.parametrize('text', monsters)
def test_long_text_is_read_in_reasonable_time(text): assert read_findings(text) == []


def test_a_typical_report_fits_the_text_tower():
    from random import Random
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    rng = Random(0)

    def draw(code):
        t = FINDINGS[code]
        if t.kind == 'present': return Finding(code, rng.random() < .3)
        return Finding(code, rng.choice(t.grades) if t.kind == 'graded' else rng.uniform(t.low, t.high))

    texts = [write_report([draw(c) for c in rng.sample(list(FINDINGS), 35)], seed).text for seed in range(200)]
    tokenizer = Tokenizer(models.WordPiece(unk_token='[UNK]'))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(True)])
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=3000, special_tokens=['[UNK]']))
    lengths = sorted(len(tokenizer.encode(t).ids) for t in texts)
    assert lengths[len(lengths)//2] <= 350 and lengths[-1] <= 512
