"""Trains and scores variants of a configuration with several seeds: the paper's Tables 1 and 2, sensitivity.

    python -m experiments.ablation --config=FILE --workdir=DIR [--variants=full,no_mi,loss.ciml=0.3] [--seeds=0,1,2]
        [--config.key=value ...]

A variant is a name in `rml_jax.variants` or one KEY=VALUE changed in the full configuration. Every run has a work
directory DIR/VARIANT-seedN and is finished when it has a result.json. Finished runs are not repeated and an
interrupted run resumes from its last checkpoint, so the same command can be repeated after a crash or, with a copy of
DIR, on another machine. All variants of one seed run before the next seed. After every run, DIR/ablation.json and
DIR/ablation.md are rewritten from all finished runs in DIR.

Variants with the same settings for classification share its steps: the baseline, if it is among the variants, is
trained first, and the others of that seed start from its checkpoint at the end of the warm-up.
"""

import ast
import csv
import json
import shutil
import time
from pathlib import Path

import numpy as np

from benchmarks import measure
from rml_jax.commands import cli
from rml_jax.config import config_difference, load_config
from rml_jax.report.evaluation import evaluate_run
from rml_jax.training.loop import train
from rml_jax.utils.errors import UserError
from rml_jax.utils.files import atomic_write
from rml_jax.validate import check_config
from rml_jax.variants import LADDER, REMOVALS, with_variant

# Classification alone does not depend on these.
_MUTUAL_KEYS = ("loss.", "affine.", "pseudo_label.", "cam.")
_REPORT_KEYS = ("checkpoint.", "eval.", "log.")


@cli.command
def main(arguments=None):
    parser = cli.Parser("python -m experiments.ablation", description=__doc__)
    parser.add_config(without="digits_small")
    parser.add_argument("--workdir", required=True, type=Path, help="folder of all runs")
    parser.add_argument(
        "--variants",
        default=",".join([*LADDER, *REMOVALS]),
        help="names of rml_jax.variants, or KEY=VALUE, in double quotes where it holds a comma",
    )
    parser.add_argument(
        "--seeds", default="0,1,2", help="seeds of the parameters, the transforms and the order of data"
    )
    chosen, config = parser.parse_config(arguments, default="digits_small")
    cli.start_jax(config)
    workdir = chosen.workdir
    variants = sorted(next(csv.reader([chosen.variants])), key=lambda name: name != "baseline")
    seeds = [_seed(text) for text in chosen.seeds.split(",")]
    configs = {(name, seed): variant_config(config, name, seed) for seed in seeds for name in variants}
    for number, ((name, seed), run_config) in enumerate(configs.items(), 1):
        print(f"run {number}/{len(configs)}: {name}, seed {seed}", flush=True)
        run(run_config, workdir / f"{name}-seed{seed}", workdir / f"baseline-seed{seed}")
        write_summary(workdir)
    print((workdir / "ablation.md").read_text(encoding="utf-8"))


def variant_config(config, name, seed):
    """Builds the configuration of one run.

    Args:
      config: ConfigDict of full RML.
      name: a name in `rml_jax.variants`, or KEY=VALUE with VALUE a Python literal.
      seed: of the run.

    Returns:
      ConfigDict, a copy.

    Raises:
      UserError: for an unknown name or key, or an invalid value.
    """
    config = config.copy_and_resolve_references()
    # Other runs start from the baseline's checkpoint at the end of the warm-up, which must be kept.
    config.checkpoint.every = max(config.loss.start_step, 1)
    config.checkpoint.keep = config.train.steps // config.checkpoint.every + 1
    key, equals, value = name.partition("=")
    if equals:
        try:
            config.update_from_flattened_dict({key: ast.literal_eval(value)})
        except (AttributeError, KeyError, SyntaxError, TypeError, ValueError) as error:
            raise UserError(
                f"--variants: found {name!r}, expected KEY=VALUE of a configuration key"
            ) from error
    else:
        with_variant(config, name)
    config.train.seed = seed
    check_config(config)
    return config


def run(config, folder, baseline):
    """Trains and scores one run unless it is finished; writes its result.json.

    Args:
      config: ConfigDict of the run.
      folder: pathlib.Path of the run.
      baseline: pathlib.Path of the baseline's run with the same seed, whether it exists or not.

    Raises:
      UserError: if the folder has a run of another configuration, or from training and evaluation.
    """
    result = folder / "result.json"
    if result.exists():
        changed = _difference(folder, config, _REPORT_KEYS)
        if changed:
            raise UserError(
                f"{folder} was made with another {', '.join(changed)}: expected another --workdir"
            )
        return
    # An interrupted run has a config.json; its training time is unknown.
    resumed = (folder / "config.json").exists()
    shared = share_warm_up(config, folder, baseline)
    start = time.monotonic()
    train(config, folder)
    seconds = None if resumed else time.monotonic() - start
    metrics, _ = evaluate_run(config, folder, config.data.val_split)
    facts = {"train_seconds": seconds, "warm_up_from": baseline.name if shared else None}
    atomic_write(result, json.dumps(facts | metrics, indent=2) + "\n")


