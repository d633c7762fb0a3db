"""Compiling a program and reading what the compiler tells about it."""

import time

import jax

from rml_jax.compilation.hlo import UnknownTrips, count
from rml_jax.compilation.programs import PROGRAMS, train_program
from rml_jax.compilation.topology import first_line
from rml_jax.utils.errors import UserError


def compile_config(config, topology, names, dump=None, report=None):
    """Compiles programs of a configuration.

    Args:
      config: ConfigDict of a run, with its class names.
      topology: Topology.
      names: names in `PROGRAMS`.
      dump: pathlib.Path of an existing folder, where NAME.txt gets the optimised program's text; None writes none.
      report: function of a name and its result, called after each program; None for none.

    Returns:
      Dict from name to the result of `compile_program`.
    """
    found = {}
    for name in names:
        trace, arguments = PROGRAMS[name](config, topology.devices)
        found[name], text = compile_program(trace, arguments, topology)
        if dump and text is not None:
            (dump / f"{name}.txt").write_text(text, encoding="utf-8")
        if report:
            report(name, found[name])
    return found


def compile_program(trace, arguments, topology):
    """Compiles one program.

    Args:
      trace: `trace` of a jitted function.
      arguments: tuple of its arguments, as jax.ShapeDtypeStruct with shardings over the topology's devices.
      topology: Topology.

    Returns:
      A dict, and the optimised program's text. All bytes are per device, None where the compiler does not tell:
        compile_seconds: of the compiler alone,
        program_bytes, argument_bytes, temporary_bytes, output_bytes: of the compiler's memory analysis,
        donated_bytes: arguments whose memory the outputs reuse,
        needed_bytes: what the program needs at once,
        fits: whether the device's memory holds that,
        flops: of the compiler's cost analysis, which counts the body of a loop once,
        bytes_moved, bytes_sliced: through device memory, loops counted (`rml_jax.compilation.hlo.Counts`),
        collectives: kind -> {"count", "bytes"}, loops counted.
      If the compiler fails, a dict of `error`, its reason in one line, and `fits`, False; and None.
    """
    lowered = trace(*arguments).lower(lowering_platforms=(topology.platform,))
    begin = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return {"error": first_line(error), "fits": False}, None
    seconds = time.monotonic() - begin
    text, memory = compiled.as_text(), compiled.memory_analysis()
    try:
        counts = count(text)
    except UnknownTrips:
        counts = None
    # The GPU's compiler tells neither.
    program = memory.generated_code_size_in_bytes or None
    costs = compiled.cost_analysis() or {}
    needed = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + (program or 0)
    )
    result = {
        "compile_seconds": round(seconds, 1),
        "program_bytes": program,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "donated_bytes": memory.alias_size_in_bytes,
        "needed_bytes": needed,
        "fits": needed <= topology.memory_bytes,
        "flops": costs.get("flops"),
        "bytes_moved": counts and counts.bytes_moved,
        "bytes_sliced": counts and counts.bytes_sliced,
        "collectives": counts and counts.collectives,
    }
    return result, text


def largest_batch(config, topology, report=None):
    """Finds the largest batch whose train step fits, per device, by doubling and bisection.

    Args:
      config: ConfigDict of a run, with its class names; `train.batch_size` is where the search begins.
      topology: Topology.
      report: function of a number of images per device and the result of `compile_program`, called after each try.

    Returns:
      Images per device, 0 if not even one fits; with `train.grad_accum_steps`, per part of the batch.

    Raises:
      UserError: if a compile fails for another reason than memory.
    """
    devices, parts = len(topology.devices), config.train.grad_accum_steps

    def fits(images):
        trial = config.copy_and_resolve_references()
        trial.train.batch_size = images * devices * parts
        result, _ = compile_program(*train_program(trial, topology.devices), topology)
        if report:
            report(images, result)
        error = result.get("error", "")
        if error and "RESOURCE_EXHAUSTED" not in error and "memory" not in error:
            raise UserError(f"{images} images per device: {error}, expected a step that compiles")
        return result["fits"]

    return largest(fits, max(1, config.train.batch_size // (devices * parts)))


def largest(fits, first):
    """Finds the greatest n >= 1 for which a monotone condition holds.

    Args:
      fits: function of n; true up to some n, false above.
      first: n to begin with, at least 1.

    Returns:
      n, or 0 if it holds for none.
    """
    if fits(first):
        low, high = first, 2 * first
        while fits(high):
            low, high = high, 2 * high
    else:
        low, high = 0, first
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
