"""Scores a run's last checkpoint: python eval.py --workdir=DIR [--split=NAME] [--config.key=value]"""

from pathlib import Path

from absl import flags

from rml_jax import cli
from rml_jax.evaluation.run import evaluate_run
from rml_jax.report import score_table

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_SPLIT = flags.DEFINE_string("split", None, "Split to score; the run's config.data.val_split by default.")


def main(config):
    metrics, page = evaluate_run(config, Path(_WORKDIR.value), _SPLIT.value or config.data.val_split)
    print(score_table(metrics))
    print(f"pictures: {page}")


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    cli.run(main, cli.config_of_workdir)
