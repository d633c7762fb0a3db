"""Image-level tags from tables and exports of annotation tools, and the list of classes in them.

`read_tags` chooses the reader by the file's content, not by its suffix. docs/data.md lists the formats:

    table.py          CSV or TSV: image and tags, one row per tag, or one 0/1 column per class
    json_rows.py      JSON Lines or a JSON array of rows, metadata.jsonl of Hugging Face datasets
    label_studio.py   Label Studio's CSV, JSON-MIN and JSON
    coco.py           COCO JSON
    cvat.py           CVAT for images, XML

An image is named by its path below the image folder, with or without suffix (`image_id`). An image with no tag
contains none of the classes. Surrounding whitespace and letter case of tags are ignored.
"""

from rml_jax.data.tags.counts import TagCounts
from rml_jax.data.tags.cvat import decode_xml
from rml_jax.data.tags.names import (
    check_class_names,
    check_classes,
    class_list,
    image_id,
    split_names,
    tag_key,
)
from rml_jax.data.tags.read import TAG_FILE_SUFFIXES, match_images, read_tag_names, read_tags
from rml_jax.data.tags.text import decode_text, parse_list, read_list, read_text

__all__ = [
    "TAG_FILE_SUFFIXES",
    "TagCounts",
    "check_class_names",
    "check_classes",
    "class_list",
    "decode_text",
    "decode_xml",
    "image_id",
    "match_images",
    "parse_list",
    "read_list",
    "read_tag_names",
    "read_tags",
    "read_text",
    "split_names",
    "tag_key",
]
