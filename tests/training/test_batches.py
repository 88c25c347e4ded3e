"Loaders give the same batches with and without workers."
import subprocess
import sys

SCRIPT = """
import sys
from pathlib import Path
import numpy as np, torch
from echo_lit.data.cine import write_video
from echo_lit.data.contract import InputContract
from echo_lit.data.manifest import manifest
from echo_lit.training.batches import clip_batches

folder, rng = Path(sys.argv[1]), np.random.default_rng(0)
rows = []
for i in range(12):
    write_video(folder/f'{i}.avi', rng.integers(0, 255, (8, 32, 32, 3), dtype=np.uint8), 25)
    rows.append(dict(clip_id=f'{i:012x}', patient_id=f'p{i}', study_id=f's{i}', path=f'{i}.avi', ef=30. + i, view='A4C'))
films, contract = manifest(rows, 'toy'), InputContract(frames=4, seconds=.3, size=32)

def changed(x, rng): return np.clip(x + rng.normal(0, 5), 0, 255).astype(np.uint8)

def batches(workers): return list(clip_batches(films, folder, contract, ['ef'], train=True, augment=changed, seed=3, bs=5, workers=workers))

helped, alone = batches(2), batches(0)
assert len(helped) == len(alone) > 1
assert all((a == b).all() for p, q in zip(alone, helped) for a, b in ((p[0], q[0]), (p[2], q[2])))
assert sorted(torch.cat([at for *_, at in helped]).tolist()) == list(range(12))
print('same')
"""


def test_two_workers_give_the_batches_of_none(tmp_path):
    done = subprocess.run([sys.executable, '-c', SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == 'same', done.stderr[-2000:]
