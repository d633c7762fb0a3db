#!/usr/bin/env bash
# grain 0.2.18.
# Expected: dataset.repeat().shuffle(seed) and dataset.shuffle(seed).repeat() both show every image once per epoch.
# Seen: shuffled after an endless repeat, an epoch is drawn as if with replacement: "1000 images, one epoch: 1000
#   different ones with shuffle().repeat(), 624 with repeat().shuffle()". After repeat(2) it is 746.
# Why it matters: more than a third of the training set is missing from each epoch, others come two and three times,
#   without an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet grain==0.2.18 numpy==2.4.6
cat > show.py <<'PYTHON'
import grain

IMAGES = 1000


def different(dataset):
    return len({int(dataset[index]) for index in range(IMAGES)})


images = grain.MapDataset.range(IMAGES)
first = different(images.shuffle(seed=0).repeat())
after = different(images.repeat().shuffle(seed=0))
print(
    f"{IMAGES} images, one epoch: {first} different ones with shuffle().repeat(), {after} with repeat().shuffle(), "
    f"{different(images.repeat(2).shuffle(seed=0))} with repeat(2).shuffle()"
)
assert first == IMAGES and after < 0.7 * IMAGES, "this has changed"
PYTHON
env/bin/python show.py
