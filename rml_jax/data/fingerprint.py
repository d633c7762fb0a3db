"""The images and tags that a run trains on, kept in its checkpoints: a change is noticed when it resumes."""

import base64
import json
import zlib

_NAMED = 3


def pack_items(items):
    """Packs ids and tags into a short text.

    Args:
      items: list of (id, positions of the tags in the class list).

    Returns:
      str, ASCII.
    """
    return base64.b64encode(zlib.compress(json.dumps(items).encode())).decode()


def unpack_items(text):
    """Does the reverse of `pack_items`: list of (id, list of int)."""
    return [tuple(item) for item in json.loads(zlib.decompress(base64.b64decode(text)))]


def describe_changes(old, new):
    """Says how two lists of images differ.

    Args:
      old, new: lists of (id, positions of the tags).

    Returns:
      str, such as "1 image added (x), 2 removed (a, b)"; "" if they are equal.
    """
    before, after = (
        {name: None if numbers is None else list(numbers) for name, numbers in items} for items in (old, new)
    )
    kinds = {
        "added": [name for name in after if name not in before],
        "removed": [name for name in before if name not in after],
        "with other tags": [name for name in after if name in before and after[name] != before[name]],
    }
    parts = [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names]
    if not parts and list(before) != list(after):
        parts = ["the same images in another order"]
    return ", ".join(parts)


def _first(names):
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
