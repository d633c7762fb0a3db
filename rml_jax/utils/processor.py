"""What this machine's CPU can do, and how XLA should compile for it."""

import os
import platform as python_platform
from pathlib import Path

import jax

_BFLOAT16_PRODUCTS = {"amx_bf16", "avx512_bf16"}

# XLA's CPU backend hands parts of a program to the YNNPACK library: matrix products, and by default the operations
# around them as well, for which it writes every constant out at full size (docs/performance.md, Precision).
_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
_PRODUCTS_ONLY = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"


def features():
    """Returns the names of the processor's instruction sets, as Linux tells them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    return next(
        (tuple(line.split()[2:]) for line in lines if line.lower().startswith(("flags", "features"))), ()
    )


def multiplies_bfloat16():
    """Returns whether JAX computes on a CPU with instructions for products of bfloat16 matrices."""
    return jax.default_backend() == "cpu" and not _BFLOAT16_PRODUCTS.isdisjoint(features())


def digest_text():
    """Returns a text that differs between processors that can't run each other's programs."""
    return f"{python_platform.machine()} {' '.join(features()) or python_platform.processor()}"


def inference_options(platform):
    """Returns XLA's compiler options for programs without gradients, for `jax.jit`; None for XLA's own.

    An option in the environment variable XLA_FLAGS takes precedence.

    Args:
      platform: of the devices, such as "cpu".
    """
    if platform != "cpu" or _LIBRARY in os.environ.get("XLA_FLAGS", ""):
        return None
    return {_LIBRARY: _PRODUCTS_ONLY}