def share_warm_up(config, folder, baseline):
    """Copies the baseline's checkpoint at the end of the warm-up into a run, if their training is the same up to it.

    Args:
      config, folder, baseline: see `run`.

    Returns:
      Whether the checkpoint was copied.
    """
    checkpoint = baseline / "checkpoints" / str(config.loss.start_step)
    target = folder / "checkpoints"
    if target.exists() or folder == baseline or not checkpoint.exists():
        return False
    if _difference(baseline, config, _MUTUAL_KEYS + _REPORT_KEYS):
        return False
    copied = folder / "checkpoints.tmp"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(checkpoint, copied / checkpoint.name)
    copied.rename(target)
    return True


def write_summary(workdir):
    """Writes ablation.json and ablation.md of all finished runs in a folder.

    Args:
      workdir: pathlib.Path of the folder of all runs.
    """
    results = {}
    for path in workdir.glob("*-seed*/result.json"):
        name, _, seed = path.parent.name.rpartition("-seed")
        results.setdefault(name, {})[int(seed)] = json.loads(path.read_text(encoding="utf-8"))
    named = [name for name in (*LADDER, *REMOVALS) if name in results]
    names = (*named, *sorted(results.keys() - set(named)))
    variants = {name: summarize(dict(sorted(results[name].items()))) for name in names}
    summary = {"environment": measure.environment(), "variants": variants}
    atomic_write(workdir / "ablation.json", json.dumps(summary, indent=2) + "\n")
    text = table(variants)
    if len(variants) > 1 and "full" in variants:
        text += "\n" + differences(variants)
    atomic_write(workdir / "ablation.md", text)


def summarize(runs):
    """Summarizes one variant's scores over its seeds.

    Args:
      runs: dict from seed to the content of result.json, at least one.

    Returns:
      Dict for JSON: protocol -> stage -> {mean, std, values} of the mIoU in 0..1 (sample standard deviation, None
      for one seed), and seeds, steps, commits, training seconds (None for a run that was resumed), the run that the
      warm-up was taken from and the classification F1, each a list over the seeds.
    """
    every = list(runs.values())
    scores = {
        protocol: {stage: _spread([run["miou"][protocol][stage] for run in every]) for stage in stages}
        for protocol, stages in every[0]["miou"].items()
    }
    return {
        **scores,
        "seeds": list(runs),
        "steps": [run["step"] for run in every],
        "commits": [run["commit"] for run in every],
        "train_seconds": [run["train_seconds"] and round(run["train_seconds"], 1) for run in every],
        "warm_up_from": [run["warm_up_from"] for run in every],
        "f1": [run["classification"]["f1"] for run in every],
    }


def table(variants):
    """Renders the scores as Markdown: one row per variant, one column per protocol and stage, in percent.

    Args:
      variants: dict from name to `summarize`'s result, at least one.

    Returns:
      str. The spread is the sample standard deviation, left out for a single seed.
    """
    columns = _columns(variants)
    rows = []
    for name, entry in variants.items():
        cells = [_cell(entry[protocol][stage]) for protocol, stage in columns]
        rows.append([f"`{name}`", ", ".join(map(str, entry["seeds"])), *cells, _seconds(entry)])
    return _markdown(["variant", "seeds", *_heads(columns), "training, s"], rows)


def differences(variants):
    """Renders as Markdown the differences of each variant from `full` within each seed, in points.

    Seeds differ more from each other than variants do, mostly by their steps of classification alone, which the
    variants of a seed share. The spread of the differences separates an effect from chance.

    Args:
      variants: dict from name to `summarize`'s result, with "full" and at least one more.

    Returns:
      str, columns as in `table`. Only seeds that both have are used; variants without common seeds are left out.
    """
    full = variants["full"]
    columns = _columns(variants)
    rows = []
    for name, entry in variants.items():
        seeds = [seed for seed in entry["seeds"] if seed in full["seeds"]]
        if name == "full" or not seeds:
            continue
        cells = []
        for protocol, stage in columns:
            values, of_full = (
                dict(zip(one["seeds"], one[protocol][stage]["values"], strict=True)) for one in (entry, full)
            )
            cells.append(_cell(_spread([values[seed] - of_full[seed] for seed in seeds]), sign="+"))
        rows.append([f"`{name}`", ", ".join(map(str, seeds)), *cells])
    return _markdown(["variant against `full`", "seeds", *_heads(columns)], rows)


def _columns(variants):
    first = next(iter(variants.values()))
    return [(p, stage) for p in ("predicted", "given") if p in first for stage in first[p]]


def _heads(columns):
    return [f"{stage} ({protocol})" for protocol, stage in columns]


def _markdown(heads, rows):
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]]) + "\n"


def _spread(values):
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "values": values,
    }


def _cell(score, sign=""):
    spread = "" if score["std"] is None else f" ± {100 * score['std']:.1f}"
    return f"{100 * score['mean']:{sign}.1f}{spread}"


def _seconds(entry):
    """Returns the mean wall time of the runs that were not resumed."""
    known = [seconds for seconds in entry["train_seconds"] if seconds is not None]
    after = " after the warm-up" if any(entry["warm_up_from"]) else ""
    return f"{np.mean(known):.0f}{after}" if known else ""


def _difference(folder, config, free):
    """Returns the keys, other than free ones, in which the configuration differs from that of the run in a folder."""
    saved = load_config(folder / "config.json")
    return [key for key in config_difference(saved, config) if not key.startswith(free)]


def _seed(text):
    if not text.isdecimal():
        raise UserError(f"--seeds: found {text!r}, expected whole numbers such as 0,1,2")
    return int(text)


if __name__ == "__main__":
    main()
