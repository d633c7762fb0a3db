"""Write masks, overlays and predictions.json for images to a new folder.

A file that can't be read is reported and left out; the exit status is then 1.
"""

import argparse
import collections
import json
import sys
from pathlib import Path

import jax

from rml_jax.commands import cli
from rml_jax.data.sources.coco_files import find_annotations
from rml_jax.data.sources.folder import count_left_out, describe_left_out, list_images
from rml_jax.data.sources.prepared import is_prepared
from rml_jax.data.tags import TAG_FILE_SUFFIXES, image_id, read_tags, split_names
from rml_jax.inference.datasets import (
    FORMATS,
    CocoDataset,
    CocoReference,
    CocoResults,
    VocDataset,
    class_categories,
)
from rml_jax.inference.outputs import OutputFolder
from rml_jax.inference.predictor import LARGE, allowed_classes, as_image, load
from rml_jax.report.explorer import MAX_IMAGES
from rml_jax.report.score_page import ScorePage
from rml_jax.stages.runner import TAG_THRESHOLD
from rml_jax.utils import distributed
from rml_jax.utils.ahead import map_ahead
from rml_jax.utils.compilation_cache import use_compilation_cache
from rml_jax.utils.errors import UserError
from rml_jax.utils.files import write_file
from rml_jax.utils.progress import Progress

_AUTO = "auto"
_CHOSEN_ON = 50  # images that `auto` chooses on, at most
_AHEAD = 2  # images that are read before they are needed, and as many that are being written


