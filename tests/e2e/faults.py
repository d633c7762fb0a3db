"""Injects faults into a tiny training by the real command, and counts the lost steps.

    python -m tests.e2e.faults [--json FILE] [--only NAME,NAME,...] [--kills 20]

A row has the number of trials of a fault, the number survived and the number of steps that were computed again.
"Survived" means that the run ended or resumed as documented (docs/long_runs.md) and that its final parameters are
bit-identical to those of an undisturbed run. Needs Linux; the full disk and the read-only folder need root, to mount
a tmpfs. With `--only`, FILE's rows of other faults are kept.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks import measure
from tests.e2e.runs import Run, entries, last_step, printed_digest, resumed_step, saved_steps, start_processes

# Classification alone compiles in seconds; `kill` has all losses from step 20 on.
STEPS = 40
BASELINE = {"train.steps": STEPS, "loss.start_step": STEPS}


def main():
    parser = argparse.ArgumentParser("python -m tests.e2e.faults")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default=",".join(FAULTS))
    parser.add_argument("--kills", type=int, default=20)
    chosen = parser.parse_args()
    result = {"environment": measure.environment(), "faults": {}}
    if chosen.json and chosen.json.exists():
        result["faults"] = json.loads(chosen.json.read_text())["faults"]
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder), chosen.kills)
        for name in chosen.only.split(","):
            print(f"{name} ...", flush=True)
            result["faults"][name] = FAULTS[name](trial)
            measure.write_json(result, chosen.json)


class Trial:
    """A folder for runs, and the final parameters of undisturbed ones."""

    def __init__(self, folder, kills):
        self.folder, self.kills = folder, kills
        self._undisturbed = {}

    def workdir(self, name):
        """Returns the path of a new work directory."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def undisturbed(self, settings):
        """Returns the digest and the log entries of an undisturbed run."""
        key = tuple(sorted(settings.items()))
        if key not in self._undisturbed:
            workdir = self.workdir("undisturbed")
            status, output = Run(workdir, settings).finish()
            if status != 0:
                raise RuntimeError(f"the undisturbed run failed:\n{output}")
            self._undisturbed[key] = printed_digest(output), entries(workdir)
        return self._undisturbed[key]

    def ends_equal(self, workdir, settings, output):
        """Returns whether a run's parameters and its whole log equal those of the undisturbed run."""
        digest, log = self.undisturbed(settings)
        return printed_digest(output) == digest and entries(workdir) == log

    def resume(self, workdir, settings, reached):
        """Runs the same command to its end. Returns a row, whose `lost` is the number of steps computed again."""
        status, output = Run(workdir, settings).finish()
        return {
            "tried": 1,
            "survived": int(status == 0 and self.ends_equal(workdir, settings, output)),
            "lost": reached - resumed_step(output),
            "said": _message(output),
        }


def kill(trial):
    """Kills one run at random moments, every second time while a checkpoint is being written."""
    settings = {"train.steps": 100, "loss.start_step": 20}
    workdir, draw = trial.workdir("kill"), random.Random(0)
    lost, kills, reached, output = [], 0, 0, ""
    saving = lambda: any((workdir / "checkpoints").glob("*tmp*"))  # noqa: E731
    while kills < trial.kills:
        start, saved = reached, saved_steps(workdir)
        run = Run(workdir, settings)
        if kills % 2:
            # Not before a new checkpoint, or the run would make no progress.
            run.wait_until(lambda saved=saved: saved_steps(workdir) != saved)
            run.wait_until(lambda: False, draw.uniform(0, 1))
        else:
            # An incomplete checkpoint of the last kill is removed before the log is opened.
            log, began = workdir / "metrics.jsonl", time.time()
            run.wait_until(lambda log=log, began=began: log.exists() and log.stat().st_mtime > began)
            run.wait_until(saving)
            run.wait_until(lambda: False, draw.uniform(0, 0.05))
        if run.process.poll() is not None:
            break  # It ended.
        run.process.kill()
        output = run.finish()[1]
        if start and (resumed_step(output) or not saved):
            lost.append(start - resumed_step(output))
        reached = last_step(workdir)
        kills += 1
        print(
            f"  killed at step {reached}{'' if kills % 2 == 0 else ', saving'}; saved {saved_steps(workdir)}",
            flush=True,
        )
    status, output = run.finish() if run.process.poll() is None else Run(workdir, settings).finish()
    lost.append(reached - resumed_step(output))
    equal = status == 0 and trial.ends_equal(workdir, settings, output)
    return {
        "tried": kills,
        "survived": kills * equal,
        "lost": max(lost),
        "lost_each": lost,
        "parameters": printed_digest(output),
        "undisturbed": trial.undisturbed(settings)[0],
    }


def interrupted(number):
    def fault(trial):
        workdir = trial.workdir("signal")
        run = Run(workdir, BASELINE)
        run.wait_for_step(7)
        run.process.send_signal(number)
        status, output = run.finish()
        row = trial.resume(workdir, BASELINE, last_step(workdir))
        return row | {"survived": row["survived"] * (status == 128 + number), "said": _message(output)}

    return fault


