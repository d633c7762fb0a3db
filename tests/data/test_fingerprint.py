"""What a checkpoint keeps of the training images, and what is said when they have changed."""

import pytest

from rml_jax.data.fingerprint import describe_changes, pack_items, unpack_items

ITEMS = [("a", (0,)), ("b", (0, 1)), ("c", ()), ("d/ä", None), ("e", (2,))]


def test_items_survive_packing():
    text = pack_items(ITEMS)
    assert text.isascii()
    assert [name for name, _ in unpack_items(text)] == [name for name, _ in ITEMS]
    assert describe_changes(unpack_items(text), ITEMS) == ""


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ([*ITEMS, ("x", ())], "1 added (x)"),
        (ITEMS[4:], "4 removed (a, b, c, ...)"),
        ([("a", (1,)), *ITEMS[1:]], "1 with other tags (a)"),
        ([("x", ()), ("b", (1,)), *ITEMS[2:]], "1 added (x), 1 removed (a), 1 with other tags (b)"),
        (ITEMS[::-1], "the same images in another order"),
    ],
)
def test_changes_are_counted_and_named(new, words):
    assert describe_changes(ITEMS, new) == words
