"""Mix Transformer (MiT), the backbone of SegFormer (Xie et al. 2021), as METHOD.md section 1 describes it.

Read it from the bottom up: `MixTransformer` is four `Stage`s, a stage is an overlapping patch embedding and
`Block`s, a block is spatial-reduction attention and a feed-forward layer with a depthwise convolution. Feature
maps are [batch, height, width, channels] throughout. Besides the features, the pre-softmax attention logits of
the last two blocks come out: they are the raw semantic affinity.

Pictures of several sizes can share a batch, each in the top left corner of the canvas, if `sizes`, int32 [B, 2], says
where they end. Then every convolution sees zeros beyond a picture, as it would if the picture were alone, and no
cell attends to a key from there; what comes out beyond a picture has no meaning.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rml_jax.ops.region import blank_outside, inside

# The original weights were trained with two different epsilons (METHOD.md section 1).
BLOCK_EPSILON = 1e-6
EMBEDDING_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class MiTConfig:
    """Shape of a Mix Transformer; tuples hold one value for each of the four stages."""

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...] = (1, 2, 5, 8)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    strides: tuple[int, ...] = (4, 2, 2, 1)
    kernels: tuple[int, ...] = (7, 3, 3, 3)
    mlp_ratio: int = 4
    drop_path: float = 0.1

    def __post_init__(self):
        if self.depths[-1] < 2 or self.reductions[-1] != 1:
            raise ValueError(
                "the affinity needs the last two blocks in stage 4, without reduction: expected depths[3] >= 2 and "
                f"reductions[3] == 1, found {self.depths[-1]} and {self.reductions[-1]}"
            )

    @property
    def stride(self):
        """Pixels per cell of stage 4's grid."""
        return math.prod(self.strides)

    @property
    def smallest_side(self):
        """Fewest pixels a side that leave each spatial reduction at least one key to attend to."""
        pixels = (
            math.prod(self.strides[: stage + 1]) * (reduction - 1) + 1
            for stage, reduction in enumerate(self.reductions)
        )
        return max(pixels)

    @classmethod
    def variant(cls, name, **changes):
        """The named variant: "b0" to "b5" of the SegFormer paper, or "mini", sized for a CPU and small pictures.

        Raises:
          ValueError: for an unknown name.
        """
        if name not in VARIANTS:
            raise ValueError(f"unknown MiT variant {name!r}: expected one of {', '.join(VARIANTS)}")
        return cls(**{**VARIANTS[name], **changes})


_WIDE = (64, 128, 320, 512)
VARIANTS = {
    "b0": {"channels": (32, 64, 160, 256), "depths": (2, 2, 2, 2)},
    "b1": {"channels": _WIDE, "depths": (2, 2, 2, 2)},
    "b2": {"channels": _WIDE, "depths": (3, 4, 6, 3)},
    "b3": {"channels": _WIDE, "depths": (3, 4, 18, 3)},
    "b4": {"channels": _WIDE, "depths": (3, 8, 27, 3)},
    "b5": {"channels": _WIDE, "depths": (3, 6, 40, 3)},
    "mini": {
        "channels": (32, 64, 96, 128),
        "depths": (1, 1, 1, 2),
        "heads": (1, 2, 3, 4),
        "reductions": (4, 2, 1, 1),
        "strides": (2, 2, 1, 1),
    },
}


