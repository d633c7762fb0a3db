"""RML's network in PyTorch: transformers' SegFormer encoder with the three heads (docs/method.md, Network).

It is an independent counterpart of `rml_jax.models`, after docs/method.md. Maps are [batch, channels, height, width].
"""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, SegformerModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from rml_jax.models.weights import save_transformers
from rml_jax.utils.trees import named_leaves

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Outputs(NamedTuple):
    """Outputs for one view, all float32; h x w is stage 4's grid, N = h w, H1 x W1 stage 1's.

    Attributes:
      logits: [B, C], class logits of the image.
      features: [B, D, h, w], stage 4.
      cam_logits: [B, C, h, w], the classifier applied to every cell, before ReLU.
      affinity_logits: [B, N, N], symmetric; R_a is their sigmoid.
      context: [B, K, H1, W1], the fused context R_c before standardisation (Eq. 5).
    """

    logits: torch.Tensor
    features: torch.Tensor
    cam_logits: torch.Tensor
    affinity_logits: torch.Tensor
    context: torch.Tensor


def attention_with_logits(
    module, query, key, value, attention_mask, scaling, dropout=0.0, output_attentions=False, **_
):
    """Computes fused attention for transformers; the last two blocks also return their logits on request.

    Args:
      module: SegformerAttention, with `yields_logits` true in the last two blocks.
      query, key, value: [B, heads, tokens, width].
      attention_mask, scaling, dropout, output_attentions: arguments by transformers; SegFormer has no masks.

    Returns:
      [B, tokens, heads, width], and the pre-softmax logits [B, heads, tokens, tokens] or None.
    """
    if not (output_attentions and module.yields_logits):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling
        )
    logits = (query * scaling) @ key.transpose(2, 3)
    mixed = logits.softmax(dim=-1).to(value.dtype) @ value
    return mixed.transpose(1, 2), logits


AttentionInterface.register("sdpa_with_logits", attention_with_logits)


def set_original_epsilons(encoder):
    """Sets the epsilons of transformers' LayerNorms to those of the original weights (docs/method.md, Network).

    1e-5 in patch embeddings and after the reduction convolution, 1e-6 in the blocks and at the ends of stages.

    Args:
      encoder: transformers.SegformerModel, changed in place.
    """
    for name, module in encoder.named_modules():
        if isinstance(module, nn.LayerNorm):
            follows_convolution = "patch_embeddings" in name or "sequence_reduction" in name
            module.eps = 1e-5 if follows_convolution else 1e-6


def yield_logits(encoder):
    """Makes the encoder return the pre-softmax logits of its last two blocks as `attentions`, on request.

    Args:
      encoder: transformers.SegformerModel, changed in place.
    """
    encoder.set_attn_implementation("sdpa_with_logits")
    # Otherwise the first call does this under a lock, which breaks torch.compile's graph.
    maybe_install_capturing_hooks(encoder)
    blocks = [block for stage in encoder.stages for block in stage.blocks]
    for block in blocks:
        block.attention.yields_logits = block in blocks[-2:]


