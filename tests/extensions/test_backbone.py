"""A backbone from outside the package: a plain vision transformer trains, is scored and keeps its weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import digits_small
from rml_jax.commands.export import export
from rml_jax.data.sources import make_source
from rml_jax.evaluation.evaluator import Evaluator
from rml_jax.inference.export.weights import read_model
from rml_jax.models import BACKBONES, build
from rml_jax.ops.grid import ceil_div
from rml_jax.ops.region import blank_outside, inside
from rml_jax.training.loop import train
from rml_jax.training.optimizer import parameter_groups
from rml_jax.utils.trees import named_leaves


class Block(nnx.Module):
    def __init__(self, dim, heads, rngs):
        self.norm1, self.norm2 = (nnx.LayerNorm(dim, rngs=rngs) for _ in range(2))
        self.qkv = nnx.LinearGeneral(dim, (3, heads, dim // heads), rngs=rngs)
        self.mlp_in, self.mlp_out = nnx.Linear(dim, 2 * dim, rngs=rngs), nnx.Linear(2 * dim, dim, rngs=rngs)

    def __call__(self, x, keys):
        query, key, value = jnp.moveaxis(self.qkv(self.norm1(x)), 2, 0)
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, where=keys), value)
        x = x + mixed.reshape(x.shape)
        return x + self.mlp_out(jax.nn.gelu(self.mlp_in(self.norm2(x)))), logits


class ViT(nnx.Module):
    def __init__(self, config, rngs):
        self.embed = nnx.Conv(3, config.embed_dims[0], (config.stride,) * 2, config.stride, rngs=rngs)
        self.blocks = nnx.List(Block(config.embed_dims[0], config.heads, rngs) for _ in range(2))
        self.stride = config.stride

    def __call__(self, images, key=None, sizes=None):
        x = self.embed(blank_outside(images, sizes))
        grid, tokens = x.shape[1:3], x.reshape(x.shape[0], -1, x.shape[-1])
        keys = (
            None
            if sizes is None
            else inside(ceil_div(sizes, self.stride), grid).reshape(x.shape[0], 1, 1, -1)
        )
        attention = []
        for block in self.blocks:
            tokens, logits = block(tokens, keys)
            attention.append(logits)
        return [tokens.reshape(x.shape)], jnp.concatenate(attention, axis=1)


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    drop_path_rate: float = 0.0
    family, stride, smallest_side, embed_dims, heads, num_attention_maps = "ViT", 8, 8, (16,), 2, 4

    def build(self, *, dtype, rngs):
        return ViT(self, rngs)


def test_a_backbone_from_outside_trains_is_scored_and_exported(tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "vit", ViTConfig)
    config = digits_small.get_config()
    config.model.variant, config.model.fused_stages = "vit", 1
    config.train.steps, config.train.batch_size, config.loss.start_step = 1, 2, 0
    config.pseudo_label.dilations = (1, 2)
    config.data.num_val, config.log.pictures_every, config.eval.batch_size = 2, 0, 2
    config.eval.stages, config.eval.protocols = ("affinity",), ("given",)
    params = train(config, tmp_path / "run").params

    evaluator = Evaluator(config, build.build_graph(config)[0])
    source = make_source(config.data, "val", with_masks=True)
    scores = evaluator.evaluate(params, source, evaluator.fixed_backgrounds(), progress=lambda done: None)
    assert 0 <= scores.mean_iou()["given"]["affinity"] <= 1

    # Compares what it wrote with the network of the checkpoint.
    export(tmp_path / "run", tmp_path / "weights", "safetensors")
    export(tmp_path / "run", tmp_path / "program", "stablehlo")
    exported = read_model(tmp_path / "weights")[1]
    jax.tree.map(np.testing.assert_array_equal, exported, jax.device_get(params))
    groups = named_leaves(parameter_groups(params, freeze_norms=True))
    frozen = {name for name, group in groups.items() if group == "frozen"}
    assert frozen == {
        f"backbone/blocks/{block}/norm{norm}/{leaf}"
        for block in (0, 1)
        for norm in (1, 2)
        for leaf in ("scale", "bias")
    }
