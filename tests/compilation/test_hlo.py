"""Bytes and collectives of programs that were counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from rml_jax.compilation.hlo import UnknownTrips, array_bytes, count

LOOP = """HloModule loop, is_scheduled=true

%body (state: (s32[], f32[10])) -> (s32[], f32[10]) {
  %state = (s32[], f32[10]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[10]{0} get-tuple-element(%state), index=1
  %y = f32[10]{0} negate(%x), metadata={op_name="jit(f)/neg"}
  ROOT %next = (s32[], f32[10]{0}) tuple(%i, %y)
}

%condition (state.1: (s32[], f32[10])) -> pred[] {
  %state.1 = (s32[], f32[10]{0}) parameter(0)
  %j = s32[] get-tuple-element(%state.1), index=0
  LIMIT
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (start: (s32[], f32[10])) -> (s32[], f32[10]) {
  %start = (s32[], f32[10]{0}) parameter(0)
  ROOT %while = (s32[], /*index=1*/f32[10]{0}) while(%start), condition=%condition, body=%bodyNOTE
}
"""


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("f32[]", 4),
        ("bf16[2,3]{1,0:T(8,128)(2,1)}", 12),
        ("pred[7]{0}", 7),
        ("s4[3]{0}", 2),
        ("c64[2]{0}", 16),
        ("f8e4m3fn[5]{0}", 5),
        ("f32[0,4]{1,0}", 0),
        ("token[]", 0),
        ("(bf16[2]{0}, (f32[3]{0}, u32[]))", 20),
        ("f32[1000]{0:T(1024)S(1)}", 0),
        ("(f32[1000]{0:T(1024)S(1)}, f32[2]{0:T(256)})", 8),
    ],
)
def test_bytes_of_arrays(shape, expected):
    assert array_bytes(shape) == expected


@pytest.mark.parametrize(
    ("limit", "note", "rounds"),
    [
        ("%limit = s32[] parameter(1)", ', backend_config={"known_trip_count":{"n":"5"}}', 5),
        ("%limit = s32[]{:T(128)} constant(7)", "", 7),
    ],
)
def test_a_loops_body_counts_as_often_as_it_runs(limit, note, rounds):
    counts = count(LOOP.replace("LIMIT", limit).replace("NOTE", note))
    assert counts.bytes_moved == counts.bytes_sliced == rounds * 2 * 40


def test_a_loop_of_unknown_length_has_no_count():
    with pytest.raises(UnknownTrips):
        count(LOOP.replace("LIMIT", "%limit = s32[] parameter(1)").replace("NOTE", ""))


def test_a_conditional_counts_as_its_most_expensive_branch():
    branches = "".join(
        f"%{name} (x.{name}: f32[{size}]) -> f32[] {{\n"
        f"  %x.{name} = f32[{size}]{{0}} parameter(0)\n"
        f"  ROOT %r.{name} = f32[] custom-call(%x.{name})\n}}\n\n"
        for name, size in (("a", 10), ("b", 100), ("c", 50))
    )
    entry = """ENTRY %main (i: s32[], x: f32[10], y: f32[100], z: f32[50]) -> f32[] {
  %i = s32[] parameter(0)
  %x = f32[10]{0} parameter(1)
  %y = f32[100]{0} parameter(2)
  %z = f32[50]{0} parameter(3)
  ROOT %r = f32[] conditional(%i, %x, %y, %z), branch_computations={%a, %b, %c}
}
"""
    assert count(branches + entry).bytes_moved == 404


def test_of_an_array_that_is_only_sliced_the_slice_counts():
    """A loop of 3 rounds over the rows of a matrix: each reads a row of 100 and adds it to one of the result's."""
    text = """HloModule rows

%fused (m: f32[100,8], i: s32[], out: f32[100,8]) -> f32[100,8] {
  %i = s32[] parameter(1)
  %m = f32[100,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %row = f32[1,8]{1,0} dynamic-slice(%m, %i, %zero), dynamic_slice_sizes={1,8}
  %out = f32[100,8]{1,0} parameter(2)
  ROOT %r = f32[100,8]{1,0} dynamic-update-slice(%out, %row, %i, %zero)
}

%body (s: (s32[], f32[100,8], f32[100,8])) -> (s32[], f32[100,8], f32[100,8]) {
  %s = (s32[], f32[100,8]{1,0}, f32[100,8]{1,0}) parameter(0)
  %k = s32[] get-tuple-element(%s), index=0
  %a = f32[100,8]{1,0} get-tuple-element(%s), index=1
  %b = f32[100,8]{1,0} get-tuple-element(%s), index=2
  %c = f32[100,8]{1,0} fusion(%a, %k, %b), kind=kLoop, calls=%fused
  ROOT %t = (s32[], f32[100,8]{1,0}, f32[100,8]{1,0}) tuple(%k, %a, %c)
}

ENTRY %main (s: (s32[], f32[100,8], f32[100,8])) -> (s32[], f32[100,8], f32[100,8]) {
  %s = (s32[], f32[100,8]{1,0}, f32[100,8]{1,0}) parameter(0)
  ROOT %w = (s32[], f32[100,8]{1,0}, f32[100,8]{1,0}) while(%s), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""  # noqa: E501
    counts = count(text)
    assert counts.bytes_moved == 3 * (3 * 3200 + 4)
    assert counts.bytes_sliced == 3 * (32 + 32 + 4)


def test_collectives_count_with_their_loops():
    text = (
        LOOP.replace("LIMIT", "%limit = s32[] constant(4)")
        .replace("NOTE", "")
        .replace("negate(%x)", "all-reduce(%x), replica_groups={{0,1}}, to_apply=%sum")
    )
    assert count(text).collectives == {"all-reduce": {"count": 4, "bytes": 160}}


def test_a_real_programs_count():
    """One fusion on the CPU: it reads and writes 1000 numbers."""
    compiled = (
        jax.jit(lambda x: jnp.sin(x) * 2 + 1).lower(jax.ShapeDtypeStruct((1000,), jnp.float32)).compile()
    )
    assert count(compiled.as_text()).bytes_moved == 8000
