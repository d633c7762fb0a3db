"""The log of a run: TensorBoard files, metrics.jsonl, the progress line and the summary."""

import datetime
import json
import math
import sys
import time

from rml_jax.losses import loss_names
from rml_jax.utils.files import atomic_write
from rml_jax.utils.progress import Progress, format_seconds

_ESTIMATED = 20  # steps that the estimate of a phase's end is made from


def tag_of(name):
    """Returns the TensorBoard tag of a metric of the train step; a name with a slash is already a tag."""
    return name if "/" in name else f"train/{name}"


class Window:
    """Means of the steps' metrics since the last log entry, and the number of skipped steps.

    It is saved in each checkpoint, so that a resumed run writes the same entries as an uninterrupted one.

    Args:
      saved: result of `as_json`; None at the start of a run.
    """

    def __init__(self, saved=None):
        saved = saved or {"sums": {}, "counts": {}, "skipped": 0, "skipped_in_row": 0}
        self._sums, self._counts = dict(saved["sums"]), dict(saved["counts"])
        self.skipped, self.skipped_in_row = saved["skipped"], saved["skipped_in_row"]

    def as_json(self):
        """Returns the state as a JSON-like dict."""
        return {
            "sums": self._sums,
            "counts": self._counts,
            "skipped": self.skipped,
            "skipped_in_row": self.skipped_in_row,
        }

    def add(self, metrics):
        """Adds a step's metrics, a dict of floats with `skipped`, 1 or 0. Values that are not finite are ignored."""
        skipped = int(metrics["skipped"])
        self.skipped += skipped
        self.skipped_in_row = self.skipped_in_row + 1 if skipped else 0
        for name, value in metrics.items():
            if name != "skipped" and math.isfinite(value):
                self._sums[name] = self._sums.get(name, 0.0) + float(value)
                self._counts[name] = self._counts.get(name, 0) + 1

    def take(self):
        """Returns the means and resets them."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


class RunLog:
    """Writes the log of a run. Step n is the state after n batches.

    Args:
      workdir: pathlib.Path of the run.
      start: step that the run resumes from. Entries of an interrupted run after this step are removed.
      total: last step.
    """

    def __init__(self, workdir, start, total):
        self._writer = _summary_writer(workdir, start)
        path = workdir / "metrics.jsonl"
        _forget_after(path, start)
        self._lines = path.open("a", encoding="utf-8")
        self._progress = Progress("train", total, "steps", start=start)
        self._begun = self._last_time = time.monotonic()
        self._start, self._last_step = start, start
        self._waited = self._waited_before = 0.0
        self._total, self._phase = total, None

    def waited(self, seconds):
        """Adds seconds in which the step waited for data."""
        self._waited += seconds

    def computed(self, step, start_step):
        """Notes that a step is computed; `_ESTIMATED` steps after the first of a phase, prints when it will end.

        Args:
          step: its number.
          start_step: last step of the first phase, classification alone, whose steps are faster.
        """
        now, is_mutual = time.monotonic(), step > start_step
        if self._phase is None or self._phase[0] != is_mutual:
            self._phase = is_mutual, step, now
            return
        _, first, begun = self._phase
        last = self._total if is_mutual else min(start_step, self._total)
        if step - first == _ESTIMATED and step < last:
            left = (now - begun) / _ESTIMATED * (last - step)
            name = "the last step" if last == self._total else "the last step of classification alone"
            print(f"{name}, {last}: in about {format_seconds(left)}, at {_clock(left)}", flush=True)

    def write(self, step, scalars, skipped):
        """Writes one entry.

        Args:
          step: of the entry.
          scalars: dict of floats: means of metrics, learning rates.
          skipped: number of steps skipped so far.
        """
        now = time.monotonic()
        seconds = max(now - self._last_time, 1e-9)
        speed = {
            "speed/steps_per_second": (step - self._last_step) / seconds,
            "speed/waiting_for_data": (self._waited - self._waited_before) / seconds,
        }
        self._last_time, self._last_step, self._waited_before = now, step, self._waited
        entry = {"step": step, **scalars, "skipped": skipped, **speed}
        self._lines.write(json.dumps(entry) + "\n")
        self._lines.flush()
        for name, value in entry.items():
            if name != "step":
                self._writer.add_scalar(tag_of(name), value, step)
        terms = [f"{name} {scalars[name]:.4f}" for name in loss_names() if name in scalars]
        if speed["speed/waiting_for_data"] > 0.1:
            terms.append(f"waits for data {speed['speed/waiting_for_data']:.0%}")
        if skipped:
            terms.append(f"skipped {skipped}")
        self._progress.update(step, "  ".join(terms))

    def validation(self, scalars, step):
        """Writes measures on validation images, a dict of floats."""
        for name, value in scalars.items():
            self._writer.add_scalar(f"validation/{name}", value, step)

    def image(self, name, image, step):
        """Writes an image, uint8 [H, W, 3]."""
        self._writer.add_image(name, image, step, dataformats="HWC")

    def summary(self, step, skipped, checkpoints, best, digest):
        """Prints a summary of the run.

        Args:
          step: the last one.
          skipped: number of skipped steps.
          checkpoints: steps of the saved checkpoints.
          best: name of the metric that selects the best checkpoint, and that checkpoint's step.
          digest: SHA-256 of the parameters.
        """
        metric, best_step = best
        seconds = time.monotonic() - self._begun
        done = step - self._start
        share = self._waited / max(seconds, 1e-9)
        print(
            f"steps {self._start} to {step} in {format_seconds(seconds)}, {done / max(seconds, 1e-9):.3g}/s, "
            f"{share:.0%} of it waiting for data; {skipped} steps skipped in the whole run\n"
            f"checkpoints: {', '.join(map(str, checkpoints))}; lowest {metric} at {best_step}\n"
            f"parameters: sha256 {digest}"
        )

    def close(self):
        """Closes the files."""
        self._writer.close()
        self._lines.close()


class SilentLog:
    """The log of a process other than the first: writes nothing."""

    def waited(self, seconds):
        """See `RunLog`."""

    def computed(self, step, start_step):
        """See `RunLog`."""

    write = validation = image = summary = close = lambda self, *_: None


def _clock(seconds):
    """Returns the time of day in so many seconds, with the date unless it is today."""
    now = datetime.datetime.now()
    then = now + datetime.timedelta(seconds=seconds)
    return then.strftime("%H:%M" if then.date() == now.date() else "%Y-%m-%d %H:%M")


def _summary_writer(workdir, start):
    # tensorboardX imports torch if it is installed, which takes seconds and is only needed for torch's tensors.
    hidden = sys.modules.setdefault("torch", None) is None
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter(str(workdir), purge_step=start + 1 if start else None)


def _forget_after(path, step):
    """Removes the lines of later steps, and an incomplete last line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    atomic_write(path, "".join(kept))
