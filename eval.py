"""Scores a run's last checkpoint: python eval.py --workdir=DIR [--split=NAME] [--config.key=value]

Or weights from elsewhere, whose scores and pictures go to DIR/eval:

    python eval.py --weights=PATH --config=FILE[:VARIANT] --workdir=DIR
"""

from pathlib import Path

from absl import flags

from rml_jax import cli
from rml_jax.evaluation.run import evaluate_run
from rml_jax.report import score_table

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_SPLIT = flags.DEFINE_string("split", None, "Split to score; the run's config.data.val_split by default.")
_WEIGHTS = flags.DEFINE_string("weights", "", "File or model folder to score rather than the checkpoint.")


def main(config):
    split = _SPLIT.value or config.data.val_split
    metrics, page = evaluate_run(config, Path(_WORKDIR.value), split, _WEIGHTS.value)
    print(score_table(metrics))
    print(f"pictures: {page}")


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    cli.run(main, cli.config_of_file_or_workdir)
