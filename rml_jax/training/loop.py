"""The training loop: configuration in, checkpoints and logs out."""

import contextlib
import functools
import json
import signal
import time

import jax
from clu import parameter_overview
from flax import nnx

from rml_jax import visualize
from rml_jax.checkpoint import Checkpoints
from rml_jax.data.fingerprint import pack_items
from rml_jax.data.pipeline import train_batches
from rml_jax.data.sources import make_source, with_class_names
from rml_jax.data.summary import data_summary, item_tags, validation_source, with_slots
from rml_jax.evaluation.evaluator import Evaluator
from rml_jax.evaluation.localization import localization
from rml_jax.evaluation.samples import sample_images
from rml_jax.models import build
from rml_jax.models.weights import load_weights
from rml_jax.training.interruption import InterruptionNotice
from rml_jax.training.optimizer import learning_rates, make_optimizer, optimizer_config
from rml_jax.training.programs import StepPrograms
from rml_jax.training.runlog import RunLog, SilentLog, Window
from rml_jax.training.sharding import init_model, initial_state, jit_train_step, make_mesh, shard
from rml_jax.training.step import make_train_step, step_config
from rml_jax.training.workdir import check_data, check_workdir, occupy, record_start
from rml_jax.utils import provenance
from rml_jax.utils.distributed import is_first, noticing_lost_processes, on_first_process
from rml_jax.utils.errors import Interrupted, UserError
from rml_jax.utils.trees import digest
from rml_jax.validate import check_config

# Validation images that are shown, and those that CAMs and pseudo labels are measured on.
_SHOWN, _MEASURED = 6, 64


def train(config, workdir):
    """Trains until `config.train.steps`, resuming from the newest sound checkpoint in the work directory.

    Args:
      config: ConfigDict of a run (`rml_jax.config`).
      workdir: pathlib.Path of the work directory, made if it doesn't exist.

    Returns:
      TrainState at the end.

    Raises:
      UserError: if the configuration, the data, the weights to start from or the work directory are not as
        expected; nothing is written before these are checked. Later, if training cannot continue; the message says
        which step is saved.
      Interrupted: after SIGTERM or SIGINT, when the state is saved.
    """
    config = with_class_names(config)
    check_config(config)
    check_workdir(config, workdir)
    mesh = make_mesh(config.train.batch_size, config.train.grad_accum_steps)
    source = make_source(config.data, config.data.train_split, with_masks=False)
    shown = _image_source(config)
    if is_first():
        print("\n".join(data_summary(config, source, shown or validation_source(config))))
    what_next = "start all of them again with the same command; they resume from the last checkpoint"
    with noticing_lost_processes(what_next), contextlib.ExitStack() as closing:
        try:
            return _train(config, workdir, mesh, source, shown, closing)
        except BaseException:
            if jax.process_count() > 1:
                closing.pop_all()  # Closing a checkpoint waits for the other processes, which may be dead.
            raise


def _train(config, workdir, mesh, source, shown, closing):
    batches = train_batches(config, source, jax.process_index(), jax.process_count())
    closing.callback(batches.close)
    first_state = batches.get_state()
    next(batches)  # An unreadable data set fails here, before anything is written.
    batches.set_state(first_state)

    graphdef, state, optimizer, origin = _initial_state(config, mesh)
    lock = on_first_process(lambda: occupy(workdir))
    closing.enter_context(lock or contextlib.nullcontext())
    settings = config.checkpoint
    checkpoints = Checkpoints(workdir, settings.keep, settings.keep_best, settings.best_metric)
    closing.callback(checkpoints.close)
    restored = checkpoints.restore(state)
    items = item_tags(source)
    if restored:
        on_first_process(lambda: check_data(restored.run, items, config.data.allow_changes))
        state = restored.state
        _check_workers(config, restored.run)
        batches.set_state(restored.data)
    on_first_process(lambda: record_start(config, workdir, origin))
    if is_first():
        _print_start(state, workdir, resumed=restored is not None)
    log = RunLog(workdir, int(state.step), config.train.steps) if is_first() else SilentLog()
    closing.callback(log.close)
    train_step = make_train_step(graphdef, optimizer, step_config(with_slots(config, source)))
    facts = _facts(config, items)
    steps = range(int(state.step) + 1, config.train.steps + 1)
    needed = sorted({step > config.loss.start_step for step in steps})
    programs = StepPrograms(jit_train_step(train_step, state), needed)
    loop = _Loop(config, mesh, programs, batches, checkpoints, log, restored, facts)
    background = config.eval.background.cam
    show = functools.partial(_write_images, log, Evaluator(config, graphdef), shown, background)
    state = loop.run(state, show)
    checkpoints.wait()
    if is_first():
        best = settings.best_metric, checkpoints.best_step()
        log.summary(
            int(state.step), loop.window.skipped, checkpoints.steps(), best, digest(_local(state.params))
        )
    return state


