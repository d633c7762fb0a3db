"""Reading of masks, whose pixels are class numbers, from files and bytes.

A mask is a palette image, a grey image of 1, 8 or 16 bits, or has equal red, green and blue. Colours are read if a
label map gives the class of each (`read_label_map`).
"""

from pathlib import Path

import numpy as np

from rml_jax.data.images import bits_per_sample, open_image, read_bytes, wide_values
from rml_jax.data.tags import read_text, tag_key
from rml_jax.labels import BACKGROUND, IGNORE
from rml_jax.utils.errors import UserError
from rml_jax.utils.progress import Progress

LABEL_MAP_FILE = "labelmap.txt"
NO_IGNORE = -1
"""Value of `data.mask_ignore` for masks in which every pixel is annotated."""

# Formats whose numbers pillow returns as stored: not JPEG, WebP or AVIF, whose compression is lossy, nor PGM, whose
# values pillow scales.
_FORMATS = ("PNG", "TIFF", "BMP", "GIF")
# Labels that mean ignore, and their colour in PASCAL VOC.
_IGNORE_LABELS = ("ignore", "ignored", "void")
_VOC_VOID = (224, 224, 192)


def read_mask(path, mask_values, ignore=IGNORE, colours=None):
    """Reads and decodes a mask file; see `decode_mask`.

    Raises:
      UserError: also if the file can't be read.
    """
    return decode_mask(read_bytes(path), path, mask_values, ignore, colours)


def decode_mask(data, name, mask_values, ignore=IGNORE, colours=None):
    """Decodes a mask and renumbers its classes to 1..C.

    Args:
      data: the file's bytes.
      name: the path, for error messages.
      mask_values: the value of each of the C classes in the file, 1..255.
      ignore: the value of pixels that aren't annotated; NO_IGNORE if there are none.
      colours: dict from (red, green, blue) to 0..C or 255, see `read_label_map`; None for no label map. A mask is
        read by its colours if all of them are in the dict, else by its numbers.

    Returns:
      uint8 [H, W]: 0 background, 1..C in the order of `mask_values`, 255 ignore.

    Raises:
      UserError: if it can't be decoded, has a lossy format (JPEG), has colours without a class, is partly
        transparent, or has a value other than 0, `ignore` and `mask_values`.
    """
    image = open_image(data, name)
    if image.format not in _FORMATS or image.info.get("compression") == "jpeg":
        raise UserError(f"{name}: found {image.format}, which need not keep class numbers, expected a PNG")
    if "A" in image.getbands() and image.getchannel("A").getextrema()[0] < 255:
        raise UserError(f"{name}: found transparent pixels, expected a class number in every pixel")
    if colours and image.mode in ("1", "L", "P", "RGB", "RGBA", "LA", "PA"):
        mask = _decode_colours(np.asarray(image.convert("RGB")), colours, name, image.mode)
        if mask is not None:
            return mask
    return _renumber(_stored_numbers(image, data, name), name, mask_values, ignore)


def read_label_map(folders, class_names):
    """Reads the colour of each class from the first `labelmap.txt` found in some folders.

    Its lines are CVAT's `label:red,green,blue:parts:actions`; lines that begin with # are comments.

    Args:
      folders: the folders to search, in this order.
      class_names: the C classes. Surrounding whitespace and case are ignored.

    Returns:
      Dict from (red, green, blue) to 0 for "background", 1..C for the classes and 255 for "ignore", "ignored" and
      "void". Other labels are left out. None if no folder has the file.

    Raises:
      UserError: if a line has another form, or a colour occurs twice.
    """
    path = next((path for f in folders if (path := Path(f, LABEL_MAP_FILE)).is_file()), None)
    if path is None:
        return None
    numbers = {tag_key(name): number for number, name in enumerate(class_names, 1)}
    numbers = {"background": BACKGROUND} | dict.fromkeys(_IGNORE_LABELS, IGNORE) | numbers
    labels = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        label, colour = _parse_label(line, f"{path} line {number}")
        if colour in labels:
            raise UserError(f"{path} line {number}: found colour {colour} twice, expected one for each label")
        labels[colour] = label
    colours = {
        colour: numbers[tag_key(label)] for colour, label in labels.items() if tag_key(label) in numbers
    }
    return {_VOC_VOID: IGNORE} | colours if _VOC_VOID not in labels else colours


