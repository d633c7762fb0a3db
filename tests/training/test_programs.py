"""What a step costs, before the first one; when a phase will end, after 20 steps of it."""

import itertools
import time

import jax
import jax.numpy as jnp

from rml_jax.training import runlog
from rml_jax.training.programs import StepPrograms, memory_text


def step(state, batch, mutual):
    """Adds the batch; with `mutual`, its square."""
    return state + (batch**2 if mutual else batch), {"loss": state.sum()}


def jitted():
    return jax.jit(step, static_argnames="mutual", donate_argnames="state")


def test_each_program_is_compiled_once_before_the_first_step(capsys):
    programs = StepPrograms(jitted(), [False, True])
    batch = jnp.full(1_000_000, 3.0)
    state, _ = programs(jnp.zeros(1_000_000), batch, mutual=False)
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if line.startswith("compiling")] == [
        "compiling the step with classification alone ...",
        "compiling the step with all losses ...",
    ]
    # 4 MB of state, which the new state takes the place of, and 4 MB of batch.
    assert text.count("8 MB for parameters, optimizer and batch") == 2
    assert float(state[0]) == 3
    state, metrics = programs(state, batch, mutual=True)
    assert (float(state[0]), float(metrics["loss"])) == (12, 3e6)
    assert capsys.readouterr().out == ""


def test_a_backend_without_an_analysis_is_no_error():
    assert memory_text(None) == "its memory is not known"


def test_the_end_is_estimated_from_twenty_steps_of_each_phase(tmp_path, monkeypatch, capsys):
    log = runlog.RunLog(tmp_path, start=0, total=1000)
    # A step takes 1 s; the first of a phase, with what it compiles, is left out.
    seconds = itertools.count(0, 1)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    for number in range(1, 101):
        log.computed(number, start_step=70)
    lines = capsys.readouterr().out.splitlines()
    log.close()
    assert [line.rpartition(", at ")[0] for line in lines] == [
        "the last step of classification alone, 70: in about 0:49",  # at step 21
        "the last step, 1000: in about 15:09",  # at step 91
    ]


def test_a_phase_of_few_steps_has_no_estimate(tmp_path, capsys):
    log = runlog.RunLog(tmp_path, start=0, total=15)
    for number in range(1, 16):
        log.computed(number, start_step=5)
    log.close()
    assert capsys.readouterr().out == ""