class _Loop:
    """The loop. Step n is the state after n batches, in logs, checkpoints and images.

    The host reads the metrics of step n while the devices compute step n + 1.
    """

    def __init__(self, config, mesh, train_step, batches, checkpoints, log, restored, facts):
        self._config, self._mesh, self._train_step = config, mesh, train_step
        self._batches, self._checkpoints, self._log = batches, checkpoints, log
        self.window = Window(restored and restored.run["window"])
        self._means = restored.run["metrics"] if restored else {}
        self._rates = learning_rates(optimizer_config(config))
        self._facts = facts
        self._unread = None

    def run(self, state, show):
        """Trains from the step of `state` to the last; `show(params, step)` writes images. Returns the TrainState."""
        config, total = self._config, self._config.train.steps
        with InterruptionNotice() as notice:
            for step in range(int(state.step) + 1, total + 1):
                batch = self._next_batch(state, notice)
                state, metrics = self._train_step(state, batch, mutual=step > config.loss.start_step)
                self._read_metrics()
                self._unread = step, metrics
                if step % config.log.every == 0 or step in (total, config.loss.start_step):
                    self._write_entry(step)
                if step % config.checkpoint.every == 0 or step == total:
                    self._save(state)
                self._checkpoints.check()
                if config.log.pictures_every and step % config.log.pictures_every == 0 and is_first():
                    show(_local(state.params), step)
                if number := notice.received(step):
                    self._stop(state, number)
        return state

    def _next_batch(self, state, notice):
        start = time.monotonic()
        try:
            batch = next(self._batches)
        except Exception as error:  # From the source, or because a worker was killed.
            if jax.process_count() > 1:
                raise
            if number := notice.received(int(state.step)):  # Ctrl-C reaches the workers, too.
                self._stop(state, number)
            self._save_now(state)
            raise UserError(
                f"no batch for step {int(state.step) + 1}: {error}; step {int(state.step)} is saved, "
                "the same command resumes from it"
            ) from error
        self._log.waited(time.monotonic() - start)
        return shard(batch, self._mesh)

    def _read_metrics(self):
        """Waits for the previous step."""
        if self._unread is None:
            return
        step, metrics = self._unread
        self._unread = None
        self.window.add({name: float(value) for name, value in jax.device_get(metrics).items()})
        self._log.computed(step, self._config.loss.start_step)
        if self.window.skipped_in_row >= self._config.train.max_skipped:
            first = step - self.window.skipped_in_row + 1
            good = [saved for saved in self._checkpoints.steps() if saved < first]
            raise UserError(
                f"the loss or its gradient was not finite in steps {first} to {step}, which were skipped "
                f"(config.train.max_skipped = {self._config.train.max_skipped}); the last good checkpoint, before "
                f"them, is {f'that of step {good[-1]}' if good else 'none'}"
            )

    def _write_entry(self, step):
        self._read_metrics()
        self._means = self.window.take()
        updates = max(step - self.window.skipped, 1)
        rates = {f"learning_rate/{group}": float(rate(updates - 1)) for group, rate in self._rates.items()}
        self._log.write(step, self._means | rates, self.window.skipped)

    def _save(self, state):
        self._read_metrics()
        run = {**self._facts, "window": self.window.as_json()}
        self._checkpoints.save(state, self._batches.get_state(), run, self._means)

    def _save_now(self, state):
        self._save(state)
        self._checkpoints.wait()

    def _stop(self, state, number):
        self._save_now(state)
        raise Interrupted(
            f"stopped by {signal.Signals(number).name} after step {int(state.step)}, which is saved; "
            "the same command resumes from it",
            number,
        )


def _facts(config, items):
    """Returns what a checkpoint records about its run that does not change with the steps."""
    return {
        "config": json.loads(config.to_json_best_effort()),
        "class_names": list(config.data.class_names),
        "items": items and pack_items(items),
        "workers": config.data.workers,
        "processes": jax.process_count(),
        "devices": jax.device_count(),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
    }


def _check_workers(config, run):
    if run["workers"] != config.data.workers:
        raise UserError(
            f"config.data.workers is {config.data.workers}: expected {run['workers']}, with which the run began; "
            "the position in its data cannot be restored with another number"
        )


def _print_start(state, workdir, resumed):
    if resumed:
        print(f"resumed at step {int(state.step)} from {workdir}")
    else:
        print(parameter_overview.get_parameter_overview(nnx.to_pure_dict(state.params), max_lines=8))


def _local(params):
    """Returns this process's copy of replicated parameters."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), params)


def _write_images(log, evaluator, source, background, params, step):
    """Logs CAMs and predictions of the first validation images; the report shows `cams` and `images`."""
    samples = evaluator.samples(params, source, range(min(_MEASURED, len(source))))
    log.validation(localization(samples, background), step)
    rows = [sample_images(sample) for sample in samples[:_SHOWN]]
    captions = [list(rows[0]), *([""] * len(row) for row in rows[1:])]
    log.image("validation", visualize.grid([list(row.values()) for row in rows], captions), step)
    log.image("images", visualize.grid([[row["image"] for row in rows]]), step)
    log.image("cams", visualize.grid([[row["CAM"] for row in rows]]), step)


def _image_source(config):
    """Returns the validation source whose images are logged, or None if none are."""
    if not config.log.pictures_every:
        return None
    return make_source(config.data, config.data.val_split, with_masks=True)


def _initial_state(config, mesh):
    """Returns the graph, the train state at step 0, the optimizer, and where weights from the hub are from."""
    seed = config.train.seed
    graphdef, params = init_model(lambda: build.build_model(config, seed), mesh)
    optimizer = make_optimizer(optimizer_config(config), params)
    origin = {}
    if config.model.init_from:
        params, report = load_weights(params, config.model.init_from)
        print(f"started from {report}")
        origin = report.origin
    state = initial_state(params, optimizer, seed, mesh, config.train.shard_optimizer)
    return graphdef, state, optimizer, origin
