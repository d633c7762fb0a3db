"""One training step against the PyTorch peer: losses, gradients and update for the same weights and batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

from rml_jax.config import default_config
from rml_jax.labels import BACKGROUND, IGNORE
from rml_jax.models import BACKBONES, RML, RMLConfig
from rml_jax.ops import AffineRange, PseudoLabelConfig, normalize, sample_affine
from rml_jax.ops.resize import bilinear_matrix
from rml_jax.training.optimizer import OptimizerConfig, make_optimizer
from rml_jax.training.step import StepConfig, TrainState, make_pseudo_labels, make_train_step
from rml_jax.utils.trees import named_leaves, with_leaves
from tests.references import torch_step
from tests.references.check import Check, Difference, absolute, relative
from tests.references.networks import random_network
from tests.references.torch_model import from_flax
from tests.references.torch_ops import PAR
from tests.references.torch_ops import make_pseudo_labels as make_torch_labels

SIZE = 128
BOX = [[0, 0, SIZE, SIZE], [16, 0, SIZE, 104], [0, 0, SIZE, SIZE]]
TAGS = [[1, 0, 1, 0, 0, 0], [0, 1, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0]]
NETWORK = RMLConfig(BACKBONES["b0"](drop_path_rate=0.0), num_classes=len(TAGS[0]))
STEP = StepConfig(
    loss=default_config().loss.to_dict() | {"self_training": 0.1, "radius": 3},
    affine=AffineRange(),
    pseudo_label=PseudoLabelConfig(slots=4),
    cam_scales=(0.5, 1.0, 1.5),
    cam_flip=True,
    stride=NETWORK.backbone.stride,
)
# No warm-up, whose first update would be a millionth of the size, and a weight decay large enough to be measured.
OPTIMIZER = OptimizerConfig(
    backbone_lr=6e-5,
    head_lr=6e-4,
    weight_decay=1.0,
    warmup_steps=0,
    total_steps=1000,
    freeze_norms=False,
)
# Metrics that are not part of the loss and have their own tests.
_MONITORED = ("skipped", "context_deviation", "context_rank")
# Seeds of weights and batch, and of A. No part of the loss is near 0, and every image has all kinds of labels.
SEED, KEY = 10, 5

REFERENCE = f"one step of the PyTorch peer (PyTorch {torch.__version__.split('+')[0]})"
TERMS = {
    "total loss": (("loss",), 1e-5),
    "L_cls": (("classification",), 1e-5),
    "L_CIML and its parts": (("ciml", "equivariance", "prototype_similarity"), 1e-5),
    "L_MFML and its alignment": (("mfml", "alignment"), 1e-5),
    "L_APML and its affinity loss": (("apml", "affinity"), 1e-5),
    "L_self, with a weight of 0.1": (("self_training",), 1e-5),
    # Differences of entropies, whose rounding errors are larger.
    "mutual information, all three": (
        ("information_context", "information_affinity_label", "information_affinity_pair"),
        1e-3,
    ),
    "labelled shares": (("labelled_foreground", "labelled_background"), 1e-3),
    "norm of the gradient": (("gradient_norm", "gradient_norm/backbone", "gradient_norm/heads"), 1e-5),
}


class Result(NamedTuple):
    """Results of one training step, in the peer's layout.

    Attributes:
      terms: dict from names of metrics to scalars.
      labels: int [B, S, S], pseudo labels.
      gradients, updates: dicts from the peer's parameter names to float32 arrays.
    """

    terms: dict[str, float]
    labels: np.ndarray
    gradients: dict[str, np.ndarray]
    updates: dict[str, np.ndarray]


def make_network():
    """Returns graphdef and random parameters of `RML`, whose affinities cover all of [0, 1]."""
    graphdef, params = nnx.split(random_network(lambda: RML(NETWORK, rngs=nnx.Rngs(0)), SEED))
    kernel = named_leaves(params)["affinity/kernel"]
    return graphdef, with_leaves(params, named_leaves(params) | {"affinity/kernel": 4 * kernel})


def make_batch():
    """Returns a batch of images of smooth blobs in random colours with a little noise, one of them padded."""
    rng = np.random.default_rng(SEED)
    count, blobs = len(BOX), 5
    enlarge = bilinear_matrix(SIZE, 6)
    heights = enlarge @ rng.normal(size=(count, blobs, 6, 6)) @ enlarge.T
    blob = heights.argmax(axis=1)
    colours = np.stack([rng.integers(0, 256, (blobs, 3))[one] for one in blob])
    noisy = colours + 8 * rng.normal(size=colours.shape)
    return {
        "image": np.clip(noisy, 0, 255).astype(np.uint8),
        "box": np.array(BOX, np.int32),
        "tags": np.array(TAGS, np.float32),
    }


def our_step(graphdef, params, batch, key):
    """Computes one update by `make_train_step`: `Result`."""
    # Keeps the gradients in the optimizer's state.
    keep = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda updates, *_: (updates, updates)
    )
    optimizer = optax.chain(keep, make_optimizer(OPTIMIZER, params))
    train_step = make_train_step(graphdef, optimizer, STEP)

    @jax.jit
    def step_and_labels(state, batch):
        # In one program, so that the pseudo labels are compiled once.
        images = normalize(batch["image"], batch["box"])
        labels = make_pseudo_labels(graphdef, state.params, images, batch, STEP)
        return train_step(state, batch, mutual=True), labels

    initial = TrainState(jnp.int32(0), params, jax.jit(optimizer.init)(params), key)
    (state, metrics), labels = step_and_labels(initial, batch)
    updates = jax.tree.map(jnp.subtract, state.params, params)
    return Result(
        terms={name: float(value) for name, value in metrics.items() if name not in _MONITORED},
        labels=np.asarray(labels),
        gradients=_arrays(from_flax(state.optimizer[0], NETWORK)),
        updates=_arrays(from_flax(updates, NETWORK)),
    )


def peer_step(params, batch, theta):
    """Computes the same update by the peer: `Result`."""
    model = from_flax(params, NETWORK)
    before = _arrays(model)
    batch = {name: torch.from_numpy(value) for name, value in batch.items()}
    refine = PAR(STEP.pseudo_label.dilations, STEP.pseudo_label.iterations)
    labels = make_torch_labels(model.eval(), refine, batch, STEP)
    optimizer = torch_step.make_optimizer(model, OPTIMIZER)
    terms = torch_step.make_train_step(model, optimizer, STEP)(batch, torch.from_numpy(np.array(theta)))
    return Result(
        terms={name: value.item() for name, value in terms.items()},
        labels=labels.numpy(),
        gradients={name: parameter.grad.numpy() for name, parameter in model.named_parameters()},
        updates={name: after - before[name] for name, after in _arrays(model).items()},
    )


def measure_step():
    """Measures a whole step: losses and their parts, pseudo labels, gradients and the update."""
    graphdef, params = make_network()
    batch, key = make_batch(), jax.random.key(KEY)
    ours = our_step(graphdef, params, batch, key)
    # The key that `make_train_step` draws A from in step 0.
    affine_key, _ = jax.random.split(jax.random.fold_in(key, 0))
    peer = peer_step(params, batch, sample_affine(affine_key, len(BOX), STEP.affine))
    _require_substance(ours)
    rows = [
        *_term_rows(ours, peer),
        _label_row(ours, peer),
        *_gradient_rows(ours, peer),
        _update_row(ours, peer),
    ]
    return [Difference(f"step, MiT-b0: {name}", REFERENCE, *numbers) for name, *numbers in rows]


def _require_substance(result):
    """Raises ValueError if agreement would be meaningless: a term near 0, or a kind of label without pixels."""
    vanishing = [name for name, value in result.terms.items() if abs(value) < 1e-3]
    if vanishing:
        raise ValueError(f"terms near 0: {', '.join(vanishing)}")
    for number, labels in enumerate(result.labels):
        kinds = (labels == BACKGROUND, labels == IGNORE, (labels != BACKGROUND) & (labels != IGNORE))
        if not all(kind.mean() > 0.01 for kind in kinds):
            raise ValueError(f"image {number} lacks foreground, background or ignored pixels")


def _term_rows(ours, peer):
    if ours.terms.keys() != peer.terms.keys():
        raise ValueError(f"terms differ: {ours.terms.keys() ^ peer.terms.keys()}")
    for group, (names, tolerance) in TERMS.items():
        yield group, max(relative(ours.terms[name], peer.terms[name]) for name in names), tolerance


def _label_row(ours, peer):
    return "share of pseudo-label pixels that differ", float(np.mean(ours.labels != peer.labels)), 1e-4


def _gradient_rows(ours, peer):
    """Yields the largest relative difference of any tensor, by part of the network."""
    groups = {}
    for name in peer.gradients:
        groups.setdefault(_part(name), []).append(name)
    zero = groups.pop("zero")
    for part, names in groups.items():
        difference = max(relative(ours.gradients[name], peer.gradients[name]) for name in names)
        yield f"gradients of {len(names)} tensors, {part}", difference, 1e-4
    scale = max(np.abs(gradient).max() for gradient in peer.gradients.values())
    difference = max(absolute(ours.gradients[name], peer.gradients[name]) for name in zero) / scale
    yield f"gradients of {len(zero)} tensors that cancel to 0, over the largest of all", difference, 1e-6


def _part(name):
    """Returns the part of the network that a parameter belongs to, or "zero" if no loss depends on it.

    The softmax over keys cancels a key bias, except in stage 4, whose logits are outputs; standardisation cancels the
    fusion's bias.
    """
    first, *path = name.split(".")
    if first != "encoder":
        return "zero" if name == "fusion.bias" else "heads"
    stage = int(path[1])
    return "zero" if name.endswith("k_proj.bias") and stage < 3 else f"stage {stage + 1}"


def _update_row(ours, peer):
    first, second = (
        np.concatenate([result.updates[name].ravel() for name in peer.updates]).astype(np.float64)
        for result in (ours, peer)
    )
    cosine = first @ second / (np.linalg.norm(first) * np.linalg.norm(second))
    return "AdamW update of all parameters, 1 - cosine", float(1 - cosine), 1e-4


def _arrays(model):
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}


CHECKS = [Check("step", measure_step)]
