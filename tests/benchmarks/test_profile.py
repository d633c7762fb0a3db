"""The profile by operation: own times of nested events, instructions back to the functions they come from."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.profile import _without_inner, instructions, own_times
from rml_jax.ops import resize_bilinear


@pytest.fixture(scope="module")
def compiled():
    def loss(x):
        return jnp.sum(jnp.tanh(resize_bilinear(x, (60, 60))) ** 2)

    return jax.jit(jax.grad(loss)).lower(jnp.ones((1, 30, 30, 8))).compile()


def test_what_runs_inside_of_a_loop_is_not_the_loops_own_time():
    events = [
        ("b", 60, 70),
        ("while", 0, 100),
        ("a", 10, 30),
        ("inner", 12, 20),
        ("a", 40, 50),
        ("c", 100, 130),
    ]
    assert _without_inner(events) == {"while": 60, "a": 22, "inner": 8, "b": 10, "c": 30}


def test_instructions_lead_back_to_our_functions(compiled):
    found = instructions(compiled.as_text()).values()
    products = [one for one in found if one.operation == "dot/dot_general"]
    assert {one.function for one in products} == {"ops.resize._by_platform"}
    assert {one.backward for one in products} == {False, True}
    assert any(one.shape.startswith("f32[") and one.operation.endswith("/tanh") for one in found)


def test_a_trace_has_times_of_the_programs_instructions(compiled, tmp_path):
    x = jnp.ones((1, 30, 30, 8))
    with jax.profiler.trace(tmp_path):
        jax.block_until_ready(compiled(x))
    times = own_times(next(tmp_path.rglob("*.xplane.pb")))
    assert times
    assert times.keys() <= instructions(compiled.as_text()).keys()
    assert min(times.values()) > 0
