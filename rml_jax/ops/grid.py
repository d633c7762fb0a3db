"""Lengths of the grids of cells that strided convolutions leave of an image."""


def ceil_div(a, b):
    """Returns a / b rounded up.

    Args:
      a: dividend, for example pixels a side: an int, an integer array, traced or not, or a symbolic dimension of
        `jax.export`.
      b: divisor, for example the stride in pixels per cell, of one of the same types.

    Returns:
      The quotient, in the operands' type.
    """
    return -(-a // b)
