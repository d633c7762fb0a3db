"""Reads annotation files in COCO's format, of COCO itself and of annotation tools."""

import collections
import dataclasses
import json
import math
from pathlib import Path, PurePosixPath, PureWindowsPath

from rml_jax.data.images import MAX_PIXELS
from rml_jax.data.sources.coco_categories import CocoCategories, as_id, read_categories
from rml_jax.data.sources.coco_masks import has_outline
from rml_jax.data.tags import image_id
from rml_jax.utils.errors import UserError

_SHOWN = 60  # characters of a value that is wrong


@dataclasses.dataclass(frozen=True)
class CocoImage:
    """An image of an annotation file.

    Attributes:
      id: its file's name without suffix, with folders unless they lead elsewhere ("/data/a.jpg", "../a.jpg").
      file: its file's name with forward slashes.
      size: (height, width), or None if the file doesn't say.
      tags: places 0..C-1 of its classes, ascending.
      objects: list of (class number 1..C, segmentation, area or None, whether it is a crowd); None if masks were not
        asked for, or an object has no outline.
      error: what is wrong with the image or one of its annotations; "" if nothing is.
    """

    id: str
    file: str = ""
    size: tuple[int, int] | None = None
    tags: tuple[int, ...] = ()
    objects: list | None = None
    error: str = ""


@dataclasses.dataclass(frozen=True)
class CocoAnnotations:
    """Content of an annotation file.

    Attributes:
      categories: CocoCategories of the classes.
      images: list of CocoImage with at least one annotation or an error. Their ids differ.
      without_objects: number of the other images.
      notes: lines about what was left out or is wrong.
    """

    categories: CocoCategories
    images: list[CocoImage]
    without_objects: int
    notes: list[str]


def load_json(data, path, keys=("images", "annotations")):
    """Returns the content of an annotation file, a dict with some lists.

    Args:
      data: the file's bytes.
      path: path of the file, for error messages.
      keys: the lists that it must have.

    Raises:
      UserError: if it is something else.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: found {type(error).__name__}: {error}, expected COCO's JSON") from error
    for key in keys:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path}: found no list of {key}, expected COCO's format")
    return content


def parse_annotations(data, path, categories=None, with_masks=False):
    """Reads an annotation file.

    What is wrong with an image or one of its annotations is an `error` of that image alone. Annotations that belong
    to no image are counted in `notes`.

    Args:
      data: the file's bytes.
      path: path of the file, for messages.
      categories: CocoCategories that the file must agree with; None takes those of the file.
      with_masks: whether to keep the objects with their outlines.

    Returns:
      CocoAnnotations.

    Raises:
      UserError: if the file isn't in COCO's format, its categories are malformed or not as expected, or it has no
        sound image with an annotation.
    """
    content = load_json(data, path)
    categories, places = read_categories(content, path, categories)
    objects, wrong, strays = _read_objects(content, path, places, with_masks)
    entries = [_read_image(entry) for entry in content["images"]]
    keys = [as_id(entry.get("id")) if isinstance(entry, dict) else None for entry in content["images"]]
    ids = collections.Counter(image.id for image in entries)
    repeated = collections.Counter(keys)
    images, without = [], 0
    for number, (key, image) in enumerate(zip(keys, entries, strict=True), 1):
        things, error = objects.get(key, []), image.error or wrong.get(key, "")
        if key is None:
            error = "found no id, expected a number or a text"
        elif repeated[key] > 1:
            error = f"found the id {key!r} for {repeated[key]} images, expected each once"
        elif not image.error and ids[image.id] > 1:
            error = f"found {image.file!r} for {ids[image.id]} images without suffix, expected each once"
        if error:
            name = (
                image.id if not image.error and ids[image.id] == 1 else f"image {number} of {Path(path).name}"
            )
            where = "" if error == wrong.get(key) else f"{path} image {number}: "
            images.append(CocoImage(name, image.file, error=where + error))
        elif things:
            images.append(_with_objects(image, things, with_masks))
        else:
            without += 1
    if not any(not image.error for image in images):
        reason = f": {images[0].error}" if images else ""
        raise UserError(f"{path}: found no image with an object{reason}")
    for key in (objects.keys() | wrong.keys()) - repeated.keys():
        strays += [f"image_id {key!r}"] * len(objects.get(key, [key]))
    return CocoAnnotations(categories, images, without, _notes(images, without, strays))


def _with_objects(image, things, with_masks):
    tags = tuple(sorted({number - 1 for number, *_ in things}))
    kept = things if with_masks and all(has_outline(thing[1]) for thing in things) else None
    return dataclasses.replace(image, tags=tags, objects=kept)


def _read_objects(content, path, places, with_masks):
    """Returns dicts from image id to objects and to errors, and what belongs to no image."""
    objects, wrong, strays = {}, {}, []
    for number, entry in enumerate(content["annotations"], 1):
        key = as_id(entry.get("image_id")) if isinstance(entry, dict) else None
        if key is None:
            strays.append(f"annotation {number}, {_shown(entry)}")
            continue
        category, crowd, area = as_id(entry.get("category_id")), entry.get("iscrowd"), entry.get("area")
        if category not in places:
            found = (
                f"category_id {_shown(entry.get('category_id'))}, expected the id of a category in the file"
            )
            wrong.setdefault(key, f"{path} annotation {number}: found {found}")
        elif crowd not in (None, 0, 1):
            wrong.setdefault(
                key, f"{path} annotation {number}: found iscrowd {_shown(crowd)}, expected 0 or 1"
            )
        else:
            segmentation = entry.get("segmentation") if with_masks else None
            thing = (places[category] + 1, segmentation, area if _is_number(area) else None, bool(crowd))
            objects.setdefault(key, []).append(thing)
    return objects, wrong, strays


def _read_image(entry):
    """Returns a CocoImage without objects."""
    if not isinstance(entry, dict):
        return CocoImage("", error=f"found {_shown(entry)}, expected an object with id and file_name")
    file, height, width = entry.get("file_name"), entry.get("height"), entry.get("width")
    if not isinstance(file, str) or not file.strip() or not file.isprintable():
        return CocoImage("", error=f"found file_name {_shown(file)}, expected the name of a file")
    if PureWindowsPath(file).drive or "/" not in file:
        file = file.replace("\\", "/")
    size = None if height is None and width is None else (as_id(height), as_id(width))
    if size and not (
        all(isinstance(side, int) and side > 0 for side in size) and math.prod(size) <= MAX_PIXELS
    ):
        found = f"height {_shown(height)} and width {_shown(width)}"
        return CocoImage("", file, error=f"found {found}, expected whole numbers of pixels")
    path = PurePosixPath(file)
    leads_elsewhere = path.is_absolute() or ".." in path.parts or PureWindowsPath(file).drive
    return CocoImage(image_id(path.name if leads_elsewhere else file), file, size)


def _notes(images, without, strays):
    notes, wrong = [], [image for image in images if image.error]
    if without:
        notes.append(f"images that are left out, as they have no annotation: {without}")
    if wrong:
        notes.append(f"images with a wrong entry or annotation: {len(wrong)}, the first: {wrong[0].error}")
    if strays:
        notes.append(f"annotations of no image in the file: {len(strays)}, one of them: {strays[0]}")
    return notes


def _is_number(value):
    # Comparing is safe for integers that are too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _shown(value):
    return repr(value)[:_SHOWN]
