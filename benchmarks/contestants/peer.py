"""The PyTorch peer's network, training step and its parts, for timing."""

import jax
import numpy as np
import torch
import transformers

from benchmarks import measure
from benchmarks.contestants import ours, settings
from rml_jax.ops import sample_affine
from tests.references import torch_ops, torch_step
from tests.references.torch_model import Outputs, from_flax


def build(variant, dtype):
    """Returns the network with our parameters, on the GPU if there is one.

    Args:
      variant: of the backbone.
      dtype: "float32", "bfloat16" or "mixed"; the last two are autocast.
    """
    transformers.utils.logging.disable_progress_bar()
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU that has it; full float32 on a CPU.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _, params = ours.build(variant, "float32")
    autocast = torch.float32 if dtype == "float32" else torch.bfloat16
    return from_flax(params, settings.network_config(variant), autocast).to(device)


class Contestant:
    """One network, batch and optimizer. All methods return when the device has finished.

    Args:
      variant: of the backbone.
      batch_size, crop: B and S.
      dtype: see `build`.
      compiled: whether the step runs under torch.compile.
    """

    def __init__(self, variant, batch_size, crop, dtype, compiled):
        self._config = settings.step_config()
        self._model = build(variant, dtype)
        self._device = next(self._model.parameters()).device
        self._optimizer = torch_step.make_optimizer(self._model, settings.optimizer_config())
        batch = settings.make_batch(batch_size, crop)
        self._batch = {name: torch.from_numpy(array).to(self._device) for name, array in batch.items()}
        theta = sample_affine(jax.random.key(1), batch_size, self._config.affine)
        self._theta = torch.from_numpy(np.array(theta)).to(self._device)
        train_step = torch_step.make_train_step(self._model, self._optimizer, self._config)
        self._train_step = torch.compile(train_step) if compiled else train_step

    def step(self):
        """Makes one update with all losses."""
        self._train_step(self._batch, self._theta)
        self._wait()

    def parts(self):
        """Returns a dict from the names of the step's parts to functions, run eagerly."""
        model, batch, config, theta = self._model, self._batch, self._config, self._theta
        canvas = batch["image"].shape[1:3]
        refine = torch_ops.PAR(config.pseudo_label.dilations, config.pseudo_label.iterations).to(self._device)
        images = model.normalize(batch["image"], torch_ops.box_mask(batch["box"], canvas, canvas))
        pair = torch.cat([images, torch_ops.warp(images, torch_ops.sampling_grid(theta, canvas))])
        labels = torch_ops.make_pseudo_labels(model, refine, batch, config)
        _, classes = batch["tags"].sort(dim=1, descending=True, stable=True)
        classes = classes[:, : config.pseudo_label.slots]
        outputs = Outputs(*(output.detach().requires_grad_() for output in model(pair)))

        def both_ways():
            result = model(pair)
            torch.autograd.backward(result, [torch.ones_like(output) for output in result])

        @torch.no_grad()
        def cams():
            torch_ops.multi_scale_cam(
                model, images, classes, config.cam_scales, config.cam_flip, config.stride
            )

        def losses():
            torch_step.pair_losses(outputs, batch, labels, theta, config)[0].backward()

        parts = {
            "network forward": lambda: model(pair),
            "network forward and backward": both_ways,
            "multi-scale CAM": cams,
            "multi-scale CAM and pseudo labels": lambda: torch_ops.make_pseudo_labels(
                model, refine, batch, config
            ),
            "losses": losses,
            "optimizer": self._optimizer.step,
        }
        return {name: self._waiting(part) for name, part in parts.items()}

    def peak_memory(self):
        """Returns the GPU's peak memory in bytes; on a CPU, the process's peak resident size."""
        on_gpu = self._device.type == "cuda"
        return torch.cuda.max_memory_allocated() if on_gpu else measure.peak_resident_bytes()

    def _wait(self):
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _waiting(self, function):
        def run():
            function()
            self._wait()

        return run
