"""The training loop: configuration in, checkpoints and TensorBoard files out."""

import functools

import jax
import numpy as np
from clu import parameter_overview
from flax import nnx
from tensorboardX import SummaryWriter

from rml_jax import build, visualize
from rml_jax.config import check_config, config_difference, load_config, save_config
from rml_jax.data.pipeline import train_batches
from rml_jax.data.sources import make_source, with_class_names
from rml_jax.errors import UserError
from rml_jax.evaluation.evaluator import Evaluator
from rml_jax.models.pretrained import load_weights
from rml_jax.progress import Progress
from rml_jax.report import pictures
from rml_jax.training.checkpoint import Checkpoints
from rml_jax.training.optimizer import make_optimizer, warmup_poly
from rml_jax.training.sharding import init_model, initial_state, jit_train_step, make_mesh, shard_batch
from rml_jax.training.step import make_train_step

# What may differ from the config of the run that is resumed: it changes nothing that is learned.
_FREE_KEYS = ("checkpoint.", "eval.", "log.")
_PICTURES = 6


def train(config, workdir):
    """Trains until `config.train.steps`, resuming from the newest checkpoint in the work directory.

    Args:
      config: ConfigDict of a run (`rml_jax.config`).
      workdir: pathlib.Path of the work directory, made if it doesn't exist.

    Returns:
      TrainState at the end.

    Raises:
      UserError: for what is wrong with the configuration, the data, the weights to start from or the work
        directory. Nothing is written before the configuration, the first batch and the weights are known good.
    """
    config = with_class_names(config)
    check_config(config)
    _check_workdir(config, workdir)
    mesh = make_mesh(config.train.batch_size)
    source = make_source(config.data, config.data.train_split, with_masks=False)
    batches = _open_batches(config, source)
    shown = _picture_source(config)
    first_state = batches.get_state()
    next(batches)  # A data set that can't be read fails here, before anything is written.
    batches.set_state(first_state)

    graphdef, state, optimizer = _initial_state(config, mesh)
    _make_workdir(config, workdir)
    checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
    writer = SummaryWriter(str(workdir))
    try:
        restored = checkpoints.restore(state)
        if restored is None:
            print(parameter_overview.get_parameter_overview(nnx.to_pure_dict(state.params), max_lines=8))
        else:
            state, iterator_state = restored
            batches.set_state(iterator_state)
            print(f"resumed at step {int(state.step)} from {workdir}")
        show = functools.partial(_write_pictures, writer, Evaluator(config, graphdef), shown)
        state = _run(config, state, batches, graphdef, optimizer, mesh, checkpoints, writer, show)
    finally:
        checkpoints.close()
        writer.close()
        batches.close()
    return state


def _run(config, state, batches, graphdef, optimizer, mesh, checkpoints, writer, show):
    """The loop proper. Step n is the state after n updates: logs, checkpoints and pictures all mean that."""
    train_step = jit_train_step(make_train_step(graphdef, optimizer, build.step_config(config)))
    rate = warmup_poly(1.0, config.optimizer.warmup_steps, config.train.steps)
    start, total = int(state.step), config.train.steps
    progress = Progress("train", total, "steps", start=start)
    recent = []
    for done in range(start + 1, total + 1):
        batch = shard_batch(next(batches), mesh)
        state, metrics = train_step(state, batch, mutual=done > config.loss.warmup_steps)
        recent.append(metrics)
        if done % config.log.every == 0 or done == total or done == config.loss.warmup_steps:
            means = _mean_metrics(recent)
            recent = []
            scalars = {**means, "learning_rate_factor": float(rate(done))}
            for name, value in scalars.items():
                writer.add_scalar(f"train/{name}", value, done)
            if not np.isfinite(means["loss"]):
                raise UserError(f"the loss became {means['loss']} by step {done}: expected a finite number")
            detail = "  ".join(f"{name} {means[name]:.4f}" for name in _SHOWN_TERMS if name in means)
            progress.update(done, detail)
        if done % config.checkpoint.every == 0 or done == total:
            checkpoints.save(state, batches.get_state())
        if config.log.pictures_every and done % config.log.pictures_every == 0:
            show(state.params, done)
    return state


_SHOWN_TERMS = ("loss", "classification", "ciml", "mfml", "apml")


def _mean_metrics(recent):
    values = jax.device_get(recent)
    return {name: float(np.mean([step[name] for step in values])) for name in values[-1]}


def _write_pictures(writer, evaluator, source, params, step):
    """Keeps what the network makes of the first validation images; `cams` and `images` are for the report."""
    samples = evaluator.samples(params, source, range(min(_PICTURES, len(source))))
    rows = [pictures(sample) for sample in samples]
    captions = [list(rows[0]), *([""] * len(row) for row in rows[1:])]
    shown = {
        "validation": visualize.grid([list(row.values()) for row in rows], captions),
        "images": visualize.grid([[row["image"] for row in rows]]),
        "cams": visualize.grid([[row["CAM"] for row in rows]]),
    }
    for tag, picture in shown.items():
        writer.add_image(tag, picture, step, dataformats="HWC")


def _picture_source(config):
    """The validation source that pictures are made of, or None where none are wanted."""
    if not config.log.pictures_every:
        return None
    return make_source(config.data, config.data.val_split, with_masks=True)


def _check_workdir(config, workdir):
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file: expected a folder or a new name for --workdir")
    path = workdir / "config.json"
    if not path.exists():
        return
    changed = {
        key: values
        for key, values in config_difference(load_config(path), config).items()
        if not key.startswith(_FREE_KEYS)
    }
    if changed:
        found = "; ".join(f"{key} is {new!r}, was {old!r}" for key, (old, new) in changed.items())
        raise UserError(
            f"{path} belongs to another run ({found}): expected the same config or another --workdir"
        )


def _make_workdir(config, workdir):
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        save_config(config, workdir / "config.json")
    except OSError as error:
        raise UserError(f"--workdir={workdir}: {error.strerror}, expected a folder to write to") from error


def _open_batches(config, source):
    return train_batches(
        source,
        batch_size=config.train.batch_size // jax.process_count(),
        crop_size=config.train.crop_size,
        scale=config.augment.scale,
        flip=config.augment.flip,
        seed=config.train.seed,
        workers=config.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _initial_state(config, mesh):
    """Graph, train state at step 0, replicated over the devices, and the optimizer."""
    seed = config.train.seed
    graphdef, params = init_model(lambda: build.build_model(config, seed), mesh)
    optimizer = make_optimizer(build.optimizer_config(config), params)
    if config.model.init_from:
        params, report = load_weights(params, config.model.init_from)
        print(f"started from {report}")
    return graphdef, initial_state(params, optimizer, seed, mesh), optimizer
