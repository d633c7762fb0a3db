"""Mix Transformer (MiT), the backbone of SegFormer (Xie et al. 2021); docs/method.md, Network.

`MixTransformer` has four `Stage`s. A stage consists of an overlapping patch embedding and `Block`s; a block consists
of spatial-reduction attention and a feed-forward layer with a depthwise convolution. Feature maps are [batch, height,
width, channels].

Images of several sizes can share a batch, each in the top left corner of the canvas, if `sizes`, int32 [B, 2], gives
their heights and widths. Every convolution then sees outside an image what it would see if the image were alone
(`PADDINGS`), and no cell attends to a key outside. Results outside an image are undefined.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rml_jax.models.backbone import BACKBONES
from rml_jax.ops.attention import chunked_attention
from rml_jax.ops.grid import ceil_div
from rml_jax.ops.product import bfloat16_matmul
from rml_jax.ops.region import blank_outside, inside, replicate_edges

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key

# The original weights were trained with two different epsilons (docs/method.md, Network).
BLOCK_EPSILON = 1e-6
EMBEDDING_EPSILON = 1e-5


PADDINGS = {"zeros": blank_outside, "edge": replicate_edges}
"""Name in `model.padding` -> function that fills a map [B, H, W, C] outside images of `sizes` before a convolution.

"zeros" is the original's. It tells a network where the border of the image is; "edge" repeats the image's last row
and column (docs/method.md, Beyond the paper).
"""


@dataclasses.dataclass(frozen=True)
class MiTConfig:
    """Architecture of a Mix Transformer, a `BackboneConfig`.

    Attributes:
      embed_dims: channels of each of the four stages.
      depths: blocks of each stage.
      num_heads: attention heads of each stage.
      sr_ratios: spatial reduction of the keys and values of each stage, per side.
      patch_sizes, strides: kernel and stride of each stage's patch embedding.
      mlp_ratio: ratio of the feed-forward layers' width to that of their stage.
      drop_path_rate: probability in [0, 1) of stochastic depth in the last block, rising linearly from 0 in the
        first.
      padding: what convolutions see outside an image, a key of `PADDINGS`.

    Raises:
      ValueError: if the last stage has fewer than two blocks or reduces its keys: its attention maps must be square;
        or if the padding is unknown.
    """

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    patch_sizes: tuple[int, ...] = (7, 3, 3, 3)
    strides: tuple[int, ...] = (4, 2, 2, 1)
    mlp_ratio: int = 4
    drop_path_rate: float = 0.1
    padding: str = "zeros"

    family: ClassVar[str] = "MiT"

    def __post_init__(self):
        if self.depths[-1] < 2 or self.sr_ratios[-1] != 1:
            raise ValueError(
                "the affinity needs the last two blocks in stage 4, without reduction: expected depths[3] >= 2 and "
                f"sr_ratios[3] == 1, found {self.depths[-1]} and {self.sr_ratios[-1]}"
            )
        if self.padding not in PADDINGS:
            raise ValueError(f"unknown padding {self.padding!r}: expected one of {', '.join(PADDINGS)}")

    @property
    def stride(self) -> int:
        """Pixels per cell of stage 4's grid."""
        return math.prod(self.strides)

    @property
    def smallest_side(self) -> int:
        """Smallest side in pixels that leaves at least one key in each spatial reduction."""
        pixels = (
            math.prod(self.strides[: stage + 1]) * (ratio - 1) + 1
            for stage, ratio in enumerate(self.sr_ratios)
        )
        return max(pixels)

    @property
    def num_attention_maps(self) -> int:
        """Heads of the last two blocks."""
        return 2 * self.num_heads[-1]

    def build(self, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs) -> MixTransformer:
        """Returns the network with fresh parameters."""
        return MixTransformer(self, dtype=dtype, rngs=rngs)


def _register(name, embed_dims, depths, **changes):
    BACKBONES[name] = functools.partial(MiTConfig, embed_dims=embed_dims, depths=depths, **changes)


# "b0" to "b5" are the SegFormer paper's; "mini" is sized for a CPU and small images.
_register("b0", (32, 64, 160, 256), (2, 2, 2, 2))
_register("b1", (64, 128, 320, 512), (2, 2, 2, 2))
_register("b2", (64, 128, 320, 512), (3, 4, 6, 3))
_register("b3", (64, 128, 320, 512), (3, 4, 18, 3))
_register("b4", (64, 128, 320, 512), (3, 8, 27, 3))
_register("b5", (64, 128, 320, 512), (3, 6, 40, 3))
_register(
    "mini",
    (32, 64, 96, 128),
    (1, 1, 1, 2),
    num_heads=(1, 2, 3, 4),
    sr_ratios=(4, 2, 1, 1),
    strides=(2, 2, 1, 1),
)


