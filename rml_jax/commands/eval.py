"""Scores a run, weights or masks: rml-jax eval --workdir=DIR [--split=NAME] [--config.key=value]

rml-jax eval --weights=PATH --config=FILE[:VARIANT] --workdir=DIR
rml-jax eval --masks=FOLDER --config=FILE[:VARIANT] --workdir=DIR
"""

from pathlib import Path

from absl import flags

from rml_jax.commands import cli
from rml_jax.evaluation.run import evaluate_masks, evaluate_run
from rml_jax.report import score_table
from rml_jax.utils.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_SPLIT = flags.DEFINE_string("split", None, "Split to score; the run's config.data.val_split by default.")
_WEIGHTS = flags.DEFINE_string("weights", "", "File or model folder to score rather than the checkpoint.")
_MASKS = flags.DEFINE_string("masks", "", "Folder of mask PNGs, ID.png, to score rather than a network.")
_SAVE_MASKS = flags.DEFINE_bool("save_masks", False, "Write the predicted masks in the VOC server's layout.")


def main():
    """Scores what the command line says."""
    flags.mark_flag_as_required("workdir")
    cli.run(_evaluate, cli.config_of_file_or_workdir)


def _evaluate(config):
    workdir, split = Path(_WORKDIR.value), _SPLIT.value or config.data.val_split
    if _MASKS.value:
        if _WEIGHTS.value or _SAVE_MASKS.value:
            raise UserError(
                "--masks scores finished masks: expected neither --weights nor --save_masks beside it"
            )
        metrics, page = evaluate_masks(config, workdir, split, _MASKS.value)
    else:
        metrics, page = evaluate_run(config, workdir, split, _WEIGHTS.value, _SAVE_MASKS.value)
    print(score_table(metrics))
    if "programs" in metrics:
        print(f"{metrics['programs']} programs for canvases {', '.join(metrics['canvases'])}")
    print(f"pictures: {page}")


if __name__ == "__main__":
    main()
