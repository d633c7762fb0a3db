"""CVAT's XML, "CVAT for images 1.1": `<image name="a.jpg"><tag label="cat"/></image>`."""

import re
from xml.parsers import expat

from rml_jax.data.tags.names import clean
from rml_jax.data.tags.row import FORMS, Row
from rml_jax.data.tags.text import decode_text
from rml_jax.utils.errors import UserError

_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")


def decode_xml(data, path):
    """Decodes XML by its declared encoding, or as `decode_text` if it declares none.

    Raises:
      UserError: for an unknown encoding or bytes that are invalid in it.
    """
    declared = _DECLARED.match(data)
    if declared is None or declared[1].lower().startswith(b"utf"):
        return decode_text(data, path)
    encoding = declared[1].decode("ascii")
    try:
        return data.decode(encoding)
    except (LookupError, ValueError) as error:
        raise UserError(
            f"{path} line 1: found the encoding {encoding!r}, expected one that can be read"
        ) from error


def read_cvat(text, path):
    """Reads the tags of each `<image>`, including the labels of shapes.

    Args:
      text: the content.
      path: path of the file, for error messages.

    Returns:
      List of Row. An image without any label has no tags.

    Raises:
      UserError: if it is not XML, or not in the format "CVAT for images". The message names the line.
    """
    parser, rows, open_elements = expat.ParserCreate(), [], []

    def start(element, attributes):
        where = f"{path} line {parser.CurrentLineNumber}"
        if not open_elements and element != "annotations":
            raise UserError(f"{where}: found <{element[:40]}>, expected {FORMS}")
        if element == "track" and len(open_elements) == 1:
            raise UserError(f"{where}: found <track>, expected an export as 'CVAT for images'")
        if element == "image" and len(open_elements) == 1:
            if not attributes.get("name"):
                raise UserError(f"{where}: found <image> without a name, expected one")
            rows.append(Row(attributes["name"], (), where))
        elif open_elements[1:] == ["image"]:
            if not clean(attributes.get("label", "")):
                raise UserError(f"{where}: found <{element[:40]}> without a label, expected one")
            row = rows.pop()
            rows.append(row._replace(tags=tuple(dict.fromkeys((*row.tags, clean(attributes["label"]))))))
        open_elements.append(element)

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda element: open_elements.pop()
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        raise UserError(f"{path} line {error.lineno}: found no XML ({error}), expected {FORMS}") from error
    return rows
