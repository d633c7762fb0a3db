"""Time of one training step with all losses: ours against a PyTorch peer that does the same work.

    python -m benchmarks.train_step [--json FILE] [--batch 2] [--dtype float32] [--contestants ours,eager,compile]
    python -m benchmarks.train_step --contestants ours,eager,ours:mixed,eager:mixed

A contestant has the precision after its colon, or that of --dtype. Each runs in its own process, so that their
threads and memory do not interfere. They alternate in blocks: some steps to warm up after the pause, and some timed
steps in a row, as in training. `ratios` are the peers' times divided by ours at the same precision; `best` is the
least time of all peers divided by the least of ours. Then the parts of the step are timed alone. Ours needs jax, flax
and optax, the peers torch and transformers as well.
"""

import multiprocessing
import os

from benchmarks import measure

WARM_UP, PART_REPEATS = 2, 7
BLOCK_WARM_UP, BLOCK = 3, 6
"""Steps at the beginning of a block that are not timed, and steps that are."""


def main():
    chosen, result = measure.start(**measure.STEP, contestants="ours,eager,compile", repeats=3)
    workers = {name: Worker(name, chosen) for name in chosen.contestants.split(",")}
    result["first_step_seconds"] = {name: worker.ask("start")._asdict() for name, worker in workers.items()}
    blocks = measure.interleave(workers, chosen.repeats, timer=lambda worker: worker.ask("steps"))
    result["step_seconds"] = {
        name: measure.summary([seconds for block in of_worker for seconds in block])
        for name, of_worker in blocks.items()
    }
    result["ratios"] = ratios({name: summary["median"] for name, summary in result["step_seconds"].items()})
    result["peak_memory_bytes"] = {name: worker.ask("memory") for name, worker in workers.items()}
    result["part_seconds"] = {
        name: worker.ask("parts") for name, worker in workers.items() if not name.startswith("compile")
    }
    for worker in workers.values():
        worker.ask("stop")
    measure.write_json(result, chosen.json)


def ratios(medians):
    """Returns each peer's time divided by ours at its precision, and `best`: the least of peers by the least of ours.

    Args:
      medians: seconds by contestant, "ours", "eager" or "compile", with or without ":DTYPE".
    """
    ours = {name: seconds for name, seconds in medians.items() if name.startswith("ours")}
    peers = {name: seconds for name, seconds in medians.items() if name not in ours}
    same = {name: ours.get("ours" + name.removeprefix(name.partition(":")[0])) for name in peers}
    found = {name: peers[name] / seconds for name, seconds in same.items() if seconds}
    return found | ({"best": min(peers.values()) / min(ours.values())} if ours and peers else {})


class Worker:
    """A contestant in its own process, which is idle between requests."""

    def __init__(self, name, chosen):
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        context.Process(target=_serve, args=(other, name, chosen), daemon=True).start()
        other.close()

    def ask(self, what):
        """Returns the answer to "start" (Seconds), "steps" (list of Seconds), "parts", "memory" (bytes) or "stop"."""
        self._connection.send(what)
        return self._connection.recv()


def _serve(connection, name, chosen):
    # On one GPU, neither must preallocate the memory; the peer needs jax for its parameters only.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if not name.startswith("ours"):
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
        elif what == "steps":
            # After a pause, caches are cold and the system may have reclaimed memory, unlike in training.
            for _ in range(BLOCK_WARM_UP):
                contestant.step()
            answer = [measure.timed(contestant.step) for _ in range(BLOCK)]
        elif what == "parts":
            answer = {part: _summary(function) for part, function in contestant.parts().items()}
        else:
            answer = contestant.peak_memory()
        connection.send(answer)
    connection.send(None)


def _make(name, chosen):
    name, _, dtype = name.partition(":")
    arguments = (chosen.variant, chosen.batch, chosen.crop, dtype or chosen.dtype)
    if name == "ours":
        from benchmarks.contestants import ours

        return ours.Contestant(*arguments)
    from benchmarks.contestants import peer

    return peer.Contestant(*arguments, compiled=name == "compile")


def _summary(function):
    return measure.summary(measure.interleave({"": function}, PART_REPEATS, warm_up=WARM_UP)[""])


if __name__ == "__main__":
    main()