@jax.custom_vjp
def depthwise_conv3x3(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c"]) -> Float[Array, "b h w c"]:
    """Computes a 3x3 depthwise convolution, stride 1, zero padding 1, as nine shifted multiply-adds.

    XLA's CPU backend takes 20 times as long for the grouped convolution. The gradient is explicit as well, because
    XLA would fuse nine shifted products into one reduction, which runs on a single core there.

    Args:
      x: [B, H, W, C].
      kernel: [3, 3, C].

    Returns:
      [B, H, W, C], in x's type.
    """
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [padded[:, i : i + height, j : j + width] * kernel[i, j] for i in range(3) for j in range(3)]
    return functools.reduce(jnp.add, taps)


def _depthwise_forward(x, kernel):
    return depthwise_conv3x3(x, kernel), (x, kernel)


def _depthwise_backward(residuals, gradient):
    x, kernel = residuals
    # A CPU's caches and an accelerator's fusions want different loops. Only the platform's own is compiled.
    kernel_gradient = jax.lax.platform_dependent(
        x, gradient, cpu=_kernel_gradient_by_rows, default=_kernel_gradient_by_taps
    )
    return depthwise_conv3x3(gradient, kernel[::-1, ::-1]), kernel_gradient.astype(kernel.dtype)


_TAPS = [(i, j) for i in range(3) for j in range(3)]


def _kernel_gradient_by_taps(x, gradient):
    """Computes the sums over all pixels of the nine shifted products: [B, H, W, C] each -> float32 [3, 3, C].

    GPU and TPU compilers fuse the shift, the product and its sum, so that no product reaches memory
    (docs/accelerators.md, The depthwise convolution). The sums are float32, unlike those of JAX's own gradient.
    """
    height, width, channels = x.shape[1:]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    exact = gradient.astype(jnp.float32)
    shifted = [padded[:, i : i + height, j : j + width].astype(jnp.float32) for i, j in _TAPS]
    return jnp.stack([jnp.sum(tap * exact, axis=(0, 1, 2)) for tap in shifted]).reshape(3, 3, channels)


def _kernel_gradient_by_rows(x, gradient):
    """Computes `_kernel_gradient_by_taps` in a loop over rows of pixels, for CPUs.

    A row stays in a core's cache for all nine products. The sums over a row and the batch come last: CPUs sum columns
    slowly (17 ms on 2 cores, 30 with the sums inside the loop and 72 for nine reductions over whole maps,
    4x80x80x256), and a batch split over devices then needs one reduction rather than one per row.
    """
    batch, height, width, channels = x.shape
    # In float32: XLA's CPU compiler fails on such a loop in bfloat16 under vmap.
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    exact = gradient.astype(jnp.float32)

    def add_row(totals, row):
        window = jax.lax.dynamic_slice_in_dim(padded, row, 3, axis=1)
        wanted = jax.lax.dynamic_index_in_dim(exact, row, axis=1, keepdims=False)
        products = [window[:, i, j : j + width] * wanted for i, j in _TAPS]
        return jax.tree.map(jnp.add, totals, products), None

    zeros = [jnp.zeros((batch, width, channels))] * len(_TAPS)
    totals, _ = jax.lax.scan(add_row, zeros, jnp.arange(height))
    return jnp.stack([total.sum(axis=(0, 1)) for total in totals]).reshape(3, 3, channels)


depthwise_conv3x3.defvjp(_depthwise_forward, _depthwise_backward)


def _pad_edges(x, margin):
    """Repeats the outermost rows and columns of [B, H, W, C] `margin` times on each side."""
    return jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="edge")