@jax.custom_vjp
def depthwise_conv3x3(x, kernel):
    """3x3 depthwise convolution, stride 1, zero padding 1, as nine shifted multiply-adds.

    Written out because XLA's CPU backend takes 20 times longer for the grouped convolution (DESIGN.md), and
    with its own gradient because one fused reduction of nine shifted products runs on a single core there.

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
    kernel_gradient = _depthwise_kernel_gradient(x, gradient).astype(kernel.dtype)
    return depthwise_conv3x3(gradient, kernel[::-1, ::-1]), kernel_gradient


def _depthwise_kernel_gradient(x, gradient):
    """[B, H, W, C] each -> float32 [3, 3, C], sums over all pixels of the nine shifted products.

    A loop over rows of pixels, which stay in a core's cache for all nine products. Sums over a row and over the batch
    are left to the end: adding up columns is what a CPU does slowly (17 ms on 2 cores against 30 with the sums inside
    of the loop and 72 for nine reductions over whole maps, 4x80x80x256), and pictures that are shared among devices
    meet in one reduction rather than in one a row.
    """
    batch, height, width, channels = x.shape
    # In float32: XLA's CPU compiler fails on such a loop in bfloat16 under vmap.
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    exact = gradient.astype(jnp.float32)
    taps = [(i, j) for i in range(3) for j in range(3)]

    def add_row(totals, row):
        window = jax.lax.dynamic_slice_in_dim(padded, row, 3, axis=1)
        wanted = jax.lax.dynamic_index_in_dim(exact, row, axis=1, keepdims=False)
        products = [window[:, i, j : j + width] * wanted for i, j in taps]
        return jax.tree.map(jnp.add, totals, products), None

    zeros = [jnp.zeros((batch, width, channels))] * len(taps)
    totals, _ = jax.lax.scan(add_row, zeros, jnp.arange(height))
    return jnp.stack([total.sum(axis=(0, 1)) for total in totals]).reshape(3, 3, channels)


depthwise_conv3x3.defvjp(_depthwise_forward, _depthwise_backward)


class DepthwiseConv(nnx.Module):
    """3x3 depthwise convolution with bias."""

    def __init__(self, channels, *, dtype, rngs):
        initializer = nnx.initializers.normal(math.sqrt(2.0 / 9.0))
        self.kernel = nnx.Param(initializer(rngs.params(), (3, 3, channels), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.dtype = dtype

    def __call__(self, x):
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return depthwise_conv3x3(x.astype(self.dtype), kernel) + bias


class Dense(nnx.Linear):
    """`nnx.Linear` over the last axis of a map, computed as one matrix product.

    XLA's CPU backend takes 3 times longer for the kernel's gradient when the leading axes are not merged.
    """

    def __call__(self, x):
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.out_features)


def _linear(features_in, features_out, *, dtype, rngs):
    return Dense(
        features_in, features_out, kernel_init=nnx.initializers.truncated_normal(0.02), dtype=dtype, rngs=rngs
    )


def _conv(features_in, features_out, kernel, stride, padding, *, dtype, rngs):
    """Convolution with the original's initialisation: normal, deviation sqrt(2 / (k * k * features_out)).

    Other than there, the bias is not 0: a patch of a view's or crop's filling is all 0, and LayerNorm's slope at a
    vector of zeros is 1 / sqrt(epsilon). Two in a row made the gradient of such patches 1e5 times too large.
    """
    return nnx.Conv(
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
    """LayerNorm that takes the variance around the mean: the faster E[x^2] - E[x]^2 cancels where a few channels
    are far from 0, as in trained networks, and costs as much here.
    """
    return nnx.LayerNorm(channels, epsilon=epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs)


class EfficientSelfAttention(nnx.Module):
    """Self-attention whose keys and values are reduced by a strided convolution (spatial reduction)."""

    def __init__(self, channels, heads, reduction, *, dtype, rngs):
        self.heads = heads
        self.query = _linear(channels, channels, dtype=dtype, rngs=rngs)
        self.key = _linear(channels, channels, dtype=dtype, rngs=rngs)
        self.value = _linear(channels, channels, dtype=dtype, rngs=rngs)
        self.projection = _linear(channels, channels, dtype=dtype, rngs=rngs)
        self.reduction = reduction
        if reduction > 1:
            self.reduce = _conv(channels, channels, reduction, reduction, 0, dtype=dtype, rngs=rngs)
            self.reduce_norm = _norm(channels, EMBEDDING_EPSILON, dtype=dtype, rngs=rngs)

    def __call__(self, x, sizes=None):
        """[B, H, W, C] -> output [B, H, W, C], pre-softmax logits float32 [B, heads, H W, keys]."""
        batch, height, width, channels = x.shape
        source = self.reduce_norm(self.reduce(x)) if self.reduction > 1 else x
        query = self._split_heads(self.query(x))
        key = self._split_heads(self.key(source))
        value = self._split_heads(self.value(source))
        scale = (channels // self.heads) ** -0.5
        logits = jnp.einsum("bhqd,bhkd->bhqk", query * scale, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits, axis=-1, where=self._real_keys(source, sizes)).astype(value.dtype)
        mixed = jnp.einsum("bhqk,bhkd->bhqd", weights, value)
        mixed = mixed.swapaxes(1, 2).reshape(batch, height, width, channels)
        return self.projection(mixed), logits

    def _real_keys(self, source, sizes):
        """bool [B, 1, 1, keys], which keys lie inside the pictures; None where all do."""
        if sizes is None:
            return None
        # The reducing convolution has no padding: it drops the cells that fill no whole window.
        return inside(sizes // self.reduction, source.shape[1:3]).reshape(source.shape[0], 1, 1, -1)

    def _split_heads(self, x):
        """[B, H, W, C] -> [B, heads, H W, C / heads]: heads first, or the products are 4 times slower on CPU."""
        batch, height, width, channels = x.shape
        return x.reshape(batch, height * width, self.heads, channels // self.heads).swapaxes(1, 2)


class MixFFN(nnx.Module):
    """Feed-forward layer with a depthwise convolution inside, which stands in for a positional embedding."""

    def __init__(self, channels, ratio, *, dtype, rngs):
        self.expand = _linear(channels, channels * ratio, dtype=dtype, rngs=rngs)
        self.depthwise = DepthwiseConv(channels * ratio, dtype=dtype, rngs=rngs)
        self.contract = _linear(channels * ratio, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x, sizes=None):
        """[B, H, W, C] -> [B, H, W, C]."""
        hidden = blank_outside(self.expand(x), sizes)
        # Behind a barrier, or XLA's CPU backend writes out each of the nine shifted maps for the GELU's two uses.
        return self.contract(gelu(jax.lax.optimization_barrier(self.depthwise(hidden))))


def gelu(x):
    """The exact GELU, x Phi(x), by erf.

    `jax.nn.gelu` takes erfc, whose two branches cost a CPU 2.7 times as much (7.3 against 2.7 ms for 4x80x80x256).

    Args:
      x: float [...].

    Returns:
      [...], in x's type.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