def damage(spoil):
    """Damages the largest file of the newest checkpoint of a killed run."""

    def fault(trial):
        workdir = trial.workdir("damage")
        run = Run(workdir, BASELINE)
        run.wait_until(lambda: len(saved_steps(workdir)) >= 3)
        run.process.kill()
        run.finish()
        newest = workdir / "checkpoints" / str(saved_steps(workdir)[-1]) / "state"
        spoil(
            max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        )
        row = trial.resume(workdir, BASELINE, last_step(workdir))
        return row | {"survived": row["survived"] * ("damaged step" in row["said"])}

    return fault


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_bits(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :: 4096] = bytes(byte ^ 1 for byte in data[len(data) // 2 :: 4096])
    path.write_bytes(data)


def full_disk(trial):
    """Trains on a small file system with space for one checkpoint and a part of the next."""
    with mounted(trial.folder / "small", "size=18m") as small:
        settings = BASELINE | {"checkpoint.every": 5}
        workdir = small / "run"
        status, output = Run(workdir, settings).finish()
        before, reached = saved_steps(workdir), last_step(workdir)
        subprocess.run(["mount", "-o", "remount,size=200m", small], check=True)
        row = trial.resume(workdir, settings, reached)
        return row | {"survived": row["survived"] * (status == 2 and before != []), "said": _message(output)}


def save_error(trial):
    """Limits the size of files such that only arrays written in the background exceed it."""
    workdir = trial.workdir("save_error")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))  # noqa: E731
    status, output = Run(workdir, BASELINE, before=limit).finish()
    row = trial.resume(workdir, BASELINE, last_step(workdir))
    return row | {"survived": row["survived"] * (status == 2), "said": _message(output)}


def worker_killed(trial):
    settings = BASELINE | {"data.workers": 1}
    workdir = trial.workdir("worker")
    run = Run(workdir, settings)
    run.wait_for_step(7)
    for child in _children(run.process.pid):
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
            os.kill(child, signal.SIGKILL)
    status, output = run.finish()
    row = trial.resume(workdir, settings, last_step(workdir))
    return row | {"survived": row["survived"] * (status == 2), "said": _message(output)}


def process_killed(index):
    """Kills one of two processes; the other must end on its own within a minute."""

    def fault(trial):
        workdir = trial.workdir("processes")
        settings = BASELINE | {"checkpoint.every": 3}
        runs = start_processes(workdir, settings, devices=1)
        runs[0].wait_for_step(7)
        runs[index].process.kill()
        status, output = runs[1 - index].finish(60)
        runs[index].finish()
        reached = last_step(workdir)
        again = [run.finish() for run in start_processes(workdir, settings, devices=1)]
        return {
            "tried": 1,
            "survived": int(status not in (0, None) and [status for status, _ in again] == [0, 0]),
            "lost": reached - resumed_step(again[0][1]),
            "said": _message(output),
        }

    return fault


def process_terminated(trial):
    """Sends SIGTERM to one of two processes, as before a preemption: both save the same step and end."""
    workdir = trial.workdir("preempted")
    runs = start_processes(workdir, BASELINE | {"train.steps": 400}, devices=1)
    runs[0].wait_for_step(7)
    runs[1].process.terminate()
    ended = [run.finish(120) for run in runs]
    reached = last_step(workdir)
    return {
        "tried": 1,
        "survived": int([status for status, _ in ended] == [128 + signal.SIGTERM] * 2),
        "lost": reached - (saved_steps(workdir) or [0])[-1],
        "said": _message(ended[0][1]),
    }


def not_a_number(trial):
    """Trains with a learning rate of 1e30: after one update no loss is finite."""
    workdir = trial.workdir("nan")
    settings = BASELINE | {
        "optimizer.backbone_lr": 1e30,
        "optimizer.warmup_steps": 10,
        "checkpoint.every": 1,
        "train.max_skipped": 5,
    }
    status, output = Run(workdir, settings).finish()
    said = _message(output)
    return {
        "tried": 1,
        "survived": int(status == 2 and "the last good checkpoint, before them, is that of step" in said),
        "lost": 0,
        "said": said,
    }


def read_only(trial):
    with mounted(trial.folder / "read_only", "ro") as folder:
        status, output = Run(folder / "run", BASELINE).finish()
    return {"tried": 1, "survived": int(status == 2), "lost": 0, "said": _message(output)}


def two_trainings(trial):
    workdir = trial.workdir("two")
    first = Run(workdir, BASELINE | {"train.steps": 4000})
    first.wait_for_step(1)
    status, output = Run(workdir, BASELINE | {"train.steps": 4000}).finish()
    goes_on = first.process.poll() is None
    first.process.kill()
    first.finish()
    return {"tried": 1, "survived": int(status == 2 and goes_on), "lost": 0, "said": _message(output)}


@contextlib.contextmanager
def mounted(folder, options):
    """Mounts a new file system in memory."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def _children(pid):
    return map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def _message(output):
    """Returns the line with the command's error message, "" without one."""
    wanted = ("error: ", "stopped by ", "damaged ")
    lines = [line for line in output.splitlines() if any(word in line for word in wanted)]
    return lines[-1] if lines else ""


FAULTS = {
    "kill -9": kill,
    "SIGTERM": interrupted(signal.SIGTERM),
    "SIGINT": interrupted(signal.SIGINT),
    "truncated file": damage(truncate),
    "deleted file": damage(Path.unlink),
    "flipped bits": damage(flip_bits),
    "full disk": full_disk,
    "background save error": save_error,
    "data worker killed": worker_killed,
    "process 0 of 2 killed": process_killed(0),
    "process 1 of 2 killed": process_killed(1),
    "process 1 of 2 gets SIGTERM": process_terminated,
    "loss not finite": not_a_number,
    "read-only workdir": read_only,
    "two trainings": two_trainings,
}


if __name__ == "__main__":
    main()