def presence(mask, num_classes):
    """Returns which classes occur in a mask.

    Args:
      mask: uint8 [H, W], 0 background, 1..C classes, 255 ignore.
      num_classes: C.

    Returns:
      float32 [C], 1 for each class with at least one pixel, else 0.
    """
    counts = np.bincount(mask.ravel(), minlength=num_classes + 1)
    return (counts[1 : num_classes + 1] > 0).astype(np.float32)


def check_same_size(mask, image, name):
    """Raises a UserError with the mask's name if mask [H, W] and image [H, W, 3] differ in size."""
    if mask.shape != image.shape[:2]:
        found, expected = (f"{width}x{height}" for height, width in (mask.shape, image.shape[:2]))
        raise UserError(f"{name}: found a mask of {found} pixels, expected {expected} like its image")


def check_all_classes_occur(read, count, where, class_names, mask_values, ignore=IGNORE, allow_absent=False):
    """Checks that every class occurs in the masks of a split; wrong mask values make classes absent.

    Masks are decoded in random order until every class has occurred, which usually takes only a few.

    Args:
      read: function of an index that returns the mask, as `decode_mask`. Masks for which it raises a UserError are
        skipped.
      count: the number of masks.
      where: their folder, for error messages.
      class_names: C names.
      mask_values, ignore: see `decode_mask`.
      allow_absent: whether a class may occur in no mask; it is then neither learned nor scored.

    Raises:
      UserError: if a class occurs in no mask and `allow_absent` isn't set, or if there are ignored pixels but no
        class in any mask. If some masks could not be read, the first of their errors is raised instead.
    """
    counts, first_error = np.zeros(256, np.int64), None
    progress = Progress("masks", count, "checked")
    for done, index in enumerate(np.random.default_rng(0).permutation(count), 1):
        try:
            counts += np.bincount(read(int(index)).ravel(), minlength=256)
        except UserError as error:
            first_error = first_error or error
        occurs = counts[1 : len(class_names) + 1] > 0
        if occurs.all() or (allow_absent and occurs.any()):
            return
        progress.update(done)
    if first_error and not allow_absent:
        raise first_error
    if not occurs.any() and counts[IGNORE]:
        share = counts[IGNORE] / counts.sum()
        meant = f"--config.data.mask_values='({ignore},)' --config.data.mask_ignore={NO_IGNORE}"
        meant = f"; if {ignore} is the class: {meant}" if len(class_names) == 1 else ""
        raise UserError(
            f"{where}: found no values but 0 (background) and {ignore} (ignore, {share:.1%} of the pixels) in "
            f"{count} masks, expected {_numbered(class_names, mask_values)}{meant}"
        )
    if not allow_absent:
        absent = [name for name, found in zip(class_names, occurs, strict=True) if not found]
        raise UserError(
            f"{where}: found {', '.join(absent)} in none of {count} masks, expected each class in at least one: "
            f"{_numbered(class_names, mask_values)} (data.mask_values); if they are rare: "
            "--config.data.allow_absent=True"
        )


def _numbered(class_names, mask_values):
    pairs = [f"{value} {name}" for value, name in zip(mask_values, class_names, strict=True)]
    return ", ".join(pairs if len(pairs) <= 8 else [*pairs[:6], "...", pairs[-1]])


