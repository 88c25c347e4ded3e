"Probes against published numbers, and what must hold for any of them."
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_lit.core import EchoError
from echo_lit.evaluate.probes import MEASURES, PROBES, Task, ask, balanced_accuracy, knn_fit, macro_f1, paired

GOLDEN = Path(__file__).parents[1]/'parity'/'golden'/'discovr'


@pytest.mark.parametrize('name', json.loads((GOLDEN/'knn.json').read_text())['metrics'])
def test_published_neighbours(name):
    "Accuracy, balanced accuracy and macro F1 of the published evaluation, on its features."
    wanted, x = json.loads((GOLDEN/'knn.json').read_text())['metrics'][name], np.load(GOLDEN/'knn_features.npz')
    k, temperature = name[1:].split('_T')
    score = knn_fit(x['bank'], x['bank_labels'], int(k), 2, float(temperature))(x['query'])
    for measure, key in (('accuracy', 'accuracy'), ('balanced accuracy', 'balanced_accuracy'), ('macro F1', 'f1_score')):
        assert MEASURES[measure](score, x['query_labels']) == pytest.approx(wanted[key], abs=1e-9)


def drawn(seed=0, patients=60, width=6, clips=2):
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), clips)
    y = rng.integers(0, 3, patients)[who]
    x = rng.normal(size=(len(who), width)).astype(np.float32) + 2*np.eye(3, width, dtype=np.float32)[y]
    part = np.array(['train', 'val', 'test'])[np.digitize(who, [patients//2, patients*3//4])]
    return Task('drawn', y, part, who, group=who, classes=('a', 'b', 'c')), x


@pytest.mark.parametrize('probe', ['constant', 'knn', 'linear', 'pca512'])
def test_blind_to_the_order(probe):
    "Rows in another order, and vectors that are not asked about, change no answer."
    task, x = drawn()
    order = np.random.default_rng(1).permutation(len(x))
    mixed = Task('drawn', task.y[order], task.part[order], task.patient[order], group=task.group[order], classes=task.classes, rows=order + 5)
    wide = np.concatenate([np.full((5, x.shape[1]), 1e6, np.float32), x])
    a, b = ask(task, x, PROBES[probe]), ask(mixed, wide, PROBES[probe])
    assert (a.keys == b.keys).all() and a.setting == b.setting
    assert np.abs(a.score - b.score).max() < 1e-3


def test_test_answers_are_not_looked_at():
    "With other test answers, the same settings and the same scores."
    task, x = drawn()
    other = Task('drawn', np.where(task.part == 'test', (task.y + 1) % 3, task.y), task.part, task.patient, group=task.group, classes=task.classes)
    for probe in ('knn', 'linear', 'pca512'):
        a, b = ask(task, x, PROBES[probe]), ask(other, x, PROBES[probe])
        assert a.setting == b.setting and (a.score == b.score).all()


def test_noise_scores_like_luck():
    "Labels that are drawn cannot be answered: the interval of the difference to a constant holds luck."
    task, x = drawn(patients=240)
    y = np.random.default_rng(5).integers(0, 3, 240)[task.patient]
    luck = Task('luck', y, task.part, task.patient, group=task.group, classes=task.classes)
    a = ask(luck, x, PROBES['linear'])
    assert abs(MEASURES['accuracy'](a.score, a.truth) - 1/3) < .15


def test_paired_interval_knows_what_is_shared():
    task, x = drawn(patients=200)
    a, b = (ask(task, v, PROBES['linear']) for v in (x, x + np.random.default_rng(2).normal(size=x.shape).astype(np.float32)))
    value, low, high = paired(a, b, n=200)
    assert low < value < high and value > 0
    assert paired(a, a, n=50) == (0, 0, 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_measures_are_those_of_scikit_learn(pairs):
    from sklearn.metrics import f1_score, recall_score
    said, true = map(np.array, zip(*pairs))
    assert macro_f1(said, true) == pytest.approx(f1_score(true, said, average='macro', zero_division=0))
    assert balanced_accuracy(said, true) == pytest.approx(recall_score(true, said, average='macro', labels=np.unique(true)))


def test_without_validation_patients_nothing_is_chosen():
    task, x = drawn()
    task = Task('drawn', task.y, np.where(task.part == 'val', 'train', task.part), task.patient, classes=task.classes)
    with pytest.raises(EchoError, match='chooses its setting on validation patients'): ask(task, x, PROBES['linear'])
    assert len(ask(task, x, PROBES['constant']).keys) == 30
