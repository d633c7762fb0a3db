"""Tag files in every form that is read, and what malformed ones give."""

import csv
import io
import json

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from rml_jax.data.tags import (
    check_class_names,
    check_classes,
    class_list,
    image_id,
    match_images,
    read_tag_names,
    read_tags,
    split_names,
)
from rml_jax.utils.errors import UserError

EXPECTED = {"a": ("cat", "dog"), "trip/b": ("dog",), "c": ()}


def tags_in(folder, content, name="tags.csv", classes=()):
    """What a file of this content gives, as dict from image to tags."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return {image: tags for image, (tags, _) in read_tag_names(path, classes).items()}


def message_of(function, *arguments, **options):
    with pytest.raises(UserError) as error:
        function(*arguments, **options)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


# Tables


@pytest.mark.parametrize(
    "text",
    [
        "image,tags\na.jpg,cat|dog\ntrip/b.png,dog\nc.jpg,\n",
        "image,tags\r\na.jpg,cat|dog\r\n\r\ntrip/b.png,dog\r\nc.jpg,\r\n,\r\n,\r\n",
        "image;tags\na.jpg;cat,dog\ntrip/b.png;dog\nc.jpg;\n",
        "sep=;\nimage;tags\na.jpg;cat|dog\ntrip/b.png;dog\nc.jpg;\n",
        "image\ttags\na.jpg\tcat;dog\ntrip/b.png\tdog\nc.jpg\t\n",
        "\n\nFilename,Labels,\na.jpg,cat;dog,\ntrip/b.png,dog,\nc.jpg,,\n,,\n",
        'file name,class\na.jpg,"cat,dog"\ntrip\\b.png,dog\nc.jpg,\n',
        "path,label\na.jpg,\"['cat', 'dog']\"\ntrip/b.png,['dog']\nc.jpg,[]\n",
        'file,classes\na.jpg,"[""cat"",""dog""]"\ntrip/b.png,"[""dog""]"\nc.jpg,[]\n',
        "image,tag\na.jpg,cat\na.jpg,dog\ntrip/b.png,dog\nc.jpg,\n",
        "filename,width,height,class,xmin\na.jpg,8,8,cat,1\na.jpg,8,8,dog,1\na.jpg,8,8,cat,3\n"
        "trip/b.png,8,8,dog,2\nc.jpg,8,8,,\n",
        "image,cat,dog,bird\na.jpg,1,1,0\ntrip/b.png,0,1,0\nc.jpg,0,0,0\n",
        ",image,cat,dog\n0,a.jpg,True,True\n1,trip/b.png,False,True\n2,c.jpg,False,False\n",
        "image;cat;dog\na.jpg;x;x\ntrip/b.png;;x\nc.jpg;;\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_spreadsheets(tmp_path, text, encoding):
    assert tags_in(tmp_path, text.encode(encoding)) == EXPECTED


def test_classes_of_a_one_hot_table_are_the_columns_that_occur(tmp_path):
    tags = tags_in(tmp_path, "image,guinea pig,screws, dog\n".replace(", ", ",") + "a,1,0,0\nb,0,0,1\n")
    assert tags == {"a": ("guinea pig",), "b": ("dog",)}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "found the header '', expected a table"),
        ("image,tags\n", "found no images"),
        ("image\na\n", "found the header 'image'"),
        ("photo,what\na,cat\n", "found the header 'photo,what', expected a table"),
        ("image,tags\na\n", "line 2: found 1 columns, expected 2"),
        ("image,tags\n\na,cat,dog\n", "line 3: found 3 columns, expected 2"),
        ("image,tags\na,cat|dog\nb,\na,cat\n", "line 4: found image 'a' a second time"),
        ("image,tag\na,\na,cat\n", "line 3: found image 'a' a second time"),
        ("image,tag\na.jpg,cat\na.png,dog\n", "line 3: found image 'a' a second time"),
        ("image,tags\n,cat\n", "line 2: found no name of an image"),
        ("image,tags\na,['cat' 'dog']\n", "line 2: found \"['cat' 'dog']\", which is no list of tags"),
        ('image,tags\na,"{""cat"": 1}"\n', "line 2: found '{\"cat\": 1}', which is no list of tags"),
        ("image,tags\na,[cat\n", "line 2: found '[cat', which is no list of tags"),
        ('image,tags\na,"cat\nb,dog\n', "line"),
        ('image,tags\na,"cat\nb,dog"\n', "line 2: found a line break inside of the cell"),
        ("image,label\na,0\nb,1\n", "found only 0 and 1 in the column 'label'"),
        ("image,tags,label\na,cat,dog\n", "found the columns 'tags' and 'label', expected one of them"),
        ("image,cat,dog\na,1,0\nb,2,0\n", "line 3: found '2' in the column 'cat'"),
        (b"image,tags\na,cat\nb,K\xe4fer\n", "line 3: found bytes that are no UTF-8"),
        ("image,tags\na,cat\n".encode("utf-16-le"), "found zero bytes"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, text, part):
    message = message_of(tags_in, tmp_path, text)
    assert str(tmp_path / "tags.csv") in message
    assert part in message


def test_unknown_tag_names_its_line_and_not_hundreds_of_classes(tmp_path):
    (tmp_path / "tags.csv").write_text("image,tags\na,\nb,bird\n")
    message = message_of(read_tags, tmp_path / "tags.csv", [f"class {number}" for number in range(200)])
    assert "line 3: found tag 'bird', expected one of class 0, class 1" in message
    assert "(200 in all)" in message
    assert len(message) < 400 + len(str(tmp_path))


# JSON


@pytest.mark.parametrize(
    "rows",
    [
        [
            {"image": "a.jpg", "tags": ["cat", "dog"]},
            {"image": "trip/b", "tags": "dog"},
            {"image": "c", "tags": ""},
        ],
        [
            {"file_name": "a.jpg", "label": "cat,dog", "split": "train"},
            {"file_name": "trip/b.png", "label": "dog"},
            {"file_name": "c.png", "label": []},
        ],
        [
            {
                "file_name": "a.jpg",
                "objects": {"bbox": [[1, 2, 3, 4]] * 3, "categories": ["cat", "dog", "cat"]},
            },
            {"file_name": "trip/b.png", "objects": {"bbox": [[1, 2, 3, 4]], "categories": ["dog"]}},
            {"file_name": "c.png", "objects": {"bbox": [], "categories": []}},
        ],
    ],
)
@pytest.mark.parametrize("is_array", [False, True])
def test_json_lines_arrays_and_hugging_face_metadata(tmp_path, rows, is_array):
    text = json.dumps(rows, indent=1) if is_array else "\n".join(map(json.dumps, rows)) + "\n\n"
    assert tags_in(tmp_path, text, "metadata.jsonl") == EXPECTED


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"image": "z", "tags": ""}\nnonsense', "line 2: expected {"),
        ('{"image": "z", "tags": ""}\n{"image": "a"}', "line 2: expected {"),
        ('{"image": "z", "tags": ""}\n[]', "line 2: expected {"),
        ('{"image": "z", "tags": ""}\n{"image": "a", "tags": [1]}', "line 2: expected the names of tags"),
        ('{"image": "z", "tags": ""}\n{"image": "a", "tags": null}', "line 2: expected the names of tags"),
        ('{"image": "z", "tags": ""}\n{"image": 1, "tags": ""}', "line 2: expected {"),
        (
            '{"file_name": "a", "label": 3}',
            "line 1: expected the names of tags, a text or a list of texts, found 3",
        ),
        ('[\n {"image": "a"\n', "line 3: found no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"image": "\\ud800", "tags": "cat"}', "expected a name without control characters"),
        ("[]", "found no images"),
        ("[3]", "item 1: expected {"),
    ],
)
def test_json_that_cannot_be_read(tmp_path, text, part):
    assert part in message_of(tags_in, tmp_path, text, "tags.json")


# Annotation tools


def as_csv(rows):
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


LABEL_STUDIO = [
    {
        "image": f"/data/upload/1/{name}",
        "id": number,
        "choice": choice,
        "annotator": 1,
        "annotation_id": number,
        "created_at": "2024-05-01T10:00:00.000000Z",
        "updated_at": "2024-05-01T10:00:00.000000Z",
        "lead_time": 3.5,
    }
    for number, (name, choice) in enumerate(
        [("0a1b2c3d-a.jpg", {"choices": ["cat", "dog"]}), ("0a1b2c3d-trip%2Fb.jpg", "dog"), ("c.jpg", "")], 1
    )
]


def test_label_studio_csv_and_json_min(tmp_path):
    expected = {"0a1b2c3d-a": ("cat", "dog"), "0a1b2c3d-trip/b": ("dog",), "c": ()}
    assert tags_in(tmp_path, json.dumps(LABEL_STUDIO)) == expected
    rows = [
        row | {"choice": json.dumps(row["choice"]) if row["choice"] and number == 0 else row["choice"]}
        for number, row in enumerate(LABEL_STUDIO)
    ]
    assert tags_in(tmp_path, as_csv(rows)) == expected
    boxes = '[{"x": 1.0, "y": 2, "rectanglelabels": ["cat"]}, {"x": 3, "rectanglelabels": ["dog"]}]'
    named = [
        {"url" if key == "?" else "what" if key == "choice" else key: row[key] for key in row} for row in rows
    ]
    assert tags_in(tmp_path, as_csv([named[0] | {"what": boxes}]))["0a1b2c3d-a"] == ("cat", "dog")


def test_label_studio_json(tmp_path):
    def task(image, *results, **options):
        annotation = {"id": 1, "result": list(results), "was_cancelled": False} | options
        return {"id": 1, "data": {"image": image}, "annotations": [annotation], "predictions": []}

    def choices(*names):
        return {"type": "choices", "from_name": "c", "to_name": "image", "value": {"choices": list(names)}}

    box = {"type": "rectanglelabels", "value": {"x": 1, "y": 1, "rectanglelabels": ["dog"]}}
    tasks = [
        task("/data/local-files/?d=photos/a.jpg", choices("cat"), box),
        task("s3://bucket/photos/trip/b.jpg", choices("dog")),
        task("https://example.org/photos/c.jpg?token=1"),
        task("photos/skipped.jpg", choices("dog"), was_cancelled=True),
        {"id": 5, "data": {"image": "photos/open.jpg"}, "annotations": []},
    ]
    found = tags_in(tmp_path, json.dumps(tasks), "export.json")
    assert found == {f"photos/{name}": tags for name, tags in EXPECTED.items()}
    tasks.append(task("photos/trip/b.jpg", choices("cat")))
    assert "item 6: found two annotations of 'photos/trip/b.jpg'" in message_of(
        tags_in, tmp_path, json.dumps(tasks)
    )


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><name>photos</name><labels><label><name>cat</name></label></labels></task></meta>
  <image id="0" name="a.jpg" width="24" height="16">
    <tag label="cat" source="manual"></tag>
    <box label="dog" occluded="0" xtl="1" ytl="1" xbr="5" ybr="5"><attribute name="label">x</attribute></box>
    <tag label="cat" source="manual"></tag>
  </image>
  <image id="1" name="trip/b.png" subset="default" width="24" height="16"><tag label="dog"/></image>
  <image id="2" name="c.jpg" width="24" height="16">
  </image>
</annotations>
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb2312", "iso-8859-1"])
def test_cvat_xml(tmp_path, encoding):
    text = CVAT.replace("utf-8", encoding.removesuffix("-sig"))
    assert tags_in(tmp_path, text.encode(encoding), "annotations.xml") == EXPECTED


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (CVAT.replace("</image>", "", 1), "line 10: found <image> without a label"),
        (CVAT.replace("</image>", "</images>", 1), "line 9: found no XML (mismatched tag"),
        (CVAT[:400], "found no XML"),
        (CVAT.replace("utf-8", "klingon"), "line 1: found the encoding 'klingon'"),
        (CVAT.replace("utf-8", "hex"), "line 1: found the encoding 'hex'"),
        (CVAT.replace('<tag label="dog"/>', "<tag/>"), "line 10: found <tag> without a label"),
        (CVAT.replace(' name="c.jpg"', ""), "line 11: found <image> without a name"),
        (CVAT.replace('"c.jpg"', '"a.jpg"'), "line 11: found image 'a' a second time"),
        (
            "<annotation><object><name>cat</name></object></annotation>",
            "line 1: found <annotation>, expected a table",
        ),
        ('<annotations><track id="0" label="cat"/></annotations>', "export as 'CVAT for images'"),
        ("<annotations/>", "found no images"),
    ],
)
def test_xml_that_cannot_be_read(tmp_path, text, part):
    assert part in message_of(tags_in, tmp_path, text, "annotations.xml")


COCO = {
    "images": [
        {"id": 7, "file_name": "a.jpg"},
        {"id": 8, "file_name": "trip/b.png"},
        {"id": 9, "file_name": "c.jpg"},
    ],
    "categories": [{"id": 0, "name": "cat"}, {"id": 17, "name": "dog"}, {"id": 18, "name": "bird"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 0, "bbox": [1, 1, 2, 2]},
        {"id": 2, "image_id": 7, "category_id": 17, "iscrowd": 1},
        {"id": 3, "image_id": 7, "category_id": 0, "segmentation": []},
        {"id": 4, "image_id": 8, "category_id": 17},
    ],
}


def test_coco_json_with_its_own_categories(tmp_path):
    assert tags_in(tmp_path, json.dumps(COCO), "instances.json") == EXPECTED


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"categories": None}, "found no categories"),
        ({"categories": COCO["categories"][:1]}, "annotation 2: found category_id 17"),
        ({"images": COCO["images"][1:]}, "annotation 1: found image_id 7"),
        ({"images": [COCO["images"][0]] * 2}, "image 2: found the id 7 a second time"),
        ({"images": [{"id": 7}]}, "image 1: found 'None' for file_name"),
        ({"annotations": [None]}, "annotation 1: found 'None' for image_id"),
        ({"annotations": [{"image_id": [7], "category_id": 0}]}, "annotation 1: found '[7]' for image_id"),
    ],
)
def test_coco_json_that_cannot_be_read(tmp_path, changes, part):
    assert part in message_of(tags_in, tmp_path, json.dumps(COCO | changes), "instances.json")


# Mutations of all forms

SEEDS = [
    b"image,tags\na.jpg,cat|dog\ntrip/b.png,\"['cat', 'dog']\"\nc.jpg,\n",
    b"image,cat,dog\na.jpg,1,1\ntrip/b.png,0,1\n",
    "image;label\na.jpg;K\u00e4fer\na.jpg;cat\n".encode("utf-16"),
    as_csv(LABEL_STUDIO).encode(),
    json.dumps(LABEL_STUDIO).encode(),
    json.dumps(COCO).encode(),
    b'{"image": "a", "tags": ["cat"]}\n{"file_name": "b", "objects": {"categories": ["dog"]}}\n',
    CVAT.encode(),
    CVAT.replace("utf-8", "gb2312").encode("gb2312"),
]
PIECES = [
    b"",
    b"\0",
    b"\xff",
    b'"',
    b"'",
    b"[",
    b"{",
    b"\n",
    b",",
    b"null",
    b"-1",
    b"1e999",
    b"\\ud800",
    b"<",
    b"&x;",
]


def check_mutations(folder, count):
    path = folder / "tags"

    edits = st.lists(st.tuples(st.integers(0, 999), st.integers(0, 9), st.sampled_from(PIECES)))

    @settings(max_examples=count, deadline=None, database=None)
    @seed(18)
    @given(st.sampled_from(SEEDS), edits)
    def check(data, edits):
        for place, length, piece in edits:
            place = place % (len(data) + 1)
            data = data[:place] + piece + data[place + length :]
        path.write_bytes(data)
        try:
            found, message = read_tag_names(path), ""
        except UserError as error:
            found, message = {}, str(error)
        assert bool(found) != (len(message.splitlines()) == 1)
        message.encode()  # can be printed
        for name, (tags, _) in found.items():
            assert name.strip()
            assert all(tag == tag.strip() != "" and "\n" not in tag for tag in tags)

    check()


def test_damaged_tag_files_end_in_tags_or_in_one_line(tmp_path):
    check_mutations(tmp_path, 300)


@pytest.mark.slow
def test_many_damaged_tag_files_end_in_tags_or_in_one_line(tmp_path):
    check_mutations(tmp_path, 10_000)


# Names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat", ("cat",)),
        ("cat, dog;bird|guinea  pig ,", ("cat", "dog", "bird", "guinea pig")),
        ('"nut, bolt",cat', ("nut, bolt", "cat")),
        ("'nut, bolt' | cat", ("nut, bolt", "cat")),
        ("[\"dog's bed\", 'cat']", ("dog's bed", "cat")),
        ("('cat',)", ("cat",)),
        ("{'cat', 'dog'}", ("cat", "dog")),
        ("[cat, dog]", ("cat", "dog")),
        ("dog's bed,'90s car,6\" pipe", ("dog's bed", "'90s car", '6" pipe')),
        ("Nut, Bolt", ("Nut, Bolt",)),
        ("", ()),
        ("[]", ()),
        (" ;| ", ()),
    ],
)
def test_names_of_several_tags_in_one_text(text, names):
    assert split_names(text, known=("nut, bolt", "cat")) == names


@pytest.mark.parametrize(
    "text", ["['cat' 'dog']", "['cat', 'dog'", "[['cat'], ['dog']]", '{"cat": 1}', '"cat']
)
def test_texts_that_look_like_lists_and_are_none(text):
    with pytest.raises(ValueError, match="no list of tags"):
        split_names(text)


def test_class_list_keeps_the_first_spelling():
    assert class_list(["dog", "Guinea  pig", "DOG", "guinea pig"]) == ("dog", "Guinea pig")


@pytest.mark.parametrize(
    ("names", "part"),
    [
        ((), "at least one name"),
        (("cat", " Background"), "background is what no class covers"),
        (("cat", "Cat "), "found both 'cat' and 'Cat '"),
        (("cat", ""), "found '' for a class"),
        (("cat", 3), "found 3 for a class"),
        (tuple(map(str, range(255))), "found 255 classes, expected at most 254"),
    ],
)
def test_class_lists_that_cannot_be_trained(names, part):
    for check in (check_class_names, lambda names: check_classes(names, tuple(range(1, len(names) + 1)))):
        message = message_of(check, names)
        assert part in message
        assert len(message) < 200


@pytest.mark.parametrize(
    "suffix", [".jpg", ".JPEG", ".avif", ".jfif", ".jp2", ".heic", ".jxl", ".webp", ".tiff", ""]
)
def test_ids_of_images_have_no_suffix(suffix):
    assert image_id(f" trip\\scan.v1.2{suffix}") == "trip/scan.v1.2"


@pytest.mark.parametrize(
    ("names", "files", "expected"),
    [
        (("a", "trip/b"), ("a", "trip/b", "c"), ("a", "trip/b")),
        (("/home/me/photos/a", "/home/me/photos/trip/b"), ("a", "trip/b"), ("a", "trip/b")),
        (("a", "b"), ("images/default/a", "images/default/b"), ("images/default/a", "images/default/b")),
        (("0a1b2c3d-a", "01234567-b"), ("a", "b"), ("a", "b")),
        (("0a1b2c3d-a", "01234567-b"), ("0a1b2c3d-a", "01234567-b"), ("0a1b2c3d-a", "01234567-b")),
    ],
)
def test_paths_that_tools_write_find_their_images(names, files, expected):
    numbers = {name: (number,) for number, name in enumerate(names)}
    found = match_images(numbers, dict.fromkeys(files), "tags.csv", "photos")
    assert found == {name: (number,) for number, name in enumerate(expected)}


@pytest.mark.parametrize(
    ("names", "files", "part"),
    [
        (("x/c", "y/c"), ("c", "d"), "no image 'x/c' in photos (missing for 2 of 2)"),
        (("a", "trip/b"), ("a", "b"), "no image 'trip/b' in photos (missing for 1 of 2)"),
        (("0a1b2c3d-a", "01234567-a"), ("a", "b"), "found image 'a' a second time"),
    ],
)
def test_paths_that_could_be_another_image_are_refused(names, files, part):
    assert part in message_of(
        match_images, dict.fromkeys(names, ()), dict.fromkeys(files), "tags.csv", "photos"
    )