def _parse_label(line, where):
    parts = line.split(":")
    try:
        red, green, blue = (int(part) for part in parts[1].split(","))
    except (IndexError, ValueError) as error:
        raise UserError(
            f"{where}: found {line.strip()!r}, expected label:red,green,blue:parts:actions"
        ) from error
    return parts[0].strip(), (red, green, blue)


def _stored_numbers(image, data, name):
    """Returns the numbers stored in a mask, integers [H, W]."""
    values = wide_values(image, data)
    if values is None and image.mode == "L":
        # Pillow scales 2 and 4 bits to 8.
        return np.asarray(image) // (255 // (2 ** bits_per_sample(image, data) - 1))
    if values is None and image.mode == "PA":
        return np.asarray(image.getchannel("P"))
    if values is None and image.mode in ("1", "P", "LA", "RGB", "RGBA"):
        values = np.asarray(image)
    if values is None:
        raise UserError(
            f"{name}: found image mode {image.mode}, expected P (palette) or L (grey) with class numbers"
        )
    if image.mode in ("RGB", "RGBA"):
        is_coloured = (values[..., :1] != values[..., :3]).any(axis=-1)
        if is_coloured.any():
            colour = tuple(values[is_coloured][0, :3].tolist())
            raise UserError(
                f"{name}: found colours, such as {colour}, expected class numbers, or beside the masks a "
                f"{LABEL_MAP_FILE} with lines label:red,green,blue"
            )
    return (values[..., 0] if values.ndim == 3 else values).astype(
        np.uint8 if image.mode == "1" else values.dtype
    )


def _renumber(stored, name, mask_values, ignore):
    """Maps the file's numbers to 0..C and 255: uint8 [H, W]."""
    known = {0, *mask_values} | ({ignore} if ignore != NO_IGNORE else set())
    # Counting is faster than sorting.
    found = np.flatnonzero(np.bincount(stored.ravel())) if stored.dtype == np.uint8 else np.unique(stored)
    unknown = set(found.tolist()) - known
    if unknown:
        raise UserError(f"{name}: found mask value {min(unknown)}, expected one of {sorted(known)}")
    renumber = np.zeros(max(known) + 1, np.uint8)
    renumber[list(mask_values)] = np.arange(1, len(mask_values) + 1)
    if ignore != NO_IGNORE:
        renumber[ignore] = IGNORE
    return renumber[stored]


def _decode_colours(pixels, colours, name, mode):
    """Maps colours to labels, uint8 [H, W], by a label map.

    Returns None for a mask to be read by its numbers: one without colours, or whose palette differs from the map.
    """
    packed = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    found, places = np.unique(packed, return_inverse=True)
    numbers = []
    for code in found.tolist():
        colour = (code >> 16, code >> 8 & 255, code & 255)
        if colour not in colours:
            if mode in ("RGB", "RGBA") and len(set(colour)) > 1:
                raise UserError(
                    f"{name}: found colour {colour}, expected those of {LABEL_MAP_FILE}: {sorted(colours)}"
                )
            return None
        numbers.append(colours[colour])
    return np.array(numbers, np.uint8)[places].reshape(packed.shape)


def check_masks(source, data_config):
    """Checks that every class occurs in a source's masks (`check_all_classes_occur`).

    Args:
      source: from `rml_jax.data.sources.make_source`. Sources without mask files, digits and COCO's annotations, are
        not checked.
      data_config: the `data` part of a config.

    Raises:
      UserError: if a class occurs in no mask, unless `allow_absent` is set.
    """
    if not hasattr(source, "read_mask"):
        return

    def read(index):
        try:
            return source.read_mask(index)
        except UserError:
            if not data_config.skip_bad:
                raise
            return np.zeros((1, 1), np.uint8)  # Training skips this image as well.

    check_all_classes_occur(
        read,
        len(source),
        data_config.masks or data_config.root,
        source.class_names,
        data_config.mask_values or tuple(range(1, len(source.class_names) + 1)),
        data_config.mask_ignore,
        data_config.allow_absent,
    )
