"""Time of one training step with all losses: ours against a PyTorch peer that does the same work.

    python -m benchmarks.train_step [--json FILE] [--batch 2] [--dtype float32] [--contestants ours,eager,compile]

Every contestant is a process of its own, so that neither's threads nor memory disturb the other; they take turns, one
step to wake up and one timed. Then the parts of the step are timed alone. Ours needs jax, flax and optax, the peers
torch and transformers as well.
"""

import argparse
import multiprocessing
import os
import time
from pathlib import Path

from benchmarks import measure

CONTESTANTS = ("ours", "eager", "compile")
WARM_UP = 2


def main():
    parser = argparse.ArgumentParser("python -m benchmarks.train_step")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--variant", default="b1")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--crop", type=int, default=320)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    parser.add_argument("--repeats", type=int, default=15)
    chosen = parser.parse_args()
    result = {"environment": measure.environment(), "settings": {**vars(chosen), "json": None}}
    del result["settings"]["json"]
    workers = {name: Worker(name, chosen) for name in chosen.contestants.split(",")}
    result["first_step_seconds"] = {name: worker.ask("start") for name, worker in workers.items()}
    steps = measure.interleave(
        {name: lambda worker=worker: worker.ask("step") for name, worker in workers.items()}, chosen.repeats
    )
    result["step_seconds"] = {name: measure.summary(seconds) for name, seconds in steps.items()}
    medians = {name: summary["median"] for name, summary in result["step_seconds"].items()}
    result["ratios"] = {name: medians[name] / medians["ours"] for name in medians if name != "ours"}
    result["peak_memory_bytes"] = {name: worker.ask("memory") for name, worker in workers.items()}
    result["part_seconds"] = {
        name: worker.ask("parts") for name, worker in workers.items() if name != "compile"
    }
    for worker in workers.values():
        worker.ask("stop")
    measure.write_json(result, chosen.json)


class Worker:
    """A contestant in a process of its own, which rests while it is not asked."""

    def __init__(self, name, chosen):
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        context.Process(target=_serve, args=(other, name, chosen), daemon=True).start()
        other.close()

    def ask(self, what):
        """What the process answers to "start", "step", "parts" (seconds), "memory" (bytes) or "stop"."""
        self._connection.send(what)
        return self._connection.recv()


def _serve(connection, name, chosen):
    # On one GPU, neither may take all of the memory beforehand; the peer needs jax for its parameters only.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if name != "ours":
        os.environ["JAX_PLATFORMS"] = "cpu"
    contestant = None
    while (what := connection.recv()) != "stop":
        if what == "start":
            begin = time.perf_counter()
            contestant = _make(name, chosen)
            contestant.step()
            answer = time.perf_counter() - begin
            for _ in range(WARM_UP):
                contestant.step()
        elif what == "step":
            # After a rest, caches are cold and the system may have taken memory back: not what training sees.
            contestant.step()
            answer = _seconds(contestant.step)
        elif what == "parts":
            answer = {part: _median(function) for part, function in contestant.parts().items()}
        else:
            answer = contestant.peak_memory()
        connection.send(answer)
    connection.send(None)


def _make(name, chosen):
    arguments = (chosen.variant, chosen.batch, chosen.crop, chosen.dtype)
    if name == "ours":
        from benchmarks.contestants import ours

        return ours.Contestant(*arguments)
    from benchmarks.contestants import peer

    return peer.Contestant(*arguments, compiled=name == "compile")


def _seconds(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def _median(function, repeats=7):
    for _ in range(WARM_UP):
        function()
    return measure.summary([_seconds(function) for _ in range(repeats)])["median"]


if __name__ == "__main__":
    main()
