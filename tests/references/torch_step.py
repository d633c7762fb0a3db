"""One training step of RML in PyTorch, batched and without Python loops over images.

It is an independent counterpart of `rml_jax.training.step`, after docs/method.md, with the same batches and
configuration.
"""

import torch
import torch.nn.functional as F
from torch import nn

from tests.references.torch_losses import (
    affinity_labels,
    apml_loss,
    ciml_loss,
    masked_mean,
    mfml_loss,
    self_training_loss,
)
from tests.references.torch_model import Outputs
from tests.references.torch_ops import (
    IGNORE,
    PAR,
    box_mask,
    make_pseudo_labels,
    sampling_grid,
    validity,
    warp,
    warp_labels,
)


def make_optimizer(model, config):
    """Builds AdamW (betas 0.9, 0.999) with one learning rate for the encoder and one for the heads.

    Args:
      model: TorchRML; with `freeze_norms`, gradients of its encoder's LayerNorms are disabled.
      config: rml_jax.training.optimizer.OptimizerConfig; its base learning rates are used, without the schedule.

    Returns:
      torch.optim.AdamW.
    """
    if config.freeze_norms:
        for module in model.encoder.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(False)
    heads = [parameter for name, parameter in model.named_parameters() if not name.startswith("encoder.")]
    backbone = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
    groups = [
        {"params": backbone, "lr": config.backbone_lr},
        {"params": heads, "lr": config.head_lr},
    ]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)


def make_train_step(model, optimizer, config):
    """Builds the train step with all losses.

    Args:
      model: TorchRML, on its device.
      optimizer: torch optimizer over its parameters.
      config: rml_jax.training.step.StepConfig.

    Returns:
      Function (batch, theta) -> dict of float32 scalars on the device. It changes model and optimizer in place.
      `batch` is a dict of `image` (uint8 [B, S, S, 3]), `box` (int [B, 4]: top, left, bottom, right of the real
      pixels, half-open) and `tags` (float32 [B, C]); `theta`, float32 [B, 2, 3], is the transform A in the
      convention of `F.affine_grid`.
    """
    refine = PAR(config.pseudo_label.dilations, config.pseudo_label.iterations).to(model.mean.device)

    def train_step(batch, theta):
        model.eval()
        labels = make_pseudo_labels(model, refine, batch, config)
        model.train()
        loss, terms = all_losses(model, batch, labels, theta, config)
        optimizer.zero_grad()
        loss.backward()
        norms = {
            f"gradient_norm/{name}": nn.utils.get_total_norm(
                [p.grad for p in group["params"] if p.grad is not None]
            )
            for name, group in zip(("backbone", "heads"), optimizer.param_groups, strict=True)
        }
        norms["gradient_norm"] = torch.stack(list(norms.values())).norm()
        optimizer.step()
        return {"loss": loss.detach(), **terms, **norms}

    return train_step


def all_losses(model, batch, labels, theta, config):
    """Computes the total loss of Eq. 16 and its parts.

    Args:
      model: TorchRML in training mode.
      batch, theta, config: see `make_train_step`.
      labels: int64 [B, S, S], see `make_pseudo_labels`.

    Returns:
      float32 scalar with gradient, and a dict of scalars without.
    """
    canvas = batch["image"].shape[1:3]
    images = model.normalize(batch["image"], box_mask(batch["box"], canvas, canvas))
    outputs = model(torch.cat([images, warp(images, sampling_grid(theta, canvas))]))
    return pair_losses(outputs, batch, labels, theta, config)


def pair_losses(outputs, batch, labels, theta, config):
    """Computes `all_losses` from the outputs for both views, concatenated in a batch of 2 B (`Outputs`)."""
    view, warped = map(Outputs._make, zip(*(output.chunk(2) for output in outputs), strict=True))
    box, tags, canvas = batch["box"], batch["tags"], batch["image"].shape[1:3]
    real, canvas_grid = box_mask(box, canvas, canvas), sampling_grid(theta, canvas)
    cells, fine = view.cam_logits.shape[2:], view.context.shape[2:]
    grid, fine_grid = sampling_grid(theta, cells), sampling_grid(theta, fine)
    valid = validity(box_mask(box, cells, canvas), grid)
    valid_fine = validity(box_mask(box, fine, canvas), fine_grid)
    pairs = affinity_labels(labels, cells, config.loss["radius"])
    warped_labels = warp_labels(labels, canvas_grid)
    warped_pairs = affinity_labels(warped_labels, cells, config.loss["radius"])

    weights = config.loss
    classification = F.multilabel_soft_margin_loss(view.logits, tags)
    ciml, ciml_parts = ciml_loss(view, warped, tags, grid, valid, weights["alpha"])
    mfml, mfml_parts = mfml_loss(view, warped, fine_grid, valid_fine, weights["beta1"])
    apml, apml_parts = apml_loss(view, warped, pairs, warped_pairs, grid, valid, weights["beta2"])
    self_training = self_training_loss(view.cam_logits, labels, tags)
    self_training = self_training + self_training_loss(warped.cam_logits, warped_labels, tags)
    loss = classification + weights["ciml"] * ciml + weights["mfml"] * mfml + weights["apml"] * apml
    loss = loss + weights["self_training"] * self_training
    terms = {
        "classification": classification,
        "ciml": ciml,
        "mfml": mfml,
        "apml": apml,
        "self_training": self_training,
    }
    labelled = {
        "labelled_foreground": masked_mean((labels > 0) & (labels != IGNORE), real),
        "labelled_background": masked_mean(labels == 0, real),
    }
    terms |= ciml_parts | mfml_parts | apml_parts | labelled
    return loss, {name: term.detach() for name, term in terms.items()}