@cli.command
def main(arguments=None):
    """Predicts what the command line says. Exits with status 1 if files could not be read."""
    parser = cli.Parser("rml-jax predict", description=__doc__)
    parser.add_argument(
        "inputs", nargs="+", metavar="IMAGE_OR_FOLDER", help="folders are searched recursively"
    )
    parser.add_argument("--workdir", help="folder of a run, or an exported model")
    parser.add_argument(
        "--model", help="instead: name of an exported model on the hub, USER/MODEL[@REVISION]"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to write, new or empty")
    parser.add_argument("--checkpoint", help="newest, best or a step; the run's eval.checkpoint by default")
    parser.add_argument(
        "--stage", help="stage that gives the mask; the last of the run's eval.stages by default"
    )
    parser.add_argument(
        "--scales",
        type=_numbers,
        help="scales of the CAM, such as 0.5,1,1.5; the run's cam.scales by default",
    )
    parser.add_argument(
        "--background",
        type=_score,
        help="score of the background, or `auto`: chosen by the contrast of the masks with the images; the run's "
        "eval.background by default",
    )
    parser.add_argument(
        "--region_contrast",
        type=float,
        help="weight of the contrast by which each image's score is chosen near that, 0 for none; the run's "
        "eval.region_contrast by default",
    )
    parser.add_argument(
        "--tag_threshold",
        type=float,
        default=TAG_THRESHOLD,
        help="least score of a class that is predicted as a tag; %(default)s by default",
    )
    parser.add_argument(
        "--tags",
        help="classes in all images, as NAME,NAME (a name with a comma in double quotes), or a tag file",
    )
    parser.add_argument(
        "--large", choices=LARGE, default=LARGE[0], help="how to predict images that fit on no canvas"
    )
    parser.add_argument("--save_cams", action="store_true", help="write heat maps of the tags' CAMs")
    parser.add_argument(
        "--page",
        action="store_true",
        help=f"write page.html, on which the background score is chosen, with the first {MAX_IMAGES} images",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=FORMATS[0],
        help="write a data set as well: coco, annotations/instances_default.json; voc, SegmentationClass with "
        "labelmap.txt",
    )
    parser.add_argument("--save_rle", action="store_true", help="write coco.json, COCO's format of results")
    parser.add_argument(
        "--annotations",
        metavar="FILE",
        help="take the ids of images and categories from this COCO file; a COCO run's own by default",
    )
    parser.add_argument(
        "--config.distributed",
        dest="distributed",
        type=_is_true,
        default=False,
        metavar="True",
        help="share the images with the other processes, as in training",
    )
    chosen = parser.parse_args(arguments)
    if bool(chosen.workdir) == bool(chosen.model):
        raise UserError("rml-jax predict: expected either --workdir=DIR or --model=USER/MODEL")
    use_compilation_cache()
    if chosen.distributed:
        distributed.join_processes()
    with distributed.noticing_lost_processes("start all of them again, with another --out"):
        failed = predict(chosen)
    if failed:
        print(f"{failed} of the files could not be predicted, see above", file=sys.stderr)
        sys.exit(1)


def predict(chosen):
    """Predicts all images.

    Args:
      chosen: the parsed arguments of `main`.

    Returns:
      Number of files that could not be read.

    Raises:
      UserError: if the model, an option, a folder or the tag file is not as expected, or --out is not empty.
    """
    predictor = load(
        Path(chosen.workdir) if chosen.workdir else chosen.model,
        checkpoint=chosen.checkpoint,
        stage=chosen.stage,
        scales=chosen.scales,
        background=None if chosen.background == _AUTO else chosen.background,
        region_contrast=chosen.region_contrast,
        tag_threshold=chosen.tag_threshold,
        large=chosen.large,
    )
    files = named_files(chosen.inputs, chosen.out)
    given = _given_tags(chosen.tags, predictor.classes)
    datasets = _make_datasets(chosen, predictor, files)
    distributed.on_first_process(lambda: _make_empty(chosen.out))
    output = OutputFolder(
        chosen.out,
        predictor.classes,
        tuple(predictor.config.data.mask_values),
        with_cams=chosen.save_cams,
        datasets=datasets,
    )
    page = ScorePage(predictor) if chosen.page else None
    if chosen.background == _AUTO:
        _choose_background(predictor, files, given)
    mine = distributed.share(list(files))
    progress, failed, images = distributed.on_first(Progress("predict", len(mine), "images").update), [], {}

    def read(name):
        path, relative = files[name]
        try:
            return name, given(relative), as_image(path)
        except UserError as error:
            return name, None, error

    def readable():
        for name, tags, image in map_ahead(read, mine, _AHEAD):
            if isinstance(image, UserError):
                path, _ = files[name]
                print(f"left out: {image}", file=sys.stderr)
                failed.append(path)
                output.fail(path, str(image))
                continue
            images[name] = image
            yield name, image, tags

    def write(pair):
        name, prediction = pair
        return name, prediction, output.write(name, files[name][0], images[name], prediction)

    try:
        done = without_tags = 0
        predictions = predictor.stream(readable(), with_maps=chosen.save_cams or chosen.page)
        for name, prediction, entry in map_ahead(write, predictions, _AHEAD):
            output.record(name, prediction, entry)
            image = images.pop(name)
            if page:
                page.add(name, image, prediction)
            done += 1
            without_tags += not prediction.tags
            progress(done + len(failed), f"{prediction.tiles} tiles" if prediction.tiles > 1 else "")
    finally:  # An interrupted run lists what it has done.
        if jax.process_count() == 1:
            _finish(chosen, predictor, files, output, page)
    if jax.process_count() > 1:
        done, without_tags, all_failed = _join(chosen.out, output, page, [done, without_tags, len(failed)])
        distributed.on_first_process(lambda: _finish(chosen, predictor, files, output, page))
    else:
        all_failed = len(failed)
    if not distributed.is_first():
        return len(failed)
    print(f"{done} of {len(files)} images by stage {predictor.stage}: {chosen.out}")
    if without_tags and chosen.tags is None:
        print(
            f"{without_tags} masks are background only, as no class scored above {chosen.tag_threshold}: "
            "lower it with --tag_threshold or give the classes with --tags"
        )
    return all_failed


def _choose_background(predictor, files, given):
    """Chooses the background's score on some of the images, evenly spaced, the same in every process."""
    names = list(files)
    some = (
        [names[len(names) * i // _CHOSEN_ON] for i in range(_CHOSEN_ON)] if len(names) > _CHOSEN_ON else names
    )
    used = 0

    def readable():
        nonlocal used
        for number, name in enumerate(some, 1):
            path, relative = files[name]
            try:
                tags, image = given(relative), as_image(path)
            except UserError:
                continue  # It is reported when it is predicted.
            used += 1
            yield image, tags
            progress(number)

    progress = distributed.on_first(Progress("background score", len(some), "images").update)
    score = predictor.choose_background(readable())
    if distributed.is_first():
        print(f"background score {score:g}, chosen by the contrast of {used} images' masks")


def _finish(chosen, predictor, files, output, page):
    """Writes what lists all images."""
    output.finish(predictor.settings(), files)
    if page:
        page.write(chosen.out / "page.html", files)


def _join(out, output, page, counts):
    """Adds the records of all processes to those of the first one, which gets the sums of the counts."""
    records = [out / f".part-{number}.json" for number in range(jax.process_count())]
    content = {"output": output.content(), "page": page and page.content(), "counts": counts}
    if not distributed.is_first():
        write_file(records[jax.process_index()], json.dumps(content))
    distributed.wait_for_all("every process has predicted its images")
    if not distributed.is_first():
        return counts
    for record in records[1:]:
        other = json.loads(record.read_text(encoding="utf-8"))
        output.extend(other["output"])
        if page:
            page.extend(other["page"])
        counts = [sum(pair) for pair in zip(counts, other["counts"], strict=True)]
        record.unlink()
    return counts


def named_files(inputs, out=""):
    """Finds the image files and gives each a name for its outputs.

    Args:
      inputs: paths of files and folders.
      out: folder to leave out of the search, as are folders of earlier predictions; "" for none.

    Returns:
      Dict from a name to the file's pathlib.Path and its path as given or below its folder, str. The name is the
      latter without suffix. Names that are equal, ignoring case, get -2, -3 and so on from the second.

    Raises:
      UserError: if there is no image file in a folder, or it can't be read.
    """
    found = []
    for given in map(Path, inputs):
        if given.is_dir():
            skip = [out, *(file.parent for file in given.glob("*/**/predictions.json"))]
            below, others = list_images(given, *skip), count_left_out(given, *skip)
            if not below:
                found = describe_left_out(others) or "no files"
                raise UserError(f"{given}: found no images but {found}, expected some .jpg, .png or the like")
            if others:
                print(f"{given}: left out {describe_left_out(others)}", file=sys.stderr)
            found += [(given / path, Path(path).as_posix()) for path in below]
        else:
            found.append((given, given.name))
    files, taken = {}, set()
    for path, relative in found:
        # On Windows a backslash would separate folders, perhaps one above OUT.
        name = stem = image_id(relative.replace("\\", "_"))
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        files[name] = path, relative
    return files


def _make_datasets(chosen, predictor, files):
    """Returns the data sets to write, for `OutputFolder`."""
    config, classes, out, datasets = predictor.config, predictor.classes, chosen.out, []
    if chosen.format == "voc":
        datasets.append(VocDataset(out, classes, tuple(config.data.mask_values)))
    if chosen.format != "coco" and not chosen.save_rle:
        if chosen.annotations:
            raise UserError(
                "--annotations: found no --format=coco and no --save_rle, expected one that has ids"
            )
        return datasets
    paths = {name: Path(relative).as_posix() for name, (_, relative) in files.items()}
    if chosen.annotations:
        reference = CocoReference(Path(chosen.annotations))
        categories, ids = reference.categories(classes), _given_ids(reference, chosen.annotations, paths)
    else:
        categories, ids = class_categories(config, classes), _ids_of_run(config.data, paths)
    if chosen.save_rle:
        datasets.append(CocoResults(out, categories, {name: ids.get(name, name) for name in paths}))
    if chosen.format == "coco":
        numbers = {number for number in ids.values() if isinstance(number, int)}
        if len(numbers) < len(paths):  # Some images have none, a text or that of another one.
            ids = {name: number for number, name in enumerate(paths, 1)}
        datasets.append(CocoDataset(out, categories, ids, _distinct(paths, files)))
    return datasets


def _given_ids(reference, file, paths):
    """Returns a dict from the names of images to their ids in --annotations, which must have all of them."""
    ids = {name: reference.image_id(path) for name, path in paths.items()}
    unknown = [paths[name] for name, number in ids.items() if number is None]
    if unknown:
        raise UserError(
            f"--annotations={file}: found no image {unknown[0]} (or several; so for {len(unknown)} of {len(ids)} "
            "images), expected each image once"
        )
    return ids


def _ids_of_run(data, paths):
    """Returns a dict from the names of images to their ids in the annotation files of a COCO run, where they are."""
    ids = {}
    if data.source != "coco" or not Path(data.root).is_dir() or is_prepared(data.root):
        return ids
    for split in (data.val_split, data.train_split):
        if len(ids) == len(paths):
            break
        try:
            file, _ = find_annotations(data.root, split)
        except UserError:
            continue  # The data need not be there any more.
        reference = CocoReference(file)
        found = {name: reference.image_id(path) for name, path in paths.items() if name not in ids}
        ids |= {name: number for name, number in found.items() if number is not None}
    return ids


def _distinct(paths, files):
    """Returns a dict from names to paths below the folders that were given; to whole paths where two are equal."""
    counts = collections.Counter(paths.values())
    return {name: path if counts[path] == 1 else str(files[name][0]) for name, path in paths.items()}


def _is_true(text):
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected True or False")
    return text.lower() == "true"


def _score(text):
    try:
        return text if text == _AUTO else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number or {_AUTO}") from error


def _numbers(text):
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected numbers such as 0.5,1,1.5") from error


def _given_tags(text, classes):
    """Returns the function from an image's relative path to its tags, or to None where they are predicted."""
    if text is None:
        return lambda relative: None
    if Path(text).suffix.lower() not in TAG_FILE_SUFFIXES:
        try:
            names = split_names(text, classes)
        except ValueError as error:
            raise UserError(f"--tags: {error}, expected NAME,NAME or a tag file") from error
        allowed_classes(names, classes)  # Fails for an unknown name before the first image.
        return lambda relative: names
    listed = read_tags(text, classes)

    def look_up(relative):
        if image_id(relative) not in listed:
            raise UserError(f"{relative}: no line in {text}, expected the tags of every image")
        return tuple(classes[number] for number in listed[image_id(relative)])

    return look_up


def _make_empty(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"--out={folder}: found files in it, expected a new or empty folder")
    except OSError as error:
        raise UserError(f"--out={folder}: {error.strerror}, expected a folder to write to") from error
