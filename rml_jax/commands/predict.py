"""Masks for photographs from a trained network:

    rml-jax predict --workdir=DIR --out=OUT IMAGE_OR_FOLDER...

Writes into OUT, a new folder, what `rml_jax.inference.outputs` lists: masks, overlays, predictions.json. A file that
can't be read is reported and left out; the exit status is then 1.
"""

import argparse
import re
import sys
from pathlib import Path

from rml_jax.data.sources.folder import count_left_out, describe_left_out, list_images
from rml_jax.data.tags import image_id, read_tags
from rml_jax.inference.outputs import OutputFolder
from rml_jax.inference.predictor import LARGE, allowed_classes, as_picture, load
from rml_jax.stages.stages import TAG_THRESHOLD
from rml_jax.utils.compilation_cache import use_compilation_cache
from rml_jax.utils.errors import UserError
from rml_jax.utils.progress import Progress


def main(arguments=None):
    """The command line of this module, see its docstring."""
    parser = argparse.ArgumentParser("rml-jax predict", description="Masks for photographs.")
    parser.add_argument("inputs", nargs="+", metavar="IMAGE_OR_FOLDER", help="folders are searched through")
    parser.add_argument("--workdir", required=True, help="folder of a run, or an exported model")
    parser.add_argument("--out", required=True, type=Path, help="folder to write, new or empty")
    parser.add_argument("--checkpoint", help="newest, best or a step; the run's eval.checkpoint by default")
    parser.add_argument("--stage", help="what makes the mask; the last of the run's eval.stages by default")
    parser.add_argument(
        "--scales", type=_numbers, help="of the multi-scale CAM, such as 0.5,1,1.5; the run's"
    )
    parser.add_argument("--background", type=float, help="score of the background; the run's eval.background")
    parser.add_argument(
        "--tag_threshold",
        type=float,
        default=TAG_THRESHOLD,
        help="on a class's score; %(default)s by default",
    )
    parser.add_argument(
        "--tags",
        help="the classes in all pictures, as NAME,NAME; or a tag file, .csv or .jsonl; else predicted",
    )
    parser.add_argument(
        "--large",
        choices=LARGE,
        default=LARGE[0],
        help="pictures that fit on no canvas: in tiles, or reduced",
    )
    parser.add_argument("--save_cams", action="store_true", help="write heat maps of the tags' CAMs")
    parser.add_argument("--save_rle", action="store_true", help="write coco.json, run-length codes")
    chosen = parser.parse_args(arguments)
    try:
        use_compilation_cache()
        failed = predict(chosen)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    if failed:
        parser.exit(1, f"{failed} of the files could not be predicted, see above\n")


def predict(chosen):
    """Predicts all pictures.

    Args:
      chosen: the parsed arguments of `main`.

    Returns:
      The number of files that could not be read.

    Raises:
      UserError: if the model, an option, a folder or the tag file is not as expected, or --out is not empty.
    """
    predictor = load(
        chosen.workdir,
        checkpoint=chosen.checkpoint,
        stage=chosen.stage,
        scales=chosen.scales,
        background=chosen.background,
        tag_threshold=chosen.tag_threshold,
        large=chosen.large,
    )
    files = named_files(chosen.inputs)
    given = _given_tags(chosen.tags, predictor.classes)
    _make_empty(chosen.out)
    output = OutputFolder(
        chosen.out,
        predictor.classes,
        tuple(predictor.config.data.mask_values),
        with_cams=chosen.save_cams,
        with_rle=chosen.save_rle,
    )
    progress, failed, images = Progress("predict", len(files), "images"), [], {}

    def pictures():
        for name, (path, relative) in files.items():
            try:
                tags = given(relative)
                images[name] = as_picture(path)
            except UserError as error:
                print(f"left out: {error}", file=sys.stderr)
                failed.append(path)
                output.fail(path, str(error))
                continue
            yield name, images[name], tags

    try:
        done = without_tags = 0
        for name, prediction in predictor.stream(pictures(), with_maps=chosen.save_cams):
            output.save(name, files[name][0], images.pop(name), prediction)
            done += 1
            without_tags += not prediction.tags
            progress.update(done + len(failed), f"{prediction.tiles} tiles" if prediction.tiles > 1 else "")
    finally:  # What was done before an interruption is on record.
        output.finish(predictor.settings())
    print(f"{done} of {len(files)} pictures by stage {predictor.stage}: {chosen.out}")
    if without_tags and chosen.tags is None:
        print(
            f"{without_tags} masks are background alone, as no class scored above {chosen.tag_threshold}: "
            "--tag_threshold lowers that, --tags says what is there"
        )
    return len(failed)


def named_files(inputs):
    """The picture files and a name for the outputs of each.

    Args:
      inputs: paths of files and folders.

    Returns:
      Dict from a name to the file's pathlib.Path and its path as given or below its folder, str. The name is the
      latter without suffix; of names that differ in case alone or not at all, the second gets -2, the third -3.

    Raises:
      UserError: if there is no image file in a folder, or it can't be read.
    """
    found = []
    for given in map(Path, inputs):
        if given.is_dir():
            below, others = list_images(given), count_left_out(given)
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
        # A backslash in a name must not become a folder, least of all one above OUT.
        name = stem = image_id(relative.replace("\\", "_"))
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        files[name] = path, relative
    return files


def _numbers(text):
    return tuple(float(part) for part in text.split(","))


def _given_tags(text, classes):
    """Function from a picture's relative path to the names of its tags, or to None where they are predicted."""
    if text is None:
        return lambda relative: None
    if not text.endswith((".csv", ".jsonl")):
        names = re.split("[,;|]", text)
        allowed_classes(names, classes)  # An unknown name is found out before the first picture.
        return lambda relative: names
    listed = read_tags(text, classes)

    def look_up(relative):
        if image_id(relative) not in listed:
            raise UserError(f"{relative}: no line in {text}, expected the tags of every picture")
        return tuple(classes[number] for number in listed[image_id(relative)])

    return look_up


def _make_empty(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"--out={folder}: found files in it, expected a new or empty folder")
    except OSError as error:
        raise UserError(f"--out={folder}: {error.strerror}, expected a folder to write to") from error


if __name__ == "__main__":
    main()
