#!/usr/bin/env bash
# grain 0.2.18.
# Expected: mp_prefetch changes how fast batches come, and not what is in them.
# Seen: with .batch after .to_iter_dataset(), each worker makes batches of its own share of the elements; with .batch
#   before it they stay the same. First batch: "batch before: 0 workers [15, 4, 10, 19], 2 workers [15, 4, 10, 19];
#   batch after: 0 workers [15, 4, 10, 19], 2 workers [15, 10, 8, 14]".
# Why it matters: the same seed trains another network on a machine with another number of workers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet grain==0.2.18 numpy==2.4.6
cat > show.py <<'PYTHON'
import grain
from absl import flags


def batches(batch_first, workers):
    dataset = grain.MapDataset.range(24).shuffle(seed=0)
    dataset = dataset.batch(4).to_iter_dataset() if batch_first else dataset.to_iter_dataset().batch(4)
    if workers:
        dataset = dataset.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=workers))
    return [batch.tolist() for batch in dataset]


if __name__ == "__main__":
    flags.FLAGS(["show"])
    found = {(first, workers): batches(first, workers) for first in (True, False) for workers in (0, 2)}
    for first, name in ((True, "before"), (False, "after")):
        print(f"batch {name}: 0 workers {found[first, 0][0]}, 2 workers {found[first, 2][0]}")
    assert found[True, 0] == found[True, 2] == found[False, 0]
    assert found[False, 2] != found[False, 0], "batches no longer depend on the workers"
PYTHON
env/bin/python show.py
