"""What the test-suite of a published multi-video system asks of itself, asked of ours.

Asked elsewhere: pooling of studies in test_attention.py and parity/test_pooling.py (every mode, masks, gradients, dropout, neighbours), losses in
test_contrastive.py (published values, rows without a positive) and test_gather.py, loaders in test_batches.py (workers, ranks, order, files that
break), splits in data/test_manifest.py, schedules on their page, Weights & Biases in test_record.py, seeds after a kill in test_resume.py,
banks in interpret/test_retrieval.py, the numbers of intervals in parity. Decided otherwise: what is no number, a missing file and a failed
transform are failures, never repaired or left out in silence; clips may have any number of frames.
"""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_lit.core import Clip, EchoError
from echo_lit.data.cine import read_cine, write_video
from echo_lit.data.contract import InputContract
from echo_lit.data.manifest import manifest
from echo_lit.evaluate.metrics import recall_at_k
from echo_lit.models.attention import AnatomicalAttention
from echo_lit.models.mvit import MViTTower
from echo_lit.models.pooling import BagPool, SectionPool
from echo_lit.models.text import TextTower, token_batch, train_tokenizer
from echo_lit.models.video import FrameVideoTower
from echo_lit.models.views import ViewClassifier
from echo_lit.models.vit import FrameViTTower, ViTTower
from echo_lit.training.batches import clip_batches, padded, two_loaders
from echo_lit.training.distributed import every_rank, join_ranks
from echo_lit.training.learner import LossError, echo_learner
from echo_lit.training.losses import clip_loss, siglip_loss
from echo_lit.training.reader import LostClips, failure_table
from echo_lit.training.recipe import RecipeError, load_recipe

SMALL = InputContract(frames=4, seconds=None, stride=1, size=32, mask=False, crop='centre')
TOWERS = {
    'frames': lambda: FrameVideoTower(width=32, embed_dim=8, depth=1, heads=2, widths=(32, 32, 32), contract=SMALL),
    'vit': lambda: ViTTower(SMALL, pool='mean', width=24, depth=1, heads=2, qkv_bias=False),
    'frame-vit': lambda: FrameViTTower(SMALL, width=24, depth=1, heads=2, qkv_bias=False),
    'mvit': lambda: MViTTower(embed_dim=8, width=16, contract=SMALL),
    'views': lambda: ViewClassifier(contract=SMALL, widths=(32, 32, 32))}
WORDS = ['Left Ventricle: EF 60%.', 'IVC: Dilated.', 'Pericardium: No effusion. Small pleural effusion.', 'Aorta: Normal.']


