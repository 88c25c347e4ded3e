"Corpora, splits, augmentation, batches and the codec."
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from echo_lit.training.augment import Augment
from echo_lit.training.loaders import (CorpusError, FindingCodec, clip_loader, clip_loaders, clip_targets, disc_corpus, open_corpora, open_corpus,
                                       patient_fold, patient_split, visible_findings)
from echo_lit.training.learner import FindingHead, finding_loss
from echo_lit.vocabulary import COARSE_VIEWS, FINDINGS


@pytest.fixture(scope='module')
def corpus(tmp_path_factory): return open_corpus(disc_corpus(tmp_path_factory.mktemp('discs'), n=12))


@pytest.mark.parametrize('spoil, message', [
    (lambda d: (d/'clips.parquet').unlink(), 'clips.parquet is missing'),
    (lambda d: np.save(d/'clips.npy', np.zeros((5, 3, 4, 32, 32), np.uint8)), '36 table rows for 5 clips'),
    (lambda d: pd.read_parquet(d/'studies.parquet').iloc[1:].to_parquet(d/'studies.parquet'), 'not listed'),
    (lambda d: pd.read_parquet(d/'clips.parquet').assign(view='A9C').to_parquet(d/'clips.parquet'), "unknown view 'A9C'")])
def test_broken_corpus_costs_one_line(tmp_path, spoil, message):
    spoil(disc_corpus(tmp_path, n=12))
    with pytest.raises(CorpusError, match=message) as e: open_corpus(tmp_path)
    assert '\n' not in str(e.value)


def test_table_order_on_disk_does_not_matter(tmp_path, corpus):
    d = disc_corpus(tmp_path, n=12)
    pd.read_parquet(d/'clips.parquet').sample(frac=1, random_state=0).to_parquet(d/'clips.parquet')
    pd.read_parquet(d/'studies.parquet').iloc[::-1].to_parquet(d/'studies.parquet')
    again = open_corpus(d)
    assert again.table.study_id.tolist() == corpus.table.study_id.tolist()
    assert [again.findings[i] for i in again.study_rows] == [corpus.findings[i] for i in corpus.study_rows]


@given(st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=30), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_fold_depends_on_the_patient_alone(patients, seed):
    fold = patient_fold(patients, seed)
    assert ((0 <= fold) & (fold < 1)).all()
    assert all(fold[i] == patient_fold([p], seed)[0] for i, p in enumerate(patients))


def test_split_shares_no_patient_and_loses_no_study(corpus):
    train, valid = patient_split(corpus, .3)
    assert sorted([*train, *valid]) == list(range(12)) and not set(corpus.studies.patient_id[train]) & set(corpus.studies.patient_id[valid])


def test_clips_keep_their_own_targets(corpus):
    y = torch.arange(36.)[:, None]
    dl = clip_loader(corpus, np.arange(36), y, bs=7, train=True, seed=1)
    for x, t in dl:
        for clip, row in zip(x, t[:, 0]): assert (clip.numpy() == corpus.clips[int(row)]).all()
    assert sum(len(t) for _, t in clip_loader(corpus, np.arange(36), y, bs=7)) == 36


@pytest.mark.parametrize('held', ['val', 'valid'])
def test_sides_of_two_corpora_are_kept(tmp_path, held):
    for side, seed in (('train', 0), (held, 1)): disc_corpus(tmp_path/side, n=4, seed=seed, prefix=side)
    both = open_corpora(tmp_path)
    assert both.studies.side.tolist() == ['train']*4 + ['val']*4
    dls = clip_loaders(both, torch.from_numpy(both.study_rows), bs=4)
    assert (dls.train.n, dls.valid.n) == (12, 12)
    assert all((x[0].numpy() == both.clips[12 + i*4]).all() for i, (x, _) in enumerate(dls.valid))


def test_augmentation_is_reproducible_keeps_channels_equal_and_black_black(corpus):
    clip = corpus.clips[0].copy()
    clip[:, :, :8] = 0
    a, b = (Augment(rotate=0, shift=0, scale=0)(clip, np.random.default_rng(4)) for _ in range(2))
    assert (a == b).all() and a.dtype == np.uint8 and (a[0] == a[1]).all() and (a[0] == a[2]).all()
    assert a[:, :, :6].max() <= 6


def test_augmentation_moves_all_frames_alike(corpus):
    clip = np.zeros((3, 4, 32, 32), np.uint8)
    clip[:, :, 10:14, 20:26] = 200
    out = Augment(tone=0, noise=0, blur=0, shadow=0)(clip, np.random.default_rng(0))
    assert all((out[:, t] == out[:, 0]).all() for t in range(4))


def some_findings(seed):
    r = np.random.default_rng(seed)
    def value(t): return {'present': lambda: bool(r.random() < .5), 'graded': lambda: str(r.choice(t.grades)),
                          'measured': lambda: round(float(r.uniform(t.low, t.high)), t.digits)}[t.kind]()
    return [{c: value(t) for c, t in FINDINGS.items() if r.random() < .7} for _ in range(20)]


def test_codec_says_again_what_it_was_told():
    told = some_findings(0)
    codec = FindingCodec.fit(told)
    y = codec.encode(told)
    out = codec.columns(y)
    back = codec.decode(torch.where(codec.measured, out, 60*out - 30))
    for row, study in zip(back, told):
        for code, value, kind in zip(codec.codes, row.tolist(), codec.kinds):
            if code not in study: assert np.isnan(value)
            elif kind == 'measured': assert value == pytest.approx(study[code], rel=1e-3, abs=1e-2)
            else: assert round(value) == (int(study[code]) if kind == 'present' else FINDINGS[code].grades.index(study[code]))


def test_unsaid_findings_have_no_gradient_and_all_said_ones_do():
    codec = FindingCodec.fit(some_findings(0))
    y = codec.encode(some_findings(1))
    out = torch.randn(20, len(codec.column), requires_grad=True)
    finding_loss(out, y, codec).backward()
    assert ((out.grad != 0) == ~codec.columns(y).isnan()).all()


def test_head_has_a_column_for_each_step():
    codec = FindingCodec(['ef', 'mitral_regurgitation'], [55, 0], [10, 1])
    assert FindingHead(codec, 8)(torch.zeros(2, 8)).shape == (2, 4)


def test_leaks_are_asked_of_colour_alone(corpus):
    codes = ['mitral_regurgitation', 'lvidd']
    seen = visible_findings(codes)
    assert seen[COARSE_VIEWS.index('Apical_Doppler'), 0] and not seen[COARSE_VIEWS.index('A4C'), 0] and seen[COARSE_VIEWS.index('Parasternal_Long'), 1]
    codec = FindingCodec.fit(corpus.findings)
    assert clip_targets(corpus, codec).shape == (36, len(codec.codes))
