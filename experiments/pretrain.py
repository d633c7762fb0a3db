"""Pre-trains a backbone by classification, for use without published ImageNet weights.

    python -m experiments.pretrain --config=configs/pretrain.py --config.data.root=PHOTOS --save_to=FILE.safetensors
        [--json=FILE] [--config.key=value ...]

PHOTOS has one sub-folder per class. The loss is softmax cross-entropy, as in the Mix Transformer's pre-training. With
L_cls, the loss for multiple tags, the network only learned the frequency of each class (200 classes, MiT-b0, 500
steps). FILE is for `model.init_from`; it is written every `checkpoint.every` steps.
"""

import contextlib
import time
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

from benchmarks import measure
from rml_jax.commands import cli
from rml_jax.data.pipeline import train_batches
from rml_jax.data.sources import make_source, with_class_names
from rml_jax.models import build
from rml_jax.models.weights import save_weights
from rml_jax.ops import normalize, resize_bilinear
from rml_jax.training.optimizer import make_optimizer, optimizer_config
from rml_jax.training.sharding import init_model, initial_state, make_mesh, shard
from rml_jax.utils.progress import Progress
from rml_jax.validate import check_config

# Without clipping, a single batch can undo the progress of a network trained from random weights.
_LARGEST_GRADIENT = 1.0


@cli.command
def main(arguments=None):
    parser = cli.Parser("python -m experiments.pretrain", description=__doc__)
    parser.add_config(without="pretrain")
    parser.add_argument("--save_to", required=True, type=Path, help="safetensors file to write")
    parser.add_argument("--json", type=Path, help="file for the loss, the accuracy and the time")
    chosen, config = parser.parse_config(arguments, default="pretrain")
    cli.start_jax(config)
    environment = measure.environment()
    config = with_class_names(config)
    check_config(config)
    mesh = make_mesh(config.train.batch_size)
    graphdef, params = init_model(lambda: build.build_model(config, config.train.seed), mesh)
    optimizer = clipped_optimizer(config, params)
    state = initial_state(params, optimizer, config.train.seed, mesh)
    start = time.monotonic()
    state, losses = train(config, mesh, graphdef, optimizer, state, chosen.save_to)
    seconds = time.monotonic() - start
    result = {
        "environment": environment,
        "steps": config.train.steps,
        "images_seen": config.train.steps * config.train.batch_size,
        "train_seconds": round(seconds),
        "losses": losses,
        "validation": accuracy(config, graphdef, state.params),
    }
    measure.write_json(result, chosen.json)


def clipped_optimizer(config, params):
    """Returns a run's optimizer behind a clip of the gradient's global norm, optax.GradientTransformation."""
    return optax.chain(
        optax.clip_by_global_norm(_LARGEST_GRADIENT), make_optimizer(optimizer_config(config), params)
    )


def train(config, mesh, graphdef, optimizer, state, out):
    """Trains for `config.train.steps` and writes the weights.

    Args:
      config: ConfigDict of a run.
      mesh: of `make_mesh`.
      graphdef, optimizer, state: the network, optax.GradientTransformation and TrainState.
      out: pathlib.Path of the safetensors file.

    Returns:
      TrainState, and a dict from step to the mean loss since the entry before.
    """
    source = make_source(config.data, config.data.train_split, with_masks=False)
    step_function = jax.jit(make_step(graphdef, optimizer), donate_argnums=0)
    progress = Progress("pre-train", config.train.steps, "steps")
    means, window = {}, []
    with contextlib.closing(train_batches(config, source)) as batches:
        for step in range(1, config.train.steps + 1):
            state, loss = step_function(state, shard(next(batches), mesh))
            window.append(loss)
            if step % config.log.every == 0 or step == config.train.steps:
                means[step] = float(np.mean(jax.device_get(window)))
                window = []
                progress.update(step, f"loss {means[step]:.3f}")
            if step % config.checkpoint.every == 0 or step == config.train.steps:
                save_weights(state.params, out)
    return state, means


def cross_entropy_of_tags(outputs, batch):
    """Computes the mean softmax cross-entropy of the pooled logits, from the network's outputs and a batch."""
    return optax.softmax_cross_entropy(outputs.logits, batch["tags"]).mean()


def make_step(graphdef, optimizer, compute_loss=cross_entropy_of_tags):
    """Builds the pure step (TrainState, batch) -> (TrainState, loss).

    Args:
      graphdef, optimizer: the network and its optax.GradientTransformation.
      compute_loss: function of the network's RMLOutputs and the batch.
    """

    def step(state, batch):
        key = jax.random.fold_in(state.key, state.step)

        def loss(params):
            images = normalize(batch["image"], batch["box"])
            return compute_loss(nnx.merge(graphdef, params)(images, key, with_context=False), batch)

        value, gradients = jax.value_and_grad(loss)(state.params)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(step=state.step + 1, params=params, optimizer=optimizer_state), value

    return step


def accuracy(config, graphdef, params):
    """Computes the top-1 accuracy on the validation images, resized to the crop.

    Returns:
      Dict with the number of `images` and `top1` in 0..1.
    """
    source = make_source(config.data, config.data.val_split, with_masks=False)
    side = (config.train.crop_size,) * 2

    @jax.jit
    def strongest(params, image):
        return nnx.merge(graphdef, params).classify(resize_bilinear(normalize(image[None]), side))[0].argmax()

    right = [int(strongest(params, item["image"])) == int(item["tags"].argmax()) for item in source]
    return {"images": len(right), "top1": float(np.mean(right))}


if __name__ == "__main__":
    main()
