"Probes that read tokens and pixels, and outlines of a data set."
import numpy as np
import pandas as pd
import pytest
import torch

from echo_lit.core import EchoError
from echo_lit.data.camus import Camus
from echo_lit.data.contract import InputContract
from echo_lit.data.nifti import write_nifti
from echo_lit.evaluate.comparison import probe_encoders, write_bench, write_comparison
from echo_lit.evaluate.segmentation import dice, hausdorff95, linear_outlines, outlined_frames, place_map, segmentation_table
from echo_lit.evaluate.tuning import tuning_probe
from echo_lit.models.hub import Bundle, save_bundle
from echo_lit.models.vit import FrameViTTower, ViTTower
from echo_lit.training.loaders import disc_corpus, open_corpus


@pytest.fixture(scope='module')
def discs(tmp_path_factory):
    return disc_corpus(tmp_path_factory.mktemp('probe')/'discs', n=30)


@pytest.fixture
def small(tmp_path, discs):
    torch.manual_seed(0)
    contract = open_corpus(discs).contract
    return save_bundle(Bundle('small', video=ViTTower(contract, width=24, depth=3, heads=2, patch=8), contract=contract), tmp_path/'small')


def test_one_table(discs, small, tmp_path):
    "Every answer lies beside its truth; a second run reads the same vectors."
    names, probes = [str(small), f'random:{small}'], ['knn', 'linear']
    c = probe_encoders(names, discs, ['ef'], probes, n=50, cache=tmp_path/'kept')
    assert set(zip(c.table.encoder, c.table.probe)) == {(e, p) for e in ('small', 'random:small') for p in probes}
    assert sorted(c.pairs.probe) == sorted(probes)
    write_comparison(c, tmp_path/'out')
    said = pd.read_csv(tmp_path/'out'/'answers.csv')
    for (e, p), t in c.table[c.table.measure == 'error'].groupby(['encoder', 'probe']):
        a = said[(said.encoder == e) & (said.probe == p)]
        assert (a.said - a.true).abs().mean() == pytest.approx(t.value.item())
    files = sorted((tmp_path/'kept').iterdir())
    again = probe_encoders(names, discs, ['ef'], probes, n=50, cache=tmp_path/'kept')
    assert sorted((tmp_path/'kept').iterdir()) == files
    pd.testing.assert_frame_equal(again.table, c.table)
    with pytest.raises(EchoError, match='CardioBench tables are for one set'): write_bench(tmp_path/'x.csv', c.answers['ef', 'small', 'knn'], c.rows)


def test_what_is_below_stays(discs):
    "Only the last blocks and what follows them learn; the tower that was given keeps all its weights."
    corpus, seen = open_corpus(discs), {}
    tower = ViTTower(corpus.contract, width=24, depth=3, heads=2, patch=8).eval()
    before = {k: v.clone() for k, v in tower.state_dict().items()}
    import echo_lit.evaluate.tuning as tuning
    kept = tuning.Tuned
    class Watched(kept):
        def __init__(self, *args): super().__init__(*args); seen['model'] = self
    tuning.Tuned = Watched
    try:
        read = lambda at: torch.from_numpy(np.stack([corpus.clips[i] for i in at]))
        tuning_probe(tower, read, last=1, steps=3).fit(np.arange(20)[:, None].astype(np.float32), np.arange(20.), 1e-2, 0)
    finally: tuning.Tuned = kept
    moved = {k for k, v in seen['model'].tower.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(k.startswith(('vit.blocks.2.', 'vit.norm.')) for k in moved)
    assert all(torch.equal(v, before[k]) for k, v in tower.state_dict().items())


def camus(root, patients=6):
    rng = np.random.default_rng(0)
    for n in range(1, patients + 1):
        folder = root/'database_nifti'/f'patient{n:04d}'
        folder.mkdir(parents=True)
        y, x = np.mgrid[:48, :64]
        for chambers in ('2CH', '4CH'):
            labels = np.stack([(np.hypot(y - 24, x - 32) < r).astype(np.uint8) for r in (14, 12, 10, 8)])
            frames = np.where(labels > 0, 20, 160) + rng.integers(0, 30, labels.shape)
            stem = folder/f'{folder.name}_{chambers}_half_sequence'
            write_nifti(f'{stem}.nii.gz', frames.astype(np.uint8), (.05, .05))
            write_nifti(f'{stem}_gt.nii.gz', labels, (.05, .05))
            (folder/f'Info_{chambers}.cfg').write_text('ED: 1\nES: 4\nNbFrame: 4\nEF: 50\nFrameRate: 20\n')
    (root/'database_split').mkdir()
    for side, who in (('training', (1, 2, 3)), ('validation', (4,)), ('testing', (5, 6))):
        (root/'database_split'/f'subgroup_{side}.txt').write_text(''.join(f'patient{n:04d}\n' for n in who))
    return Camus(root, quiet=True)


def test_camus_outlines(tmp_path):
    "Official split, both phases of both views, and areas and distances in the units of the file."
    ds = camus(tmp_path)
    contract = InputContract(frames=4, seconds=None, stride=1, size=64, crop='centre', mask=False)
    items = outlined_frames(ds, contract)
    assert len(items) == 6*2*2 and {(o.phase, o.at) for o in items} == {('ED', 0), ('ES', 3)}
    assert {o.part: o.patient for o in items}.keys() == {'train', 'val', 'test'}
    assert items[0].mm == pytest.approx(.5*48/128)
    assert (items[0].labels == 1).sum()*items[0].mm**2 == pytest.approx(np.pi*7**2, rel=.05)
    assert hausdorff95(items[0].labels == 1, items[1].labels == 1, items[0].mm) == pytest.approx(3, abs=.6)
    torch.manual_seed(0)
    for tower in (ViTTower(contract, width=24, depth=1, heads=2, patch=8), FrameViTTower(contract, width=24, depth=1, heads=2, patch=8)):
        assert place_map(tower.eval(), items[:3]).shape == (3, 24, 8, 8)
        said, _ = linear_outlines(tower, items, 2, grid=(5e-2,), steps=40, bs=8)
        t = segmentation_table({'vit': said}, items, {1: 'LV'}, n=50)
        assert t.patients.unique().tolist() == [2] and t.frames.unique().tolist() == [4]
        assert t[t.measure == 'Dice'].value.min() > .5


def test_distance_of_contours_is_symmetric():
    rng = np.random.default_rng(0)
    for _ in range(10):
        a, b = (np.hypot(*(np.mgrid[:40, :40] - rng.integers(12, 28, (2, 1, 1)))) < rng.integers(3, 12) for _ in range(2))
        assert hausdorff95(a, b) == hausdorff95(b, a) and dice(a, b) == dice(b, a)
        assert hausdorff95(a, b, mm=.3) == pytest.approx(.3*hausdorff95(a, b))