class TorchRML(nn.Module):
    """Encoder, classifier, affinity head and context fusion.

    Args:
      encoder: transformers.SegformerModel; its epsilons and attention function are set here.
      num_classes: foreground classes C.
      context_channels: K, channels of the fused context.
      dtype: type of the encoder's activations, by autocast; parameters and everything after the encoder are float32.
    """

    def __init__(self, encoder, num_classes, context_channels=15, dtype=torch.float32):
        super().__init__()
        set_original_epsilons(encoder)
        yield_logits(encoder)
        channels, heads = encoder.config.hidden_sizes, encoder.config.num_attention_heads[-1]
        self.encoder = encoder
        self.classifier = nn.Conv2d(channels[-1], num_classes, 1, bias=False)
        self.affinity = nn.Linear(2 * heads, 1)
        self.fusion = nn.Conv2d(sum(channels), context_channels, 1)
        self.dtype = dtype
        for name, values in (("mean", IMAGENET_MEAN), ("deviation", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def normalize(self, images, real):
        """Normalises images.

        Args:
          images: uint8 [B, H, W, 3].
          real: bool [B, H, W], the real pixels of a padded crop; the others become the mean colour.

        Returns:
          float32 [B, 3, H, W], minus ImageNet's mean, divided by its standard deviation.
        """
        normalized = (images.permute(0, 3, 1, 2) / 255 - self.mean) / self.deviation
        return normalized * real[:, None]

    def forward(self, images):
        """Computes the outputs for normalised images, float [B, 3, H, W]: `Outputs`."""
        stages, attention = self._encode(images, output_hidden_states=True, output_attentions=True)
        features = stages[-1]
        return Outputs(
            logits=self._pooled_logits(features),
            features=features,
            cam_logits=self.classifier(features),
            affinity_logits=self._affinity_logits(attention),
            context=self._fuse(stages),
        )

    def cam_logits(self, images):
        """Computes the classifier's scores [B, C, h, w] of every cell, without the other heads."""
        stages, _ = self._encode(images, output_hidden_states=True)
        return self.classifier(stages[-1])

    def _encode(self, images, **outputs):
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            result = self.encoder(images, **outputs)
        attention = [logits.float() for logits in result.attentions or ()]
        return [stage.float() for stage in result.hidden_states], attention

    def _pooled_logits(self, features):
        return self.classifier(features.amax(dim=(2, 3), keepdim=True)).flatten(1)

    def _affinity_logits(self, attention):
        """Mixes two blocks' logits [B, heads, N, N] into one symmetric map [B, N, N], x + x^T.

        The head is linear, so symmetrising its output is the same as symmetrising its inputs.
        """
        weights = self.affinity.weight[0].chunk(2)
        mixed = sum(
            torch.einsum("bhij,h->bij", logits, w) for logits, w in zip(attention, weights, strict=True)
        )
        return mixed + mixed.transpose(1, 2) + self.affinity.bias

    def _fuse(self, stages):
        """Computes Eq. 5. The 1x1 convolution commutes with the resize and runs on each stage's smaller grid."""
        weights = self.fusion.weight.split([stage.shape[1] for stage in stages], dim=1)
        projected = [F.conv2d(stage, weight) for stage, weight in zip(stages, weights, strict=True)]
        context = projected[0] + self.fusion.bias[:, None, None]
        return sum((_enlarge(one, context.shape[2:]) for one in projected[1:]), context)


def _enlarge(maps, size):
    """Resizes [B, K, h, w] bilinearly by two matrix products.

    Not by `F.interpolate`: with torch.compile of PyTorch 2.13, on a CPU at 320 pixels, some sums of its gradient are
    read before they are complete, and stages 3 and 4 get no gradient from the context.
    """
    rows, columns = (
        _interpolation(given, wanted, maps.device) for given, wanted in zip(maps.shape[2:], size, strict=True)
    )
    return rows.T @ maps @ columns


def _interpolation(given, wanted, device):
    """Computes the matrix [given, wanted] of linear interpolation with half-pixel centres."""
    return F.interpolate(torch.eye(given, device=device)[None], wanted, mode="linear", align_corners=False)[0]


def from_flax(params, config, dtype=torch.float32):
    """Builds the PyTorch network with our parameters, or with their gradients in place of them.

    Args:
      params: nnx.State of `rml_jax.models.RML`.
      config: rml_jax.models.RMLConfig, with maximum pooling.
      dtype: see `TorchRML`.

    Returns:
      TorchRML on the CPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_transformers(params, config.backbone, Path(folder))
        encoder = SegformerModel.from_pretrained(folder)
    model = TorchRML(encoder, config.num_classes, config.context_channels, dtype)
    heads = {
        name: torch.from_numpy(np.array(leaf))
        for name, leaf in named_leaves(params).items()
        if not name.startswith("backbone/")
    }
    with torch.no_grad():
        model.classifier.weight.copy_(heads["classifier/kernel"].T[:, :, None, None])
        model.affinity.weight.copy_(heads["affinity/kernel"].T)
        model.affinity.bias.copy_(heads["affinity/bias"])
        model.fusion.weight.copy_(heads["fusion/kernel"].T[:, :, None, None])
        model.fusion.bias.copy_(heads["fusion/bias"])
    return model