class DepthwiseConv(nnx.Module):
    """3x3 depthwise convolution with bias."""

    def __init__(self, channels, padding="zeros", *, dtype, rngs):
        initializer = nnx.initializers.normal(math.sqrt(2.0 / 9.0))
        self.kernel = nnx.Param(initializer(rngs.params(), (3, 3, channels), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.padding = padding
        self.dtype = dtype

    def __call__(self, x):
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        x = x.astype(self.dtype)
        if self.padding == "edge":
            return depthwise_conv3x3(_pad_edges(x, 1), kernel)[:, 1:-1, 1:-1] + bias
        return depthwise_conv3x3(x, kernel) + bias


class Dense(nnx.Linear):
    """`nnx.Linear` over the last axis of a map, computed as one matrix product.

    XLA's CPU backend takes 3 times as long for the kernel's gradient if the leading axes are not merged.
    """

    mixed_precision = False

    def __call__(self, x):
        rows = x.reshape(-1, x.shape[-1])
        if self.mixed_precision:
            product = bfloat16_matmul(rows, self.kernel[...]) + self.bias[...]
        else:
            product = super().__call__(rows)
        return product.reshape(*x.shape[:-1], self.out_features)


class PatchConv(nnx.Conv):
    """`nnx.Conv` whose stride is above 1, as a product with patches of the image if the precision is mixed.

    XLA's CPU backend has no fast convolution in bfloat16.
    """

    mixed_precision = False

    def __call__(self, x):
        if not self.mixed_precision:
            return super().__call__(x)
        kernel = self.kernel[...]
        patches = extract_patches(
            x.astype(jnp.bfloat16), kernel.shape[0], self.strides[0], self.padding[0][0]
        )
        product = bfloat16_matmul(
            patches.reshape(-1, patches.shape[-1]), kernel.reshape(-1, kernel.shape[-1])
        )
        return product.reshape(*patches.shape[:3], -1) + self.bias[...]


def extract_patches(x, size, stride, padding):
    """Returns the windows of a convolution: [B, H, W, C] -> [B, H', W', size * size * C], by row, column, channel."""
    batch, height, width, channels = x.shape
    rows, columns = ((side + 2 * padding - size) // stride + 1 for side in (height, width))
    if size == stride and padding == 0:
        tiles = x[:, : rows * size, : columns * size].reshape(batch, rows, size, columns, size, channels)
        return tiles.swapaxes(2, 3).reshape(batch, rows, columns, -1)
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    shifted = [
        padded[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(shifted, axis=-1)


def _linear(features_in, features_out, *, dtype, rngs):
    return Dense(
        features_in, features_out, kernel_init=nnx.initializers.truncated_normal(0.02), dtype=dtype, rngs=rngs
    )


def _conv(features_in, features_out, kernel, stride, padding, *, dtype, rngs):
    """Creates a convolution with the original's initialisation: normal, deviation sqrt(2 / (k * k * features_out)).

    Unlike the original's, the bias is not 0. A patch outside the image is all 0, and LayerNorm's slope at a vector of
    zeros is 1 / sqrt(epsilon): two such norms in a row make the gradient of these patches 1e5 times too large
    (docs/method.md, The first gradient of a fresh backbone).
    """
    return PatchConv(
        features_in,
        features_out,
        kernel_size=(kernel, kernel),
        strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        kernel_init=nnx.initializers.normal(math.sqrt(2.0 / (kernel * kernel * features_out))),
        bias_init=nnx.initializers.truncated_normal(0.02),
        dtype=dtype,
        rngs=rngs,
    )


def _norm(channels, epsilon, *, dtype, rngs):
    """Creates a LayerNorm that computes the variance around the mean.

    The alternative, E[x^2] - E[x]^2, loses precision if a few channels are far from 0, as in trained networks, and is
    no faster here.
    """
    return nnx.LayerNorm(channels, epsilon=epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs)


class EfficientSelfAttention(nnx.Module):
    """Self-attention whose keys and values are reduced by a strided convolution (spatial reduction)."""

    mixed_precision = False
    chunked = False

    def __init__(self, channels, num_heads, sr_ratio, *, dtype, rngs):
        self.num_heads = num_heads
        self.query = _linear(channels, channels, dtype=dtype, rngs=rngs)
        self.key = _linear(channels, channels, dtype=dtype, rngs=rngs)
        self.value = _linear(channels, channels, dtype=dtype, rngs=rngs)
        self.projection = _linear(channels, channels, dtype=dtype, rngs=rngs)
        self.sr_ratio = sr_ratio
        if sr_ratio > 1:
            self.reduce = _conv(channels, channels, sr_ratio, sr_ratio, 0, dtype=dtype, rngs=rngs)
            self.reduce_norm = _norm(channels, EMBEDDING_EPSILON, dtype=dtype, rngs=rngs)

    def __call__(self, x, sizes=None):
        """Maps [B, H, W, C] to the output [B, H, W, C] and pre-softmax logits, float32 [B, heads, H W, keys]."""
        batch, height, width, channels = x.shape
        source = self.reduce_norm(self.reduce(x)) if self.sr_ratio > 1 else x
        query = self._split_heads(self.query(x)) * (channels // self.num_heads) ** -0.5
        key = self._split_heads(self.key(source))
        value = self._split_heads(self.value(source))
        real_keys = self._real_keys(source, sizes)
        logits = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
        if self.chunked:
            # XLA removes the logits where nobody uses them.
            operands = jnp.bfloat16 if self.mixed_precision else None
            mixed = chunked_attention(query, key, value, real_keys, operands=operands)
        else:
            weights = jax.nn.softmax(logits, axis=-1, where=real_keys).astype(value.dtype)
            mixed = jnp.einsum("bhqk,bhkd->bhqd", weights, value)
        mixed = mixed.swapaxes(1, 2).reshape(batch, height, width, channels)
        return self.projection(mixed), logits

    def _real_keys(self, source, sizes):
        """Returns which keys lie inside the images, bool [B, 1, 1, keys]; None if all do."""
        if sizes is None:
            return None
        # The reducing convolution has no padding and drops cells that do not fill a whole window.
        return inside(sizes // self.sr_ratio, source.shape[1:3]).reshape(source.shape[0], 1, 1, -1)

    def _split_heads(self, x):
        """Maps [B, H, W, C] to [B, heads, H W, C / heads]; heads last are 4 times as slow on CPU."""
        batch, height, width, channels = x.shape
        return x.reshape(batch, height * width, self.num_heads, channels // self.num_heads).swapaxes(1, 2)


class MixFFN(nnx.Module):
    """Feed-forward layer with a depthwise convolution, which replaces a positional embedding."""

    def __init__(self, channels, mlp_ratio, padding="zeros", *, dtype, rngs):
        self.expand = _linear(channels, channels * mlp_ratio, dtype=dtype, rngs=rngs)
        self.depthwise = DepthwiseConv(channels * mlp_ratio, padding, dtype=dtype, rngs=rngs)
        self.contract = _linear(channels * mlp_ratio, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x, sizes=None):
        """Maps [B, H, W, C] to [B, H, W, C]."""
        hidden = PADDINGS[self.depthwise.padding](self.expand(x), sizes)
        # Without the barrier, XLA's CPU backend materialises each of the nine shifted maps for the GELU's two uses.
        return self.contract(gelu(jax.lax.optimization_barrier(self.depthwise(hidden))))


def gelu(x: Float[Array, " ..."]) -> Float[Array, " ..."]:
    """Computes the exact GELU, x Phi(x), by erf.

    `jax.nn.gelu` uses erfc, whose two branches cost a CPU 2.7 times as much (7.3 against 2.7 ms for 4x80x80x256).

    Args:
      x: float [...].

    Returns:
      [...], in x's type.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


def drop_path(x: Float[Array, "b ..."], rate: float, key: Key[Array, ""] | None) -> Float[Array, "b ..."]:
    """Applies stochastic depth: drops each sample's residual branch with probability `rate`, or else scales it up.

    Args:
      x: residual branch [B, ...].
      rate: probability in [0, 1).
      key: random key, or None at inference, where x is returned unchanged.

    Returns:
      [B, ...], in x's type.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    # A product, not a selection: with the latter, gradients of XLA's CPU backend (jax 0.10.2) depend on the number of
    # devices (tests/e2e/test_devices.py); findings/xla-cpu-loses-gradients-of-max.sh is a small case.
    return x * (keep / (1.0 - rate)).astype(x.dtype)


class Block(nnx.Module):
    """Pre-norm transformer block: attention and feed-forward, each on a residual branch."""

    def __init__(
        self, channels, num_heads, sr_ratio, mlp_ratio, drop_path_rate, padding="zeros", *, dtype, rngs
    ):
        self.attention_norm = _norm(channels, BLOCK_EPSILON, dtype=dtype, rngs=rngs)
        self.attention = EfficientSelfAttention(channels, num_heads, sr_ratio, dtype=dtype, rngs=rngs)
        self.ffn_norm = _norm(channels, BLOCK_EPSILON, dtype=dtype, rngs=rngs)
        self.ffn = MixFFN(channels, mlp_ratio, padding, dtype=dtype, rngs=rngs)
        self.drop_path_rate = drop_path_rate

    def __call__(self, x, key, sizes=None):
        """Maps [B, H, W, C] to [B, H, W, C] and attention logits, float32 [B, heads, H W, keys]."""
        attention_key, ffn_key = (None, None) if key is None else jax.random.split(key)
        branch, logits = self.attention(self.attention_norm(x), sizes)
        x = x + drop_path(branch, self.drop_path_rate, attention_key)
        x = x + drop_path(self.ffn(self.ffn_norm(x), sizes), self.drop_path_rate, ffn_key)
        return x, logits


class Stage(nnx.Module):
    """Overlapping patch embedding, blocks and a closing LayerNorm."""

    def __init__(self, config, index, channels_in, drop_path_rates, *, dtype, rngs):
        channels = config.embed_dims[index]
        kernel = config.patch_sizes[index]
        # The margin that `__call__` adds itself; the convolution can add zeros only.
        self.edge_margin = kernel // 2 if config.padding == "edge" else 0
        margin = kernel // 2 - self.edge_margin
        self.embedding = _conv(
            channels_in, channels, kernel, config.strides[index], margin, dtype=dtype, rngs=rngs
        )
        self.embedding_norm = _norm(channels, EMBEDDING_EPSILON, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(
            Block(
                channels,
                config.num_heads[index],
                config.sr_ratios[index],
                config.mlp_ratio,
                rate,
                config.padding,
                dtype=dtype,
                rngs=rngs,
            )
            for rate in drop_path_rates
        )
        self.norm = _norm(channels, BLOCK_EPSILON, dtype=dtype, rngs=rngs)

    def __call__(self, x, keys, sizes=None):
        """Maps [B, H, W, C_in] to [B, H', W', C] and the attention logits of every block.

        Args:
          x: [B, H, W, C_in].
          keys: random key or None of each block.
          sizes: int32 [B, 2], in cells of the result, or None.
        """
        if self.edge_margin:
            x = _pad_edges(x, self.edge_margin)
        x = self.embedding_norm(self.embedding(x))
        logits = []
        for block, key in zip(self.blocks, keys, strict=True):
            x, block_logits = block(x, key, sizes)
            logits.append(block_logits)
        return self.norm(x), logits


class MixTransformer(nnx.Module):
    """The MiT backbone, a `rml_jax.models.backbone.Backbone`.

    Args:
      config: MiTConfig.
      dtype: type of the activations; parameters are float32.
      rngs: nnx.Rngs of the initial parameters.
    """

    def __init__(self, config: MiTConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        total = sum(config.depths)
        rates = [config.drop_path_rate * i / (total - 1) for i in range(total)]
        stages, channels_in = [], 3
        for index, depth in enumerate(config.depths):
            first = sum(config.depths[:index])
            stages.append(
                Stage(config, index, channels_in, rates[first : first + depth], dtype=dtype, rngs=rngs)
            )
            channels_in = config.embed_dims[index]
        self.stages = nnx.List(stages)
        self.config = config

    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        key: Key[Array, ""] | None = None,
        sizes: Int[Array, "b 2"] | None = None,
    ) -> tuple[list[Float[Array, "b _h _w _d"]], Float[Array, "b maps n n"]]:
        """Computes the features of the four stages and the raw affinity.

        Args:
          images: float [B, H, W, 3], normalised by ImageNet's mean and standard deviation.
          key: random key of stochastic depth; None at inference.
          sizes: int32 [B, 2], height and width of each image; None if all fill the canvas.

        Returns:
          features: four arrays [B, H_i, W_i, embed_dims[i]].
          attention: float32 [B, heads of the last two blocks, N, N], N = H_4 W_4: pre-softmax logits of the last
            two blocks, concatenated.
        """
        total = sum(self.config.depths)
        # Every block has its own key; with a shared key, blocks would be dropped together.
        keys = [None] * total if key is None else list(jax.random.split(key, total))
        features, attention, x = [], [], images
        for stage, stride in zip(self.stages, self.config.strides, strict=True):
            count = len(stage.blocks)
            x = PADDINGS[self.config.padding](x, sizes)
            sizes = None if sizes is None else ceil_div(sizes, stride)
            x, logits = stage(x, keys[:count], sizes)
            keys = keys[count:]
            features.append(x)
            attention = logits
        return features, jnp.concatenate(attention[-2:], axis=1)
