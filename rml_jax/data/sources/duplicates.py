"""Identical files, found without reading most of them."""

import collections
import hashlib
import os

_HEAD = 4096  # bytes that tell most images of one size apart


def first_copies(files):
    """Finds files of equal content.

    Sizes are compared first, then the first bytes, then everything, so that few files are read in full. A file that
    can't be read equals no other.

    Args:
      files: dict from names to paths.

    Returns:
      Dict from each name to the first name in the order of `files` whose file has the same content, its own if there
      is no other.
    """
    groups = [list(files)]
    for key in (os.path.getsize, lambda path: _digest(path, _HEAD), _digest):
        groups = [part for group in groups for part in _parts(group, files, key)]
    first = {name: name for name in files}
    first.update((name, group[0]) for group in groups for name in group)
    return first


def draw_groups(groups, count):
    """Draws whole groups of identical images.

    Args:
      groups: the group of each image, in the order of the draw.
      count: how many images to draw.

    Returns:
      Set of the groups that come first and have at most `count` images together; if all are larger, a smallest one,
      but never the only one.
    """
    sizes, drawn, total = collections.Counter(groups), set(), 0
    for group in sizes:
        if total + sizes[group] <= count:
            drawn.add(group)
            total += sizes[group]
    if count and not drawn and len(sizes) > 1:
        drawn.add(min(sizes, key=sizes.get))
    return drawn


def _parts(group, files, key):
    """Splits a group of names by a function of their files; drops names that are alone then."""
    parts = {}
    for name in group:
        try:
            parts.setdefault(key(files[name]), []).append(name)
        except OSError:
            continue
    return [part for part in parts.values() if len(part) > 1]


def _digest(path, length=-1):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(length)).digest()