def drop_path(x, rate, key):
    """Stochastic depth: each sample's residual branch is dropped with probability `rate`, else scaled up.

    Args:
      x: residual branch [B, ...].
      rate: probability in [0, 1).
      key: random key, or None at inference, where x passes unchanged.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    # A product, not a selection: with a batch split over devices, XLA's CPU backend (jax 0.10.2) gives a wrong
    # gradient of the latter under vmap (tests/training/test_devices.py).
    return x * (keep / (1.0 - rate)).astype(x.dtype)


class Block(nnx.Module):
    """Pre-norm transformer block: attention and feed-forward, each on a residual branch."""

    def __init__(self, channels, heads, reduction, ratio, drop_rate, *, dtype, rngs):
        self.attention_norm = _norm(channels, BLOCK_EPSILON, dtype=dtype, rngs=rngs)
        self.attention = EfficientSelfAttention(channels, heads, reduction, dtype=dtype, rngs=rngs)
        self.ffn_norm = _norm(channels, BLOCK_EPSILON, dtype=dtype, rngs=rngs)
        self.ffn = MixFFN(channels, ratio, dtype=dtype, rngs=rngs)
        self.drop_rate = drop_rate

    def __call__(self, x, key, sizes=None):
        """[B, H, W, C], key or None -> [B, H, W, C], attention logits float32 [B, heads, H W, keys]."""
        attention_key, ffn_key = (None, None) if key is None else jax.random.split(key)
        branch, logits = self.attention(self.attention_norm(x), sizes)
        x = x + drop_path(branch, self.drop_rate, attention_key)
        x = x + drop_path(self.ffn(self.ffn_norm(x), sizes), self.drop_rate, ffn_key)
        return x, logits


def cells(pixels, stride):
    """Length of a grid, in cells: every strided convolution of the network rounds up."""
    return -(-pixels // stride)


class Stage(nnx.Module):
    """Overlapping patch embedding, blocks and a closing LayerNorm."""

    def __init__(self, config, index, channels_in, drop_rates, *, dtype, rngs):
        channels = config.channels[index]
        kernel = config.kernels[index]
        self.embedding = _conv(
            channels_in, channels, kernel, config.strides[index], kernel // 2, dtype=dtype, rngs=rngs
        )
        self.embedding_norm = _norm(channels, EMBEDDING_EPSILON, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(
            Block(
                channels,
                config.heads[index],
                config.reductions[index],
                config.mlp_ratio,
                rate,
                dtype=dtype,
                rngs=rngs,
            )
            for rate in drop_rates
        )
        self.norm = _norm(channels, BLOCK_EPSILON, dtype=dtype, rngs=rngs)

    def __call__(self, x, keys, sizes=None):
        """[B, H, W, C_in], key or None per block, sizes in the result -> [B, H', W', C], logits of every block."""
        x = self.embedding_norm(self.embedding(x))
        logits = []
        for block, key in zip(self.blocks, keys, strict=True):
            x, block_logits = block(x, key, sizes)
            logits.append(block_logits)
        return self.norm(x), logits


class MixTransformer(nnx.Module):
    """The MiT backbone."""

    def __init__(self, config, *, dtype=jnp.float32, rngs):
        total = sum(config.depths)
        # Stochastic depth rises linearly from 0 at the first block to config.drop_path at the last.
        rates = [config.drop_path * i / (total - 1) for i in range(total)]
        stages, channels_in = [], 3
        for index, depth in enumerate(config.depths):
            first = sum(config.depths[:index])
            stages.append(
                Stage(config, index, channels_in, rates[first : first + depth], dtype=dtype, rngs=rngs)
            )
            channels_in = config.channels[index]
        self.stages = nnx.List(stages)
        self.config = config

    def __call__(self, images, key=None, sizes=None):
        """Features of the four stages and the raw affinity.

        Args:
          images: float [B, H, W, 3], normalised by ImageNet's mean and deviation.
          key: random key for stochastic depth; None switches it off (inference).
          sizes: int32 [B, 2], true height and width of each picture; None if all fill the canvas.

        Returns:
          features: four arrays [B, H_i, W_i, channels_i].
          attention: float32 [B, heads of the last two blocks, N, N], N = H_4 W_4: pre-softmax logits of the
            last two blocks, concatenated.
        """
        total = sum(self.config.depths)
        # A key of its own for every block: shared keys would drop whole columns of blocks together.
        keys = [None] * total if key is None else list(jax.random.split(key, total))
        features, attention, x = [], [], images
        for stage, stride in zip(self.stages, self.config.strides, strict=True):
            count = len(stage.blocks)
            x = blank_outside(x, sizes)
            sizes = None if sizes is None else cells(sizes, stride)
            x, logits = stage(x, keys[:count], sizes)
            keys = keys[count:]
            features.append(x)
            attention = logits
        return features, jnp.concatenate(attention[-2:], axis=1)