def clips(n=3, frames=4, seed=0):
    return torch.randint(0, 256, (n, 3, frames, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def made(name):
    torch.manual_seed(0)
    return TOWERS[name]()


# Encoders

@pytest.mark.parametrize('name', TOWERS)
def test_a_clip_does_not_know_its_batch(name):
    tower, x = made(name).eval(), clips()
    with torch.no_grad():
        whole, alone = tower(x), torch.cat([tower(c[None]) for c in x])
        changed = tower(torch.cat([x[:1], 255 - x[1:]]))
    torch.testing.assert_close(whole, alone, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(changed[0], whole[0], atol=1e-6, rtol=1e-5)
    assert (changed[1:] - whole[1:]).abs().max() > 1e-4


@pytest.mark.parametrize('name', [n for n in TOWERS if n != 'views'])
def test_vectors_have_a_length_of_their_own(name):
    tower = made(name).eval()
    with torch.no_grad(): out = tower(clips())
    assert out.shape == (3, tower.embed_dim) and out.dtype == torch.float32
    assert (out.norm(dim=1) - 1).abs().max() > 1e-3


@pytest.mark.parametrize('name', [n for n in TOWERS if n != 'mvit']) # its gradients are torchvision's, see models/test_towers.py
def test_every_weight_gets_a_gradient_and_moves(name):
    tower = made(name)
    before = {n: p.detach().clone() for n, p in tower.named_parameters()}
    for _ in range(2):
        tower.zero_grad()
        tower(clips()).square().sum().backward()
        assert [n for n, p in tower.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
        torch.optim.SGD(tower.parameters(), .1).step()
    assert [n for n, p in tower.named_parameters() if torch.equal(p, before[n])] == []


@pytest.mark.parametrize('name', [n for n in TOWERS if n != 'vit'])
@pytest.mark.parametrize('frames', [1, 6, 20])
def test_any_number_of_frames_is_allowed(name, frames):
    tower = made(name).eval()
    with torch.no_grad(): assert tower(clips(2, frames)).isfinite().all()


def test_a_transformer_of_tubelets_says_which_lengths_fit():
    tower = made('vit').eval()
    with torch.no_grad(): assert tower(clips(2, 8)).isfinite().all()
    with pytest.raises(ValueError, match='multiples of 2×16×16'): tower(clips(2, 5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no graphics card')
@pytest.mark.parametrize('name', TOWERS)
def test_a_graphics_card_gives_the_same_vectors(name):
    tower, x = made(name).eval(), clips()
    with torch.no_grad(): torch.testing.assert_close(tower.cuda()(x.cuda()).cpu(), tower.cpu()(x), atol=1e-3, rtol=1e-3)


@pytest.fixture(scope='module')
def text():
    torch.manual_seed(0)
    tokenizer = train_tokenizer(WORDS*3, 120)
    return TextTower(tokenizer.get_vocab_size(), 32, 2, 2, 8, context=24, tokenizer=tokenizer).eval()


def test_padding_and_neighbours_of_a_text_do_not_matter(text):
    with torch.no_grad():
        alone = torch.cat([text(*token_batch(text.tokenizer, [w])) for w in WORDS])
        ids, mask = token_batch(text.tokenizer, WORDS)
        wide = F.pad(ids, (0, 5), value=7), F.pad(mask, (0, 5))
        torch.testing.assert_close(text(ids, mask), alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(text(*wide), alone, atol=1e-5, rtol=1e-5)
        assert (text(wide[0], torch.ones_like(wide[1])) - alone).abs().max() > 1e-3
    assert (alone.norm(dim=1) - 1).abs().max() > 1e-3


@pytest.mark.parametrize('batch', [1, 2, 64])
def test_reports_are_the_same_whatever_the_batch(text, batch):
    torch.testing.assert_close(text.encode(WORDS, batch), text.encode(WORDS, 3), atol=1e-6, rtol=1e-5)


def test_a_text_beyond_the_context_is_cut_and_still_ends(text):
    ids, mask = token_batch(text.tokenizer, [' '.join(WORDS*9), WORDS[1]], 24)
    assert ids.shape == (2, 24) and ids[0, -1] == text.tokenizer.token_to_id('[SEP]') and mask[0].all() and not mask[1].all()


# Losses

def pairs(rows=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=g, requires_grad=True), torch.randn(rows, 6, generator=g, requires_grad=True)


@pytest.mark.parametrize('loss', [clip_loss, siglip_loss, lambda *x, **k: clip_loss(*x, gated=True, **k)], ids=['clip', 'siglip', 'gated'])
@pytest.mark.parametrize('several', [False, True])
def test_a_loss_is_one_positive_number_with_a_gradient(loss, several):
    video, words = pairs()
    more = dict(positives=torch.eye(4, dtype=torch.bool) | torch.eye(4, dtype=torch.bool).roll(1, 1)) if several else {}
    out = loss(video, words, **more)
    out.backward()
    assert out.shape == () and out.isfinite() and out > 0
    assert all(x.grad.isfinite().all() and x.grad.abs().max() > 0 for x in (video, words))


def test_the_gate_makes_cosines_smaller():
    video, words = (x.detach() for x in pairs())
    assert clip_loss(video, words) != clip_loss(video, words, gated=True)
    s = torch.linspace(-1, 1, 41)
    assert (s*s.sigmoid() <= s)[s > 0].all() and (s*s.sigmoid() >= s)[s < 0].all()
    right, wrong = torch.tensor([[1., 0.], [0., 1.]]), torch.tensor([[0., 1.], [1., 0.]])
    assert clip_loss(right, right) < clip_loss(right, right, gated=True) < clip_loss(right, wrong, gated=True) < clip_loss(right, wrong)


def test_a_loss_that_is_no_number_ends_the_run_before_the_weights():
    line = torch.nn.Linear(2, 1)
    rows = [(torch.ones(2), torch.ones(1))]*4 + [(torch.full((2,), torch.nan), torch.ones(1))]
    learn = echo_learner(DataLoaders(DataLoader(rows, bs=2), DataLoader(rows[:2], bs=2)), line, F.mse_loss, half=False)
    with learn.no_bar(), learn.no_logging(), pytest.raises(LossError, match='the loss is nan in epoch 0, batch 2'): learn.fit(2)
    assert all(p.isfinite().all() for p in line.parameters())


# Retrieval

def test_recall_from_perfect_to_worst():
    eye = np.eye(6)
    assert [recall_at_k(eye, k, eye).value for k in (1, 3, 6)] == [1, 1, 1]
    worst = -np.eye(6)
    assert [recall_at_k(worst, k, eye).value for k in (1, 5, 6)] == [0, 0, 1]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_recall_is_a_share_and_grows_with_k(queries, gallery, seed):
    rng = np.random.default_rng(seed)
    same = rng.random((queries, gallery)) < .3
    same[np.arange(queries), rng.integers(0, gallery, queries)] = True
    similarity = rng.integers(0, 3, (queries, gallery))
    found = [recall_at_k(similarity, k, same) for k in range(1, gallery + 4)]
    values = [r.value for r in found]
    assert all(0 <= v <= 1 + 1e-12 for v in values) and all(b >= a - 1e-12 for a, b in zip(values, values[1:]))
    assert values[gallery - 1:] == pytest.approx([1]*4) and found[0].gallery == gallery


def test_recall_with_one_query_repeated_truths_and_other_sizes():
    assert recall_at_k([[.3]], 1, [[True]]).value == 1
    similarity = np.array([[.9, .8, .1], [.2, .7, .3]])
    same = np.array([[False, True, True], [True, False, True]])
    assert [recall_at_k(similarity, k, same).value for k in (1, 2, 3)] == [0, 1, 1]


# Studies of many clips

@pytest.mark.parametrize('mode', BagPool.modes)
def test_a_study_without_clips_is_zero(mode):
    torch.manual_seed(0)
    pool, none = BagPool(8, mode, 5, 2).eval(), torch.tensor([[True, True], [False, False]])
    x = torch.randn(2, 2, 8)
    x[1] = torch.nan
    with torch.no_grad(): out, weights = pool(x, none)
    assert out.shape == (2, pool.width) == (2, 16 if '+' in mode else 8)
    assert out.isfinite().all() and (out[1] == 0).all() and (weights[1] == 0).all() and out[0].abs().max() > 0


@pytest.mark.parametrize('make', [lambda: AnatomicalAttention(8, hidden=4), lambda: SectionPool(8, mode='cls', heads=2)], ids=['anatomical', 'sections'])
def test_sections_of_a_study_without_clips_are_zero(make):
    torch.manual_seed(0)
    x, views, mask = torch.randn(2, 3, 8), torch.full((2, 3, 11), 1/11), torch.tensor([[True, True, False], [False]*3])
    x[~mask] = torch.nan
    with torch.no_grad(): queries, weights = make().eval()(x, views, mask)
    assert queries.isfinite().all() and (queries[1] == 0).all() and (weights[1] == 0).all() and (weights[0, :, 2] == 0).all()


def test_pooling_refuses_what_it_cannot_read():
    mask = torch.ones(2, 3, dtype=torch.bool)
    for bad in (torch.zeros(2, 8), torch.zeros(2, 3, 7), torch.zeros(2, 3, 4, 7)):
        with pytest.raises(ValueError, match=r'clips are \[S,N,8\]'): BagPool(8, 'mean')(bad, mask)
    with pytest.raises(ValueError, match="no way to pool called 'median'"): BagPool(8, 'median')
    with pytest.raises(TypeError, match='bool with True = valid'): BagPool(8, 'mean')(torch.zeros(2, 3, 8), mask.float())


@pytest.mark.parametrize('mode', BagPool.modes)
def test_weights_of_a_pool_survive_a_file(mode, tmp_path):
    torch.manual_seed(0)
    pool, twin, x, mask = BagPool(8, mode, 5, 2).eval(), BagPool(8, mode, 5, 2).eval(), torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)
    torch.save(pool.state_dict(), tmp_path/'pool.pt')
    twin.load_state_dict(torch.load(tmp_path/'pool.pt', weights_only=True))
    with torch.no_grad(): assert torch.equal(twin(x, mask)[0], pool(x, mask)[0])


def test_padding_comes_after_the_clips():
    x, mask = padded([np.ones((1, 3, 2, 4, 4), np.uint8), np.full((3, 3, 2, 4, 4), 2, np.uint8)])
    assert x.shape == (2, 3, 3, 2, 4, 4) and x.dtype == torch.uint8 and mask.tolist() == [[True, False, False], [True]*3]
    assert (x[0, 1:] == 0).all() and (x[0, 0] == 1).all()


# Loading

def films(folder, n=6, **more):
    rng, rows = np.random.default_rng(0), []
    for i in range(n):
        path = write_video(folder/f'{i}.avi', rng.integers(0, 255, (8, 32, 32, 3), dtype=np.uint8), 25)
        rows.append(dict(clip_id=f'{i:012x}', patient_id=f'p{i}', study_id=f's{i}', path=path.name, kind='bmode', ef=30. + i, **more))
    return manifest(rows, 'toy')


def broken(x, rng): raise RuntimeError('no such angle')

def floats(x, rng): return x/255

def thinner(x, rng): return x[:, :2]

def nothing(x, rng): return None


@pytest.mark.parametrize('augment, says', [(broken, 'RuntimeError: no such angle'), (floats, 'gave float64'), (thinner, r'gave uint8 \[3, 2, 32, 32\]'),
                                           (nothing, 'gave NoneType')])
def test_a_failed_transform_is_a_failure(tmp_path, augment, says):
    table = films(tmp_path)
    def odd(x, rng): return augment(x, rng) if x[0, 0, 0, 0] == first[0, 0, 0, 0] else x
    first = clip_batches(table, tmp_path, SMALL, ['ef']).reader.read(0)
    loader = clip_batches(table, tmp_path, InputContract(**{**SMALL.to_dict(), 'frames': 8}), ['ef'], train=True, augment=odd, bs=6, max_lost=.9)
    seen = sum(len(x) for x, _ in loader)
    lost = failure_table(loader)
    assert seen == 6 - len(lost) >= 1 and set(lost.stage) == {'preprocess'} and lost.reason.str.contains(says).all()
    with pytest.raises(LostClips): list(clip_batches(table, tmp_path, SMALL, ['ef'], train=True, augment=augment))


def test_the_order_changes_and_the_items_do_not(tmp_path):
    loader = clip_batches(films(tmp_path), tmp_path, SMALL, ['ef'], train=True, bs=6)
    epochs = [next(iter([y[:, 0].tolist() for _, y in loader])) for _ in range(4)]
    assert len({tuple(e) for e in epochs}) > 1 and {tuple(sorted(e)) for e in epochs} == {(30., 31., 32., 33., 34., 35.)}


def test_clips_without_labels_have_no_targets(tmp_path):
    x, y = next(iter(clip_batches(films(tmp_path), tmp_path, SMALL, [], bs=6)))
    assert x.shape == (6, 3, 4, 32, 32) and x.dtype == torch.uint8 and y.shape == (6, 0)


def test_an_unknown_split_is_an_error(tmp_path):
    with pytest.raises(EchoError, match="no usable row is in split 'dev'; there are train"):
        two_loaders(clip_batches, films(tmp_path, split='train'), tmp_path, SMALL, ['ef'], parts=('train', 'dev'))


@pytest.mark.parametrize('frames', [1, 3, 16, 40])
def test_short_clips_are_held_or_padded_to_any_length(frames):
    ramp = np.arange(8, dtype=np.uint8)[:, None, None, None]*20 + np.zeros((8, 32, 32, 3), np.uint8)
    clip = Clip('0'*12, 8, 32, 32, lambda i: ramp[i], fps=30.)
    def seen(padding): return InputContract(**{**SMALL.to_dict(), 'frames': frames, 'padding': padding}).clip_tensor(clip)[0, :, 16, 16].tolist()
    real = [20*i for i in range(min(frames, 8))]
    assert seen('hold') == real + [140]*(frames - 8)
    assert seen('zero')[:8] == real and len(seen('zero')) == frames


@pytest.mark.parametrize('change, says', [(dict(mean=(1., 2.)), 'three values'), (dict(std=(0., 1., 1.)), 'above 0'), (dict(frames=0), 'positive'),
                                          (dict(size=-1), 'positive'), (dict(padding='loop'), 'not one of')])
def test_a_contract_says_what_is_wrong(change, says):
    with pytest.raises(ValueError, match=says): InputContract(**SMALL.to_dict() | change)


def test_grey_becomes_three_channels_and_other_numbers_are_refused(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 1), dtype=np.uint8).repeat(3, -1)
    shown = read_cine(write_video(tmp_path/'grey.avi', grey, 25))[:]
    assert shown.shape == (4, 32, 32, 3) and np.ptp(shown.astype(int), axis=-1).max() <= 3
    with pytest.raises(ValueError, match='asked for'): Clip('0'*12, 4, 32, 32, lambda i: grey[i][..., :2], fps=30.)[:]
    for name, content in (('empty.avi', b''), ('torn.mp4', b'\0'*64)):
        (tmp_path/name).write_bytes(content)
        with pytest.raises(EchoError): read_cine(tmp_path/name)


# Settings and ranks

def test_settings_are_read_as_the_kind_they_replace():
    changed = load_recipe('video-report', {'learn.half': 'false', 'learn.siglip': 'True', 'pretrain.epochs': '1e1', 'learn.decay': '.5',
                                           'pretrain.kinds': '["bmode"]', 'refine.kinds': ['colour']})
    assert (changed['learn']['half'], changed['learn']['siglip'], changed['pretrain']['epochs'], changed['learn']['decay']) == (False, True, 10, .5)
    assert (changed['pretrain']['kinds'], changed['refine']['kinds']) == (['bmode'], ['colour'])


@pytest.mark.parametrize('key, value, says', [
    ('learn.half', 'no', 'must be bool'), ('pretrain.epochs', '2.5', 'must be int'), ('learn.decay', 'much', 'must be float'),
    ('pretrain.kinds', 'bmode', 'must be list'), ('learn.halv', '1', "did you mean 'learn.half'"), ('learn', '{}', "no setting 'learn'"),
    ('learn.half.more', '1', 'no setting')])
def test_settings_that_make_no_sense_are_errors(key, value, says):
    with pytest.raises(RecipeError, match=says): load_recipe('video-report', {key: value})


def test_a_process_alone_trains_as_it_is():
    assert join_ranks() == 1
    rows = [(torch.ones(2), torch.ones(1))]*4
    learn = echo_learner(DataLoaders(DataLoader(rows, bs=2), DataLoader(rows, bs=2)), torch.nn.Linear(2, 1), F.mse_loss, half=False)
    train = learn.dls.train
    with every_rank(learn) as same: assert same is learn and learn.dls.train is train
