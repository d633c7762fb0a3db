"""Verify a data set, packed or unpacked, and write array_record files for training:

    rml-jax prepare folder --root=PHOTOS --tags=tags.csv --out=DIR
    rml-jax prepare voc --manual_dir=FOLDER --out=DIR
    rml-jax prepare coco --manual_dir=FOLDER --out=DIR

Every image and mask is decoded. Bad ones are left out and reported; too many are an error at the end. If the command
is interrupted and run again, it continues after the last complete shard of 512 images. It ends with a report.
"""

import argparse
import signal
from pathlib import Path

import tensorflow_datasets as tfds

from rml_jax.commands import cli
from rml_jax.data.preparation.base import report_lines
from rml_jax.data.preparation.coco import Coco2014
from rml_jax.data.preparation.folder import TaggedFolder
from rml_jax.data.preparation.voc import VocSbd
from rml_jax.data.tags import split_names
from rml_jax.labels import IGNORE
from rml_jax.utils.errors import Interrupted, UserError

_VOC = """\
PASCAL VOC 2012 with SBD's masks: train_aug (10,582 images) and val (1,449).

FOLDER contains, packed or unpacked, at any depth:
  VOCtrainval_11-May-2012.tar  or VOCdevkit/VOC2012
and one of
  benchmark.tgz                SBD as its authors publish it, or benchmark_RELEASE
  SegmentationClassAug.zip     or SegmentationClassAug: masks already converted

Masks are not changed: VOC's have borders of 255 around objects, SBD's have none."""
_COCO = """\
COCO 2014: train2014 (82,081 images with any of the 80 classes) and val2014 (40,137).

FOLDER contains, packed or unpacked:
  train2014.zip, val2014.zip
  annotations_trainval2014.zip, or instances_train2014.json and instances_val2014.json"""
_FOLDER = """\
Your own images with a tag file (image,tags) or one sub-folder per tag: train and val.

The formats are described in docs/data.md."""


def prepare(builder):
    """Prepares a data set unless it already exists.

    Args:
      builder: `rml_jax.data.preparation.base.PreparedBuilder`.

    Returns:
      The folder (pathlib.Path), for `config.data.root`, and the report as lines of text.

    Raises:
      UserError: for missing or malformed sources, too many bad images, a full disk, or existing data that was
        prepared from other files or settings.
    """
    folder = Path(builder.data_dir)
    if folder.exists() and builder.report()["settings"] != builder.settings():
        raise UserError(
            f"{folder} was prepared from other files or settings: expected another --out, or delete it"
        )
    lines = [f"{folder} already exists; delete it to prepare it again"] if folder.exists() else []
    try:
        # These data sets are not in Google's bucket of prepared data.
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: {error.strerror or error}, expected room to write"
        ) from error
    return folder, [*lines, *report_lines(builder.report())]


def _make_parser():
    parser = cli.Parser("rml-jax prepare", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{folder,voc,coco}")

    def add(kind, description):
        prog = f"rml-jax prepare {kind}"
        kind_parser = kinds.add_parser(
            kind, prog=prog, help=description.partition("\n")[0], description=description
        )
        kind_parser.add_argument("--out", type=Path, required=True, help="folder to write to")
        kind_parser.add_argument(
            "--max_bad", type=_share, default=0.01, help="share of images that may be bad (default 0.01)"
        )
        return kind_parser

    folder = add("folder", _FOLDER)
    folder.add_argument("--root", required=True, help="folder of images")
    folder.add_argument("--tags", default="", help="tag file; without it, sub-folders name the tags")
    folder.add_argument(
        "--masks", default="", help="folder of masks, for scoring; each validation image needs one"
    )
    folder.add_argument(
        "--classes",
        default="",
        help="class list, 'cat,dog'; a name with a comma in double quotes (default: the tags, sorted)",
    )
    folder.add_argument(
        "--mask_values", default="", help="numbers of the classes in the masks (default 1,2,...)"
    )
    folder.add_argument(
        "--mask_ignore",
        type=int,
        default=IGNORE,
        help="number of pixels that aren't annotated; -1: there are none (default %(default)s)",
    )
    folder.add_argument("--allow_absent", action="store_true", help="a class may occur in no mask")
    folder.add_argument("--val_list", default="", help="text file that names the validation images")
    folder.add_argument(
        "--val_fraction", type=_share, default=0.1, help="share to draw instead (default 0.1)"
    )
    folder.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")

    voc, coco = add("voc", _VOC), add("coco", _COCO)
    for kind_parser, what in ((voc, "VOC's archive (2 GB; not SBD's)"), (coco, "archives (20 GB)")):
        kind_parser.add_argument("--manual_dir", required=True, metavar="FOLDER", help="see above")
        kind_parser.add_argument(
            "--download", action="store_true", help=f"download {what} that FOLDER lacks, checksums checked"
        )
    voc.add_argument(
        "--tags",
        choices=("masks", "xml"),
        default="masks",
        help="take tags from masks or XML (default masks)",
    )
    return parser


def _make_builder(chosen):
    common = {"data_dir": chosen.out, "max_bad": chosen.max_bad}
    if chosen.kind == "voc":
        return VocSbd(config=chosen.tags, manual_dir=chosen.manual_dir, downloads=chosen.download, **common)
    if chosen.kind == "coco":
        return Coco2014(manual_dir=chosen.manual_dir, downloads=chosen.download, **common)
    options = {
        "class_names": _names(chosen.classes),
        "tags_file": chosen.tags,
        "mask_folder": chosen.masks,
        "mask_values": _numbers(chosen.mask_values),
        "mask_ignore": chosen.mask_ignore,
        "val_list": chosen.val_list,
        "val_fraction": chosen.val_fraction,
        "seed": chosen.seed,
    }
    return TaggedFolder(root=chosen.root, folder_options=options, allow_absent=chosen.allow_absent, **common)


def _share(text):
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no share: expected 0 <= share < 1")
    return value


def _parts(text):
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _names(text):
    try:
        return split_names(text)
    except ValueError as error:
        raise UserError(f"--classes: {error}, expected NAME,NAME") from error


def _numbers(text):
    try:
        return tuple(map(int, _parts(text)))
    except ValueError as error:
        raise UserError(f"--mask_values={text}: expected whole numbers, 1,2,...") from error


@cli.command
def main(arguments=None):
    """Runs the command."""
    chosen = _make_parser().parse_args(arguments)
    try:
        folder, lines = prepare(_make_builder(chosen))
    except KeyboardInterrupt as error:
        raise Interrupted("\nstopped; run the same command to continue", signal.SIGINT) from error
    print("\n".join(lines))
    print(f"next: rml-jax train --config={chosen.kind} --config.data.root={folder} --workdir=DIR")
