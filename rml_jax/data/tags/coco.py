"""COCO JSON: the tags of an image are the names of its annotations' categories."""

from rml_jax.data.tags.names import clean
from rml_jax.data.tags.row import Row
from rml_jax.utils.errors import UserError


def is_coco(content):
    """Returns whether a JSON object is a COCO file."""
    return all(isinstance(content.get(key), list) for key in ("images", "annotations"))


def read_coco(content, path):
    """Reads the images of a COCO file.

    Annotations need no segmentation. Crowds are included. An image without annotations has no tags.

    Args:
      content: the JSON object.
      path: path of the file, for error messages.

    Returns:
      List of Row.

    Raises:
      UserError: for a missing or malformed field. The message names the entry.
    """
    categories = content.get("categories")
    if not isinstance(categories, list):
        raise UserError(f"{path}: found no categories, expected the list of a COCO file")
    names = {}
    for number, category in enumerate(categories, 1):
        where = f"{path} category {number}"
        names[_field(category, "id", int | str, where)] = clean(_field(category, "name", str, where))
    images, tags = {}, {}
    for number, image in enumerate(content["images"], 1):
        where = f"{path} image {number}"
        key = _field(image, "id", int | str, where)
        if key in images:
            raise UserError(f"{where}: found the id {key!r} a second time, expected each id once")
        images[key], tags[key] = (_field(image, "file_name", str, where), where), {}
    for number, annotation in enumerate(content["annotations"], 1):
        where = f"{path} annotation {number}"
        image = _field(annotation, "image_id", int | str, where)
        category = _field(annotation, "category_id", int | str, where)
        if image not in images:
            raise UserError(f"{where}: found image_id {image!r}, expected the id of an image in the file")
        if category not in names:
            raise UserError(
                f"{where}: found category_id {category!r}, expected the id of a category in the file"
            )
        tags[image][names[category]] = None
    return [Row(name, tuple(tags[key]), where) for key, (name, where) in images.items()]


def _field(entry, key, kind, where):
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{where}: found {str(value)[:60]!r} for {key}, expected that of a COCO file")
    return value
