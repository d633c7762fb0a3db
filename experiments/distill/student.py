"""Trains a Mix Transformer on the records of `experiments.distill.teacher`.

    python -m experiments.distill.student FILE.array_record... --workdir=DIR [--steps=N] [--batch=64]

DIR/student.safetensors, for `model.init_from`, and a checkpoint are written every --save_every steps. The same
command resumes an interrupted run. All files must have views of one size.
"""

import argparse
import contextlib
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import measure
from experiments.distill import records
from rml_jax.checkpoint import Checkpoints
from rml_jax.commands import cli
from rml_jax.models import BACKBONES, RML, RMLConfig
from rml_jax.models.weights import load_weights, save_weights
from rml_jax.ops import normalize
from rml_jax.training.step import TrainState
from rml_jax.utils.compilation_cache import use_compilation_cache
from rml_jax.utils.progress import Progress

# The teacher's classes, and the channels of its features.
NUM_CLASSES, CHANNELS = 1000, 112
FEATURE_WEIGHT = 1.0
LARGEST_GRADIENT = 1.0
WEIGHT_DECAY = 0.05
WARM_UP = 300
FEATURE_SAMPLE = 512


@cli.command
def main(arguments=None):
    parser = argparse.ArgumentParser(
        "python -m experiments.distill.student",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--variant", default="b0", help="backbone, of stride 16")
    parser.add_argument("--init_from", type=Path, help="weights to start from")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3, help="greatest learning rate")
    parser.add_argument("--save_every", type=int, default=250)
    parser.add_argument("--json", type=Path, help="file for the losses and the environment")
    chosen = parser.parse_args(arguments)
    use_compilation_cache()
    train(chosen)


class Student(nnx.Module):
    """A network of `rml_jax` with a linear layer to the teacher's features.

    Args:
      variant: name of the backbone.
      rngs: nnx.Rngs.
    """

    def __init__(self, variant, rngs):
        backbone = BACKBONES[variant](drop_path_rate=0.0)
        config = RMLConfig(backbone=backbone, num_classes=NUM_CLASSES, pooling="average")
        self.network = RML(config, rngs=rngs)
        self.to_teacher = nnx.Linear(backbone.embed_dims[-1], CHANNELS, rngs=rngs)

    def __call__(self, images):
        """Maps normalised images [B, S, S, 3] to logits [B, 1000] and features [B, S / 16, S / 16, D]."""
        outputs = self.network(images, with_context=False)
        return outputs.logits, self.to_teacher(outputs.features)


def distillation_loss(logits, features, batch):
    """Computes the loss of a batch.

    Args:
      logits, features: the student's, see `Student`.
      batch: dict of the teacher's `logits` [B, 1000] and standardised `features` [B, h, w, D].

    Returns:
      float32 scalar, and a dict of its terms: `scores`, the Kullback-Leibler divergence from the teacher's class
      probabilities in nats, and `features`, the mean squared difference.
    """
    target = jax.nn.softmax(batch["logits"])
    scores = optax.losses.kl_divergence(jax.nn.log_softmax(logits), target).mean()
    regression = jnp.mean(jnp.square(features - batch["features"]))
    return scores + FEATURE_WEIGHT * regression, {"scores": scores, "features": regression}


def make_step(graphdef, optimizer):
    """Builds the pure step (TrainState, batch) -> (TrainState, dict of the loss's terms)."""

    def step(state, batch):
        def loss(params):
            logits, features = nnx.merge(graphdef, params)(normalize(batch["image"]))
            return distillation_loss(logits, features, batch)

        gradients, terms = jax.grad(loss, has_aux=True)(state.params)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(step=state.step + 1, params=params, optimizer=optimizer_state), terms

    return step


def make_batches(paths, batch_size, seed=0):
    """Returns an endless iterator over batches, half of whose images are mirrored, with the teacher's features.

    Features are standardised per channel, by the mean and deviation over a sample of the records.

    Args:
      paths: of array_record files.
      batch_size: B.
      seed: of the order and the mirrors.

    Returns:
      grain.DatasetIterator of dicts of `image` (uint8 [B, S, S, 3]), `logits` and `features`.
    """
    source = grain.sources.ArrayRecordDataSource([str(path) for path in paths])
    sample = np.random.default_rng(seed).choice(len(source), min(len(source), FEATURE_SAMPLE), replace=False)
    values = np.concatenate(
        [records.decode(source[int(i)])["features"].reshape(-1, CHANNELS) for i in sample]
    )
    mean, deviation = values.mean(axis=0), values.std(axis=0) + 1e-6

    def to_example(record, rng):
        item = records.decode(record)
        item["features"] = (item["features"] - mean) / deviation
        if rng.random() < 0.5:
            item["image"], item["features"] = item["image"][:, ::-1], item["features"][:, ::-1]
        return item

    stream = grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(to_example)
    stream = stream.batch(batch_size, drop_remainder=True)
    return iter(stream.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def train(chosen):
    """Trains for `chosen.steps` steps, or on from the last checkpoint.

    Args:
      chosen: the flags.
    """
    chosen.workdir.mkdir(parents=True, exist_ok=True)
    schedule = optax.warmup_cosine_decay_schedule(
        0, chosen.rate, min(WARM_UP, chosen.steps // 2), chosen.steps
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(LARGEST_GRADIENT),
        optax.adamw(
            schedule,
            weight_decay=WEIGHT_DECAY,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )
    graphdef, params = nnx.split(Student(chosen.variant, nnx.Rngs(0)))
    if chosen.init_from:
        params["network"], report = load_weights(params["network"], chosen.init_from)
        print(report)
    state = TrainState(jnp.int32(0), params, optimizer.init(params), jax.random.key(0))
    with contextlib.closing(Checkpoints(chosen.workdir, keep=1)) as checkpoints:
        batches = make_batches(chosen.records, chosen.batch)
        if checkpoints.steps():
            restored = checkpoints.restore(state)
            state = restored.state
            batches.set_state(restored.data)
        step_function = jax.jit(make_step(graphdef, optimizer), donate_argnums=0)
        progress = Progress("distill", chosen.steps, "steps", start=int(state.step))
        window, history = [], {}
        for step in range(int(state.step) + 1, chosen.steps + 1):
            state, terms = step_function(state, next(batches))
            window.append(terms)
            if step % chosen.save_every == 0 or step == chosen.steps:
                history[step] = {
                    name: float(np.mean([one[name] for one in jax.device_get(window)])) for name in terms
                }
                window = []
                progress.update(
                    step, ", ".join(f"{name} {value:.3f}" for name, value in history[step].items())
                )
                checkpoints.save(state, batches.get_state(), {}, {})
                save_weights(state.params["network"], chosen.workdir / "student.safetensors")
    result = {"environment": measure.environment(), "steps": chosen.steps, "losses": history}
    measure.write_json(result, chosen.json)


if __name__ == "__main__":
    main()
