"""Summary of a data set before the first step: classes, images per class, and warnings.

A source can report its tags without decoding images, by a method `item_tags()` (see below) or by `most_tags`, the
greatest number of tags of an image. Its `notes` are lines about files that it left out.
"""

from rml_jax.data.sources import make_source
from rml_jax.data.tags import TagCounts, tag_key
from rml_jax.utils.errors import UserError

# Names that spreadsheets and programs write for an empty cell.
_EMPTY = {"nan", "none", "null", "n/a", "na", "-", "?"}
_MANY_UNTAGGED = 0.2


def with_slots(config, source):
    """Raises `pseudo_label.slots` if an image of the training part has more tags, so that no tag is left out.

    Args:
      config: ConfigDict of a run.
      source: the training source. If it doesn't report its tags, an image may have all of its classes.

    Returns:
      The config itself, or a copy with the next power of two.
    """
    counts = _tag_counts(source)
    most = (
        getattr(_unwrapped(source), "most_tags", len(source.class_names)) if counts is None else counts.most
    )
    if most <= config.pseudo_label.slots:
        return config
    config = config.copy_and_resolve_references()
    config.pseudo_label.slots = 1 << (most - 1).bit_length()
    return config


def validation_source(config):
    """Opens the validation part, without masks, for its tags.

    Returns:
      A source, or None if there is no such part, which training does not require.
    """
    try:
        return make_source(config.data, config.data.val_split, with_masks=False)
    except UserError:
        return None


def data_summary(config, train_source, val_source):
    """Describes the data of a run as a table.

    Args:
      config: ConfigDict of the run.
      train_source: the training source.
      val_source: the validation source, or None if there is none.

    Returns:
      Lines of text: images per class, images without tags, files left out (`notes`), warnings.
    """
    names = train_source.class_names
    train, val = _tag_counts(train_source), _tag_counts(val_source)
    sizes = [None if source is None else len(source) for source in (train_source, val_source)]
    lines = [f"data: {config.data.name}, {len(names)} {'class' if len(names) == 1 else 'classes'}"]
    if train is None:
        rows = [(", ".join(names), None, None)]
    else:
        rows = [
            (name, train.per_class[number], val and val.per_class[number])
            for number, name in enumerate(names)
        ]
        rows.append(("(without tags)", train.untagged, val and val.untagged))
    rows.append(("images", *sizes))
    width = max(len(row[0]) for row in rows)
    lines += [f"  {'':{width}} {'train':>8} {'val':>8}"]
    lines += [
        f"  {name:{width}} {_cell(first):>8} {_cell(second):>8}".rstrip() for name, first, second in rows
    ]
    source = _unwrapped(train_source)
    if getattr(source, "untagged", 0):
        lines.append(f"  images that are left out, as no tags are given for them: {source.untagged}")
    lines += [f"  {note}" for note in getattr(source, "notes", ())]
    raised = with_slots(config, train_source).pseudo_label.slots
    if train is not None and raised != config.pseudo_label.slots:
        lines.append(f"  pseudo_label.slots: {raised}, as an image has {train.most} tags")
    if train is not None:
        lines += [f"warning: {warning}" for warning in _warnings(names, train)]
    return lines


def _unwrapped(source):
    """Returns the source that SkipBad or another wrapper reads from."""
    return getattr(source, "source", source)


def item_tags(source):
    """Returns the tags of a source's images without decoding these.

    Args:
      source: a source, or None.

    Returns:
      List of (id, positions of the tags in the class list, ascending), with None for the tags of an image where they
      can't be read; None if only the items of the source tell.
    """
    source = _unwrapped(source)
    return source.item_tags() if hasattr(source, "item_tags") else None


def _tag_counts(source):
    items = item_tags(source)
    if items is None:
        return None
    return TagCounts.of([tags for _, tags in items if tags is not None], len(source.class_names))


def _cell(value):
    return "-" if value is None else str(value)


def _warnings(names, counts):
    few = [f"{name} {count}" for name, count in zip(names, counts.per_class, strict=True) if count < 2]
    if few:
        yield f"classes with 0 or 1 training images, which can't be learned: {', '.join(few)}"
    if len(names) == 1:
        yield f"there is one class only, {names[0]!r}"
    if set(counts.per_class) <= {0, counts.images}:
        yield "all training images have the same tags, so that classes and background can't be distinguished"
    if counts.untagged > _MANY_UNTAGGED * counts.images:
        yield f"{counts.untagged} of {counts.images} training images have no tag"
    empty = [name for name in names if tag_key(name) in _EMPTY]
    if empty:
        yield f"found the class {empty[0]!r}: leave the cell empty where an image has no tag"
    if all(name.isdecimal() for name in names):
        yield f"the classes are called by numbers: {', '.join(names[:5])}"
