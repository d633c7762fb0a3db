"""Time from the start of Python to the end of the first training step, cold and on a second start.

    python -m benchmarks.compile [--json FILE] [--variant b1] [--batch 2] [--crop 320] [--repeats 1] [--breakdown]

A run has two programs: the warm-up's, with the classification loss alone, and the one with all losses, which is
compiled later or, in a resumed run, first. Each start is a new process; a second start uses the first one's entries
in the persistent compilation cache (`rml_jax.utils.compilation_cache`), under JAX's default conditions for keeping a
program. `--breakdown` compiles once more, without LLVM's optimisation. Needs jax, flax and optax; if train.py's other
libraries are installed, their import is timed as well.
"""

import json
import subprocess
import sys
import tempfile
import time

from benchmarks import measure

PROGRAMS = {"classification": False, "all losses": True}
STARTS = ("cold", "second")
_TRAIN_IMPORTS = "import rml_jax.commands.cli, rml_jax.training.loop"


def main():
    chosen, result = measure.start(**measure.STEP, repeats=1, breakdown=False)
    found = {name: {start: [] for start in STARTS} for name in PROGRAMS}
    for _ in range(chosen.repeats):
        for name, mutual in PROGRAMS.items():
            with tempfile.TemporaryDirectory() as cache:
                for start in STARTS:
                    breakdown = chosen.breakdown and start == "cold"
                    settings = json.dumps(result["settings"] | {"mutual": mutual, "breakdown": breakdown})
                    found[name][start].append(
                        measure.call_in_new_process(
                            "benchmarks.compile",
                            "first_step",
                            settings,
                            str(time.monotonic()),
                            JAX_COMPILATION_CACHE_DIR=cache,
                        )
                    )
    result["programs"] = {name: _summarise(starts) for name, starts in found.items()}
    result["ratios"] = {
        name: program["cold"]["total"]["median"] / program["second"]["total"]["median"]
        for name, program in result["programs"].items()
    }
    result["train.py"] = {"imports": _seconds_to_import()}
    measure.write_json(result, chosen.json)


def _summarise(starts):
    """Returns the seconds of each part, and whether a cached program gives the same parameters as a fresh one."""
    summary = {
        start: {part: measure.summary([run["seconds"][part] for run in runs]) for part in runs[0]["seconds"]}
        for start, runs in starts.items()
    }
    digests = {run["digest"] for runs in starts.values() for run in runs}
    return {
        **summary,
        "program": starts["cold"][0]["program"],
        "same_parameters_after_3_steps": len(digests) == 1,
    }


def first_step(settings, begin):
    """Prints as JSON the seconds of each part up to the end of the first step.

    Args:
      settings: JSON of variant, batch, crop, dtype, mutual and breakdown.
      begin: `time.monotonic()` when the process was started.
    """
    laps = Laps(float(begin))
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from benchmarks.contestants import settings as shared
    from rml_jax.models import RML
    from rml_jax.training import sharding
    from rml_jax.training.optimizer import make_optimizer
    from rml_jax.training.step import make_train_step
    from rml_jax.utils.trees import digest

    laps.end("imports")
    chosen = json.loads(settings)
    config = shared.network_config(chosen["variant"])

    def make_model():
        return RML(config, dtype=jnp.dtype(chosen["dtype"]), rngs=nnx.Rngs(0))

    mesh = sharding.make_mesh(chosen["batch"])
    graphdef, params = sharding.init_model(make_model, mesh)
    optimizer = make_optimizer(shared.optimizer_config(), params)
    # Not waited for: the parameters are drawn while the step is traced.
    state = sharding.initial_state(params, optimizer, 0, mesh)
    batch = sharding.shard(shared.make_batch(chosen["batch"], chosen["crop"]), mesh)
    laps.end("initial state and batch")
    train_step = sharding.jit_train_step(make_train_step(graphdef, optimizer, shared.step_config()))
    traced = train_step.trace(state, batch, mutual=chosen["mutual"])
    laps.end("trace")
    lowered = traced.lower()
    laps.end("lower")
    compiled = lowered.compile()
    laps.end("compile or load")
    state, _ = jax.block_until_ready(compiled(state, batch))
    laps.end("first step")
    laps.seconds["total"] = measure.Seconds(*map(sum, zip(*laps.seconds.values(), strict=True)))
    state, _ = jax.block_until_ready(compiled(state, batch))
    laps.end("second step")
    state, _ = jax.block_until_ready(compiled(state, batch))
    laps.end("third step")
    if chosen["breakdown"]:
        lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
        laps.end("compile without LLVM's optimisation")
    texts = {"instructions": (lowered, " = "), "fusions": (compiled, " fusion(")}
    program = {name: stage.as_text().count(sign) for name, (stage, sign) in texts.items()}
    content = {"program": program, "digest": digest(jax.device_get(state.params))}
    print(json.dumps({"seconds": laps.seconds, **content}))


class Laps:
    """Seconds of consecutive parts, by name. CPU time counts from the process's start, wall time from `begin`."""

    def __init__(self, begin):
        self._last = measure.Seconds(begin, 0.0)
        self.seconds = {}

    def end(self, part):
        now = measure.Seconds.now()
        self.seconds[part] = now.since(self._last)
        self._last = now


def _seconds_to_import():
    """Returns the seconds that train.py's imports take in a new process; None if a library isn't installed."""
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", _TRAIN_IMPORTS], stderr=subprocess.DEVNULL, check=False)
    return None if done.returncode else time.monotonic() - begin


if __name__ == "__main__":
    main()
