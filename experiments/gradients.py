"""Measures the loss terms at a run's checkpoint: their gradients on the backbone against L_cls's, and R_c's rank.

    python -m experiments.gradients --workdir=DIR [--checkpoint=newest|STEP] [--batches=4]

DIR is a run's work directory. Norms are of unweighted terms, averaged over training batches. The last columns are the
weighted norm as a fraction of L_cls's, and the cosine between the two gradients.
"""

import argparse
import contextlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rml_jax.checkpoint import read_params
from rml_jax.config import load_config
from rml_jax.data.pipeline import train_batches
from rml_jax.data.sources import make_source
from rml_jax.models import build
from rml_jax.ops import normalize, sample_affine, warp
from rml_jax.training.step import make_pseudo_labels, pair_losses, step_config
from rml_jax.utils.compilation_cache import use_compilation_cache

# Name of a part among the step's metrics -> its weight in the loss, from `config.loss`.
PARTS = {
    "classification": lambda loss: 1.0,
    "equivariance": lambda loss: loss.ciml,
    "prototype_similarity": lambda loss: loss.ciml * loss.alpha,
    "alignment": lambda loss: loss.mfml,
    "information_context": lambda loss: loss.mfml * loss.beta1,
    "affinity": lambda loss: loss.apml * loss.affinity,
    "information_affinity_label": lambda loss: -loss.apml * loss.beta2,
    "information_affinity_pair": lambda loss: 2 * loss.apml * loss.beta2,
    "self_training": lambda loss: loss.self_training,
}


def main():
    parser = argparse.ArgumentParser("python -m experiments.gradients")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--checkpoint", default="newest")
    parser.add_argument("--batches", type=int, default=4)
    chosen = parser.parse_args()
    use_compilation_cache()
    config = load_config(chosen.workdir / "config.json")
    graphdef, abstract = build.build_graph(config)
    step, params = read_params(chosen.workdir, abstract, chosen.checkpoint, config.checkpoint.best_metric)
    measure = jax.jit(make_products(config, graphdef))
    found = [measure(params, batch) for batch in _batches(config, chosen.batches)]
    products, context = (np.mean(values, axis=0) for values in zip(*jax.device_get(found), strict=True))
    print(f"step {step}, mean of {chosen.batches} batches\n")
    print(table(config, products))
    print(f"\nR_c: deviation over space {context[0]:.2f}, effective rank {context[1]:.2f}")


def make_products(config, graphdef):
    """Builds the function that measures gradients and the context.

    Args:
      config: ConfigDict of the run.
      graphdef: nnx.GraphDef of `RML`.

    Returns:
      Function (params, batch), to be jitted, of the scalar products float32 [P, P] of the P parts' gradients on the
      backbone, and float32 [2], the context's deviation over space and effective rank (`losses.mfml`).
    """
    step = step_config(config)

    def products(params, batch):
        theta = sample_affine(jax.random.key(0), len(batch["image"]), step.affine)
        images = normalize(batch["image"], batch["box"])
        labels = make_pseudo_labels(graphdef, params, images, batch, step)
        pair = jnp.stack([images, warp(images, theta)])

        def parts(params):
            outputs = jax.vmap(nnx.merge(graphdef, params))(pair)
            _, terms = pair_losses(outputs, labels, batch, theta, step)
            context = jnp.stack([terms["context_deviation"], terms["context_rank"]])
            return jnp.stack([terms[name] for name in PARTS]), context

        gradients, context = jax.jacrev(parts, has_aux=True)(params)
        gradients = jax.tree.leaves(gradients["backbone"])
        flat = jnp.concatenate([leaf.reshape(len(PARTS), -1) for leaf in gradients], axis=1)
        return jnp.matmul(flat, flat.T, precision="highest"), context

    return products


def table(config, products):
    """Renders as Markdown each part's norm, weight, weighted fraction of L_cls's norm and cosine with L_cls."""
    norms = np.sqrt(np.diag(products))
    lines = [
        "| part | gradient norm | weight | weighted, share of L_cls | cosine with L_cls |",
        "|---" * 5 + "|",
    ]
    for number, (name, weight_of) in enumerate(PARTS.items()):
        weight = weight_of(config.loss)
        share = abs(weight) * norms[number] / norms[0]
        cosine = np.sign(weight) * products[number, 0] / max(norms[number] * norms[0], 1e-30)
        lines.append(f"| {name} | {norms[number]:.3g} | {weight:g} | {share:.1%} | {cosine:+.2f} |")
    return "\n".join(lines)


def _batches(config, count):
    source = make_source(config.data, config.data.train_split, with_masks=False)
    config = config.copy_and_resolve_references()
    config.train.seed += 1  # batches other than the run's
    config.data.workers = 0
    with contextlib.closing(train_batches(config, source)) as batches:
        yield from (next(batches) for _ in range(count))


if __name__ == "__main__":
    main()
