"""Time of one training step with all losses: ours against a PyTorch peer that does the same work.

    python -m benchmarks.train_step [--json FILE] [--batch 2] [--dtype float32] [--contestants ours,eager,compile]

Every contestant runs in its own process, so that their threads and memory do not interfere. They alternate: one step
to warm up after the pause, and one timed step. Then the parts of the step are timed alone. Ours needs jax, flax and
optax, the peers torch and transformers as well.
"""

import multiprocessing
import os

from benchmarks import measure

WARM_UP, PART_REPEATS = 2, 7


def main():
    chosen, result = measure.start(**measure.STEP, contestants="ours,eager,compile", repeats=15)
    workers = {name: Worker(name, chosen) for name in chosen.contestants.split(",")}
    result["first_step_seconds"] = {name: worker.ask("start")._asdict() for name, worker in workers.items()}
    steps = measure.interleave(workers, chosen.repeats, timer=lambda worker: worker.ask("step"))
    result["step_seconds"] = {name: measure.summary(seconds) for name, seconds in steps.items()}
    medians = {name: summary["median"] for name, summary in result["step_seconds"].items()}
    if "ours" in medians:
        result["ratios"] = {name: medians[name] / medians["ours"] for name in medians if name != "ours"}
    result["peak_memory_bytes"] = {name: worker.ask("memory") for name, worker in workers.items()}
    result["part_seconds"] = {
        name: worker.ask("parts") for name, worker in workers.items() if name != "compile"
    }
    for worker in workers.values():
        worker.ask("stop")
    measure.write_json(result, chosen.json)


class Worker:
    """A contestant in its own process, which is idle between requests."""

    def __init__(self, name, chosen):
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        context.Process(target=_serve, args=(other, name, chosen), daemon=True).start()
        other.close()

    def ask(self, what):
        """Returns the answer to "start", "step" (Seconds), "parts" (summaries), "memory" (bytes) or "stop"."""
        self._connection.send(what)
        return self._connection.recv()


def _serve(connection, name, chosen):
    # On one GPU, neither must preallocate the memory; the peer needs jax for its parameters only.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if name != "ours":
        os.environ["JAX_PLATFORMS"] = "cpu"
    contestant = None
    while (what := connection.recv()) != "stop":
        if what == "start":
            begin = measure.Seconds.now()
            contestant = _make(name, chosen)
            contestant.step()
            answer = measure.Seconds.now().since(begin)
            for _ in range(WARM_UP):
                contestant.step()
        elif what == "step":
            # After a pause, caches are cold and the system may have reclaimed memory, unlike in training.
            contestant.step()
            answer = measure.timed(contestant.step)
        elif what == "parts":
            answer = {part: _summary(function) for part, function in contestant.parts().items()}
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


def _summary(function):
    return measure.summary(measure.interleave({"": function}, PART_REPEATS, warm_up=WARM_UP)[""])


if __name__ == "__main__":
    main()
