"""Matrix products with operands in bfloat16 and float32 sums (docs/performance.md, Precision)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@jax.custom_vjp
def bfloat16_matmul(rows: Float[Array, "n k"], kernel: Float[Array, "k m"]) -> Float[Array, "n m"]:
    """Computes the product of two matrices rounded to bfloat16, with float32 sums, in both directions.

    CPUs with AMX or AVX512_BF16, GPUs and TPUs multiply bfloat16 several times as fast as float32. The gradient is
    explicit because JAX's own would multiply a float32 cotangent by a bfloat16 operand, which is as slow as float32.

    Args:
      rows: float [N, K].
      kernel: float [K, M].

    Returns:
      float32 [N, M].
    """
    return _forward(rows, kernel)[0]


def _forward(rows, kernel):
    narrow_rows, narrow_kernel = rows.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    # An empty array carries the type of `rows` to the backward pass.
    residuals = narrow_rows, narrow_kernel, jnp.zeros((0,), rows.dtype)
    return _matmul(narrow_rows, narrow_kernel), residuals


def _backward(residuals, gradient):
    rows, kernel, typed = residuals
    gradient = gradient.astype(jnp.bfloat16)
    return _matmul(gradient, kernel.T).astype(typed.dtype), _kernel_gradient(rows, gradient)


bfloat16_matmul.defvjp(_forward, _backward)


def _matmul(left, right):
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)


# One product after the other under vmap: XLA's CPU backend (jax 0.10.2) computes a batch of products in float32.
@jax.custom_batching.sequential_vmap
def _kernel_gradient(rows, gradient):
    # It also multiplies in bfloat16 only if the left operand's last axis is summed, and lies in memory so
    # (findings/xla-cpu-bfloat16-weight-gradient-in-float32.sh).
    transposed = with_layout_constraint(rows.T, Layout(major_to_minor=(0, 1)))
    return _matmul(transposed, gradient)
