"""Programs for devices that are not there: lowered everywhere, compiled where the compilers are installed."""

import importlib.metadata

import jax
import jax.numpy as jnp
import pytest

from configs import digits_small, voc
from rml_jax.compilation import (
    PROGRAMS,
    Topology,
    compile_config,
    compile_program,
    open_topology,
    topology_names,
)
from rml_jax.compilation.measure import largest
from rml_jax.utils.errors import UserError

KEYS = {
    "compile_seconds",
    "program_bytes",
    "argument_bytes",
    "temporary_bytes",
    "output_bytes",
    "donated_bytes",
    "needed_bytes",
    "fits",
    "flops",
    "bytes_moved",
    "bytes_sliced",
    "collectives",
}


def small():
    """A configuration whose programs compile in seconds on a CPU."""
    config = digits_small.get_config()
    config.train.batch_size = 2
    config.eval.batch_size = 1
    return config


@pytest.fixture(scope="module")
def here():
    """This machine's CPU in the place of a described device."""
    return Topology("cpu", "cpu", "XLA", 10**12, 1e10, 1e11, tuple(jax.devices("cpu")[:1]))


# --- Lowering, without compilers ---


@pytest.fixture(scope="module")
def traced():
    trace, arguments = PROGRAMS["train"](small(), jax.devices("cpu")[:1])
    return trace(*arguments)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_train_step_lowers_for_accelerators(traced, platform):
    loops = [
        traced.lower(lowering_platforms=(name,)).as_text().count("stablehlo.while")
        for name in (platform, "cpu")
    ]
    # Only the platform's forms are in the program: the loops over rows of pixels are the CPU's.
    assert 0 < loops[0] < loops[1]


@pytest.mark.parametrize("program", ["eval", "refine", "crf"])
def test_programs_of_evaluation_lower_for_all_platforms(program):
    trace, arguments = PROGRAMS[program](small(), jax.devices("cpu")[:1])
    outputs = jax.tree.leaves(trace(*arguments).lower(lowering_platforms=("tpu",)).out_info)
    assert {output.shape[0] for output in outputs} == {1}


def test_the_batch_must_divide_among_the_devices():
    with pytest.raises(UserError, match="expected a multiple of the 3 devices"):
        PROGRAMS["train"](small(), jax.devices("cpu")[:1] * 3)


# --- What is read of a compiled program ---


def test_a_compiled_programs_figures(here):
    @jax.jit
    def double(x):
        return 2 * x

    argument = jax.ShapeDtypeStruct(
        (1000,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(here.devices[0])
    )
    result, text = compile_program(double.trace, (argument,), here)
    assert result.keys() == KEYS
    assert (result["argument_bytes"], result["output_bytes"], result["bytes_moved"]) == (4000, 4000, 8000)
    assert result["flops"] == 1000
    assert result["fits"]
    assert "ENTRY" in text


def test_a_program_that_does_not_compile_is_reported_in_one_line(here):
    @jax.jit
    def unknown(x):
        return jax.ffi.ffi_call("rml_jax_no_such_kernel", x)(x)

    argument = jax.ShapeDtypeStruct(
        (3,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(here.devices[0])
    )
    result, text = compile_program(unknown.trace, (argument,), here)
    assert text is None
    assert not result["fits"]
    assert "rml_jax_no_such_kernel" in result["error"]
    assert "\n" not in result["error"]


@pytest.mark.parametrize("greatest", [0, 1, 2, 3, 7, 8, 9, 31])
@pytest.mark.parametrize("first", [1, 2, 5, 16])
def test_the_largest_batch_is_found(greatest, first):
    tried = []

    def fits(number):
        tried.append(number)
        return number <= greatest

    assert largest(fits, first) == greatest
    assert min(tried) >= 1
    assert len(tried) == len(set(tried))


# --- Topologies ---


def test_every_topology_has_a_name_of_its_own():
    names = topology_names()
    assert len(names) == len(set(names))
    assert {"v5e-1", "v5e-8", "v5p-8", "v6e-8", "h100", "a100"} <= set(names)


def test_an_unknown_topology_names_those_there_are():
    with pytest.raises(UserError, match=r"--topology=v5e-2: expected one of .*v5e-8"):
        open_topology("v5e-2")


@pytest.mark.parametrize(
    ("name", "hint"), [("v5e-1", "pip install libtpu"), ("h100", "pip install --no-deps jax-cuda13-plugin")]
)
def test_without_the_compiler_the_message_says_what_to_install(monkeypatch, name, hint):
    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match=hint):
        open_topology(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e-1", "h100"])
def test_every_program_compiles_and_fits(name):
    """The package's default flags, small settings; docs/accelerators.md has MiT-B1's figures."""
    pytest.importorskip({"v5e-1": "libtpu", "h100": "jax_cuda13_plugin"}[name])
    found = compile_config(small(), open_topology(name), list(PROGRAMS))
    assert {program: result.get("error") for program, result in found.items()} == dict.fromkeys(PROGRAMS)
    assert all(result["fits"] and result["bytes_moved"] > 0 for result in found.values())


@pytest.mark.slow
def test_the_crop_of_three_channels_compiles_for_an_h100():
    """The two products that scale an RGB image by 0.5 and 1.5: jax 0.10.2 found no tiles for them."""
    pytest.importorskip("jax_cuda13_plugin")
    config = voc.get_config()
    config.model.variant, config.train.batch_size = "mini", 2
    found = compile_config(config, open_topology("h100"), ["train"])
    assert "error" not in found["train"]
