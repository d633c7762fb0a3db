"""Communication between devices in a step, from the compiled program."""

import json

import pytest

from benchmarks import measure
from tests.e2e.collectives import collectives, step_on

PROGRAM = """\
HloModule step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%body (carry: (s32[], f32[2,3])) -> (s32[], f32[2,3]) {
  %looped = f32[2,3]{1,0} all-reduce(%part), to_apply=%add, metadata={op_name="jit(step)/inner"}
}

%unused (x: f32[9]) -> f32[9] {
  %never = f32[9] all-gather(%x)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %loop = (s32[], f32[2,3]) while(%start), body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %pair = (bf16[4]{0}, f32[]) all-reduce-start(%x, %y), to_apply=%add, metadata={op_name="jit(step)/outer"}
  %tags = u8[8,20]{1,0} all-gather(%x), metadata={op_name="jit(step)/tags"}
}
"""


def test_collectives_of_a_program_are_counted_with_their_loops():
    found = {one.pop("operation"): one for one in collectives(PROGRAM)}
    assert found == {
        "jit(step)/inner": {"kind": "all-reduce", "count": 1, "executions": 5, "bytes": 5 * 6 * 4},
        "jit(step)/outer": {"kind": "all-reduce", "count": 1, "executions": 1, "bytes": 4 * 2 + 4},
        "jit(step)/tags": {"kind": "all-gather", "count": 1, "executions": 1, "bytes": 160},
    }


@pytest.mark.slow
def test_activations_are_never_exchanged():
    """Devices exchange gradients, losses and tags only, nothing that grows with the images."""
    settings = measure.STEP | {"variant": "mini", "crop": 64, "batch": 4, "dtype": "float32"}
    step = step_on(2, json.dumps(settings))
    assert step["unexpected"] == []
    assert step["bytes"]["all-reduce"] == pytest.approx(step["parameter_bytes"], rel=0.02)
