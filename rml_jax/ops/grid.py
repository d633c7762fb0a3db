"""Sizes of the grids of cells that strided convolutions produce."""


def ceil_div(a, b):
    """Returns a / b rounded up.

    Args:
      a: dividend, for example a side in pixels: an int, an integer array, traced or not, or a symbolic dimension of
        `jax.export`.
      b: divisor, for example the stride in pixels per cell; the same types.

    Returns:
      The quotient, in the operands' type.
    """
    return -(-a // b)
