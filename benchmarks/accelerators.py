"""Parts of the training step, compiled for a TPU or GPU that need not be there, in two forms.

    python -m benchmarks.accelerators [--json FILE] [--topology v5e-1] [--batch 16] [--crop 320]

Some functions have one form for CPUs and another one for accelerators (docs/accelerators.md). Each part is compiled
in both; the figures are the compiler's estimates (`rml_jax.compilation.compile_program`). Nothing runs, so nothing
here is a time. Needs the extra `compilers`.
"""

import jax
import jax.numpy as jnp
from jax import export
from jax.sharding import SingleDeviceSharding

from benchmarks import measure
from rml_jax import compilation
from rml_jax.models.mit import depthwise_conv3x3
from rml_jax.ops import par

_CLASSES = 8  # slots of pseudo labels, for two background scores each


def main():
    jax.config.update("jax_platforms", "cpu")  # the devices of this machine, if any, stay free
    chosen, result = measure.start(topology="v5e-1", batch=16, crop=320, busy=True)
    jax.config.update("jax_enable_compilation_cache", False)
    topology = compilation.open_topology(chosen.topology)
    result["compiler"] = topology.compiler
    result["parts"] = {}
    for name, (function, shapes) in parts(chosen.batch, chosen.crop).items():
        sharding = SingleDeviceSharding(topology.devices[0])
        arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in shapes]
        forms = {"of CPUs": as_on_cpu(function, shapes), "of accelerators": function}
        result["parts"][name] = {
            form: compilation.compile_program(jax.jit(one).trace, arguments, topology)[0]
            for form, one in forms.items()
        }
    measure.write_json(result, chosen.json)


def parts(batch, crop):
    """Returns each part: name -> (function, shapes of its arguments)."""
    side, half = crop // 4, crop // 2
    maps = jax.ShapeDtypeStruct((batch, 2, side, side, 256), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((3, 3, 256), jnp.bfloat16)
    images = jax.ShapeDtypeStruct((batch, half, half, 3), jnp.float32)
    masks = jax.ShapeDtypeStruct((batch, half, half, 2 * (1 + _CLASSES)), jnp.float32)
    return {
        "depthwise convolution of stage 1 and its gradients": (_depthwise, (maps, kernel, maps)),
        "PAR": (par, (images, masks)),
    }


def _depthwise(x, kernel, cotangent):
    def one(x, cotangent):
        value, pull_back = jax.vjp(depthwise_conv3x3, x, kernel)
        return value, *pull_back(cotangent)

    value, gradient, kernel_gradients = jax.vmap(one)(x, cotangent)
    return value, gradient, kernel_gradients.sum(axis=0)


def as_on_cpu(function, shapes):
    """Returns a function that is lowered as for a CPU on every platform."""
    unchecked = [export.DisabledSafetyCheck.platform()]
    return export.export(jax.jit(function), platforms=("cpu",), disabled_checks=unchecked)(*shapes).call


if __name__ == "__main__":
    main()
