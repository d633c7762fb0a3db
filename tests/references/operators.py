"""Every operator of rml_jax against an independent reference: PyTorch, scikit-learn or NumPy loops.

The references compute in double precision, so a difference is our own rounding; each row has the largest over its
cases. Labels and counts must be equal: their difference is the fraction of entries that differ.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sklearn.metrics
import torch
import torch.nn.functional as F
from flax import nnx

from rml_jax import losses, ops
from rml_jax.evaluation import metrics
from rml_jax.models import RML, RMLConfig, RMLOutputs, mit
from rml_jax.training.optimizer import OptimizerConfig, make_optimizer, warmup_poly
from rml_jax.utils.trees import named_leaves, with_leaves
from tests.references import loops as references
from tests.references.check import Check, Difference, absolute, relative
from tests.references.networks import SMALL_BACKBONE, random_network


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _uniform(*shape, seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def _double(x):
    return torch.from_numpy(np.asarray(x, np.float64))


def _channels_first(x):
    return _double(x).permute(0, 3, 1, 2)


def _channels_last(x):
    return x.permute(0, 2, 3, 1).detach().numpy()


def _share_differing(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        raise ValueError(f"shapes differ: found {found.shape}, expected {expected.shape}")
    return float(np.mean(found != expected))


# --- Resizing and normalisation ---

RESIZES = [
    ((5, 7), (5, 7)),
    ((5, 7), (16, 21)),
    ((17, 23), (9, 4)),
    ((8, 6), (4, 12)),
    ((5, 7), (1, 1)),
    ((1, 1), (4, 3)),
    ((20, 20), (33, 47)),
]


def _measure_bilinear_resize():
    rows = []
    for convention, align_corners in (("half-pixel centres", False), ("aligned corners", True)):
        differences = []
        for given, wanted in RESIZES:
            x = _normal(2, *given, 3)
            expected = F.interpolate(_channels_first(x), wanted, mode="bilinear", align_corners=align_corners)
            found = ops.resize_bilinear(jnp.asarray(x), wanted, align_corners=align_corners)
            differences.append(relative(found, _channels_last(expected)))
        rows.append(Difference(f"bilinear resize, {convention}", "torch interpolate", max(differences), 1e-6))
    return rows


def _measure_nearest_resize():
    differences = []
    for given, wanted in RESIZES:
        x = np.random.default_rng(0).integers(0, 256, (2, *given))
        expected = F.interpolate(_double(x)[:, None], wanted, mode="nearest-exact")[:, 0]
        differences.append(_share_differing(ops.resize_nearest(jnp.asarray(x), wanted), expected.numpy()))
    return [Difference("nearest resize of labels", "torch interpolate (nearest-exact)", max(differences), 0)]


def _measure_normalisation():
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 12, 3)).astype(np.uint8)
    box = np.array([[0, 0, 9, 12], [2, 1, 7, 9]])
    mean, deviation = _double([0.485, 0.456, 0.406]), _double([0.229, 0.224, 0.225])
    expected = (_double(images) / 255 - mean) / deviation
    expected[1, :2] = expected[1, 7:] = expected[1, :, :1] = expected[1, :, 9:] = 0
    found = jax.jit(ops.normalize)(images, box)
    return [Difference("normalised images, padding at the mean", "torch", relative(found, expected), 1e-6)]


# --- The transform A ---

_jitted_matrix = jax.jit(ops.warp_matrix, static_argnames="size")


def _thetas():
    """Returns three of the method's transforms, and three with greater rotation, scale and translation."""
    wide = ops.AffineRange(scale=(0.4, 1.5), rotation=60.0, translation=0.3, flip=0.5)
    keys, ranges = jax.random.split(jax.random.key(0)), (ops.AffineRange(), wide)
    return np.concatenate([ops.sample_affine(key, 3, r) for key, r in zip(keys, ranges, strict=True)])


def _matrix(thetas, size):
    return np.asarray(_jitted_matrix(thetas, size))


def _grid_sample(x, thetas, mode="bilinear"):
    """Applies transforms to [B, C, H, W], with zeros outside."""
    grid = F.affine_grid(_double(thetas), x.shape, align_corners=False)
    return F.grid_sample(x, grid, mode=mode, padding_mode="zeros", align_corners=False)


def _measure_affine_warp():
    thetas = _thetas()
    warp = jax.jit(ops.warp)
    values, gradients = [], []
    for size in ((20, 20), (13, 7)):
        x, cotangent = _normal(6, *size, 3), _normal(6, *size, 3, seed=1)
        found, pull_back = jax.vjp(lambda maps: warp(maps, thetas), jnp.asarray(x))
        as_product = _matrix(thetas, size) @ x.reshape(6, -1, 3)
        source = _channels_first(x).requires_grad_()
        expected = _grid_sample(source, thetas)
        expected.backward(_channels_first(cotangent))
        values.append(relative(found, _channels_last(expected)))
        values.append(relative(as_product.reshape(x.shape), _channels_last(expected)))
        gradients.append(relative(pull_back(jnp.asarray(cotangent))[0], _channels_last(source.grad)))
    return [
        Difference("A on maps, gathered and as a matrix", "torch grid_sample", max(values), 1e-5),
        Difference("A on maps, gradient", "torch grid_sample", max(gradients), 1e-5),
    ]


def _measure_affine_warp_of_labels():
    thetas = _thetas()
    labels = np.random.default_rng(0).integers(0, 21, (6, 21, 30))
    # Shifted by one, so that torch's zeros outside differ from the background.
    expected = _grid_sample(_double(labels + 1)[:, None], thetas, mode="nearest")[:, 0].numpy() - 1
    found = jax.jit(ops.warp_labels)(labels, thetas)
    difference = _share_differing(found, np.where(expected < 0, 255, expected))
    return [Difference("A on labels, 255 from outside", "torch grid_sample (nearest)", difference, 0)]


def _measure_affine_warp_of_pairs():
    size, cells = (5, 7), 35
    thetas, pairs = _thetas(), _uniform(6, 35, 35)
    matrix = _matrix(thetas, size)
    found = matrix @ pairs @ matrix.swapaxes(1, 2)
    expected = _double(pairs)
    for _ in range(2):
        # The cells of the first axis as channels of a map of the second, then the reverse.
        moved = _grid_sample(expected.reshape(6, cells, *size), thetas)
        expected = moved.reshape(6, cells, cells).transpose(1, 2)
    return [Difference("A on pairs of cells, W R W^T", "torch grid_sample", relative(found, expected), 1e-5)]


# --- Parts of the network ---


def _measure_depthwise_convolution():
    differences = []
    for shape in ((2, 13, 10, 8), (1, 1, 5, 3)):
        x, kernel, cotangent = _normal(*shape), _normal(3, 3, shape[-1], seed=1), _normal(*shape, seed=2)
        found, pull_back = jax.vjp(jax.jit(mit.depthwise_conv3x3), x, kernel)
        x_gradient, kernel_gradient = pull_back(jnp.asarray(cotangent))
        source = _channels_first(x).requires_grad_()
        weight = _double(kernel).permute(2, 0, 1)[:, None].requires_grad_()
        expected = F.conv2d(source, weight, padding=1, groups=shape[-1])
        expected.backward(_channels_first(cotangent))
        differences.append(relative(found, _channels_last(expected)))
        differences.append(relative(x_gradient, _channels_last(source.grad)))
        differences.append(relative(kernel_gradient, weight.grad[:, 0].permute(1, 2, 0)))
    return [Difference("depthwise 3x3 convolution and its gradients", "torch conv2d", max(differences), 1e-6)]


def _measure_parts_of_a_block():
    block = random_network(lambda: mit.Block(16, 2, 2, 4, 0.0, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    x = _normal(2, 5, 6, 16)

    # As small as the square roots of the epsilons, so that a wrong epsilon changes the result.
    small = 0.01 * x
    norms, distant = [], []
    for norm, epsilon in ((block.attention_norm, 1e-6), (block.attention.reduce_norm, 1e-5)):
        scale, bias = _double(norm.scale[...]), _double(norm.bias[...])
        norms.append(relative(norm(small), F.layer_norm(_double(small), (16,), scale, bias, epsilon)))
        # Far from 0, as some channels of trained networks are, where E[x^2] - E[x]^2 loses precision.
        far = small + 1000 * np.float32(np.std(small))
        expected = F.layer_norm(_double(far), (16,), scale, bias, epsilon)
        distant.append(relative(norm(far), expected))

    def linear(x, layer):
        return F.linear(x, _double(layer.kernel[...]).T, _double(layer.bias[...]))

    ffn = block.ffn
    hidden = linear(_double(x), ffn.expand).permute(0, 3, 1, 2)
    kernel = _double(ffn.depthwise.kernel[...]).permute(2, 0, 1)[:, None]
    hidden = F.conv2d(hidden, kernel, _double(ffn.depthwise.bias[...]), padding=1, groups=64)
    expected = linear(F.gelu(hidden).permute(0, 2, 3, 1), ffn.contract)
    mixed = relative(nnx.jit(ffn)(x), expected)
    return [
        Difference("LayerNorm, both epsilons", "torch layer_norm", max(norms), 1e-6),
        Difference("LayerNorm, mean 1000 deviations", "torch layer_norm", max(distant), 1e-3),
        Difference("Mix-FFN with exact GELU", "torch linear, conv2d, gelu", mixed, 1e-6),
    ]


# --- CAMs, PAR and pseudo labels ---

DILATIONS = (1, 2, 4, 8, 12, 24)


def _measure_multi_scale_cam():
    stride, classes = 4, 5
    first, second = _normal(5, 5, 3, 8) / 5, _normal(8, classes, seed=1)

    def classify(images):
        cells = jax.lax.conv_general_dilated(
            images, first, (stride, stride), ((2, 2), (2, 2)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return None, jax.nn.relu(cells) @ second

    def torch_cam_logits(images):
        cells = F.conv2d(images, _double(first).permute(3, 2, 0, 1), stride=stride, padding=2)
        return F.conv2d(F.relu(cells), _double(second).T[:, :, None, None])

    size, scales = (36, 52), (0.5, 1, 1.5)
    images = _normal(2, *size, 3, seed=2)
    total = 0
    for scale in scales:
        scaled_size = [int(side * scale) for side in size]
        scaled = F.interpolate(_channels_first(images), scaled_size, mode="bilinear", align_corners=False)
        maps, mirrored = torch_cam_logits(scaled), torch_cam_logits(scaled.flip(3)).flip(3)
        greater = F.relu(torch.maximum(maps, mirrored))
        total = total + F.interpolate(greater, size, mode="bilinear", align_corners=False)
    total = total - total.amin((2, 3), keepdim=True)
    expected = total / (total.amax((2, 3), keepdim=True) + 1e-5)
    found = jax.jit(
        lambda images: ops.multi_scale_cam(classify, images, scales=scales, flip=True, stride=stride)
    )(images)
    difference = relative(found, _channels_last(expected))
    return [Difference("multi-scale flipped CAM of a small network", "torch", difference, 1e-5)]


def _measure_single_scale_cam():
    logits, tags = _normal(2, 5, 7, 4), np.array([[1, 0, 1, 1], [0, 1, 0, 0]])
    cams = references.min_max_normalize(np.maximum(logits, 0))
    found = ops.class_activation_maps(jnp.asarray(logits))
    labels = ops.cam_to_labels(found, tags, 0.45)
    expected = references.cam_to_labels(cams, tags, 0.45)
    return [
        Difference("single-scale CAM, Eq. 1", "NumPy loops", relative(found, cams), 1e-6),
        Difference("labels from CAMs", "NumPy loops", _share_differing(labels, expected), 0),
    ]


def _image(height, width, seed=0):
    """Returns colours in 0..255: a smooth half and a noisy one."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.float32)
    left = width // 2
    image[:, :left] = 100 + image[:, :left] / 8
    return image


def _measure_pixel_adaptive_refinement():
    differences, growths, par = [], [], jax.jit(ops.par)
    for size in ((9, 7), (1, 11), (26, 8)):
        image, mask = _image(*size), _uniform(*size, 3)
        mask[..., 2] = 1
        found = par(image[None], mask[None])[0]
        expected = references.par(image, mask, DILATIONS, iterations=10)
        differences.append(relative(found, expected))
        growths.append(relative(found[..., 2], np.full(size, 1.01**10)))
    return [
        Difference("PAR, also of images below its dilations", "NumPy loops", max(differences), 1e-5),
        Difference("PAR of a constant mask", "1.01 per iteration", max(growths), 1e-5),
    ]


def _measure_pseudo_labels():
    cams = _uniform(2, 18, 25, 6)
    cams[:, 3:12, 5:15] = 0.2 + 0.4 * cams[:, 3:12, 5:15]
    images = np.stack([_image(18, 25), _image(18, 25, seed=1)])
    tags, box = np.array([[0, 1, 0, 0, 1, 1], [0, 0, 1, 0, 0, 0]]), np.array([[0, 0, 18, 25], [3, 2, 18, 20]])
    found = jax.jit(ops.pseudo_labels, static_argnames="config")(
        cams, images, tags, box, ops.PseudoLabelConfig(slots=3)
    )
    expected = references.pseudo_labels(cams, images, tags, box, DILATIONS, iterations=10)
    return [Difference("pseudo labels, with PAR", "NumPy loops", _share_differing(found, expected), 0)]


# --- Affinity ---


def _measure_affinity():
    labels = np.random.default_rng(0).choice([0, 1, 2, 255], (2, 5, 12))
    differing = max(
        _share_differing(
            ops.affinity_labels(jnp.asarray(labels), radius), references.affinity_labels(labels, radius)
        )
        for radius in (1, 3, 8)
    )
    scores, weights = _uniform(2, 5, 12, 3), _uniform(2, 60, 60, seed=1)
    walk = max(
        relative(ops.random_walk(scores, weights, radius), references.random_walk(scores, weights, radius))
        for radius in (1, 3, 8)
    )
    return [
        Difference("affinity labels inside a radius", "NumPy loops", differing, 0),
        Difference("random walk", "NumPy loops", walk, 1e-6),
    ]


# --- Losses ---


def _measure_classification_loss():
    logits, tags = 5 * _normal(4, 20), np.random.default_rng(1).integers(0, 2, (4, 20))
    expected = torch.nn.MultiLabelSoftMarginLoss()(_double(logits), _double(tags))
    found = losses.multilabel_soft_margin(jnp.asarray(logits), tags)
    return [Difference("L_cls", "torch MultiLabelSoftMarginLoss", relative(found, expected), 1e-6)]


def _measure_mutual_information():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 5, 500)
    second = np.where(rng.random(500) < 0.6, first % 3, rng.integers(0, 3, 500))
    certain = losses.mutual_information(np.eye(5)[first], np.eye(3)[second], jnp.ones(500))
    exact = sklearn.metrics.mutual_info_score(first, second)
    chances, others = (np.exp(2 * _normal(200, k, seed=k)) for k in (5, 3))
    others[:, 0] += chances[:, 0]
    chances, others = (a / a.sum(axis=1, keepdims=True) for a in (chances, others))
    weight = _uniform(200)
    soft = losses.mutual_information(chances, others, weight)
    expected = references.mutual_information(chances, others, weight)
    return [
        Difference("mutual information of labels, nats", "scikit-learn", absolute(certain, exact), 1e-6),
        Difference("mutual information of chances, nats", "NumPy loops", absolute(soft, expected), 1e-6),
    ]


def _pair(original, warped, **fields):
    """Returns a losses.Pair with only some fields set."""
    return losses.Pair(original, warped, **dict.fromkeys(losses.Pair._fields[2:]) | fields)


def _outputs(**arrays):
    """Returns RMLOutputs with only some fields set."""
    return RMLOutputs(**{name: arrays.get(name) for name in RMLOutputs._fields})


def _valid(count, *size):
    valid = np.ones((count, *size), bool)
    valid[0, :, 0] = valid[1, -1:] = False
    return valid


def _measure_ciml_loss():
    thetas, valid = _thetas()[:2], _valid(2, 5, 6)
    tags = np.array([[1, 1, 0, 1], [0, 1, 0, 0]])
    matrix = _matrix(thetas, (5, 6))
    views = [(_normal(2, 5, 6, 4, seed=i), _normal(2, 5, 6, 8, seed=i + 2)) for i in (0, 1)]
    outputs = [_outputs(cam_logits=logits, features=features) for logits, features in views]
    pair = _pair(*outputs, tags=tags, matrix=matrix, valid=valid)
    found, parts = jax.jit(losses.ciml)(pair, 0.1)
    found = [found, parts["equivariance"], parts["prototype_similarity"]]
    expected = references.ciml(*views, tags, matrix, valid, 0.1)
    return [Difference("L_CIML and its parts", "NumPy loops", relative(found, expected), 1e-5)]


def _measure_mfml_loss():
    thetas, valid = _thetas()[:2], _valid(2, 7, 8)
    view = 3 * _normal(2, 7, 8, 5)
    # The views must be dependent, or their mutual information is near 0.
    warped = (references.warp(view, thetas) + _normal(2, 7, 8, 5, seed=1)).astype(np.float32)
    pair = _pair(_outputs(context=view), _outputs(context=warped), theta=thetas, valid_context=valid)
    found, parts = jax.jit(losses.mfml)(pair, 1.0)
    found = [found, parts["alignment"], parts["information_context"]]
    expected = references.mfml(view, warped, thetas, valid, 1.0)
    return [Difference("L_MFML and its parts", "NumPy loops", relative(found, expected), 1e-5)]


def _measure_apml_loss():
    size, radius = (4, 5), 2
    thetas, valid = _thetas()[:2], _valid(2, *size)
    matrix = _matrix(thetas, size)
    maps = np.random.default_rng(0).choice([0, 1, 255], (2, *size), p=[0.5, 0.4, 0.1])
    labels, warped_labels = (
        references.affinity_labels(np.asarray(m), radius)
        for m in (maps, ops.warp_labels(jnp.asarray(maps), thetas))
    )
    logits, warped_logits = (
        6 * (a == 1) - 3 + _normal(2, 20, 20, seed=i) for i, a in enumerate((labels, warped_labels))
    )
    views = [_outputs(affinity_logits=jnp.asarray(a)) for a in (logits, warped_logits)]
    pair = _pair(
        *views, affinity_labels=labels, warped_affinity_labels=warped_labels, matrix=matrix, valid=valid
    )
    found, parts = jax.jit(losses.apml)(pair, 1.0)
    found = [
        found,
        parts["affinity"],
        parts["information_affinity_label"],
        parts["information_affinity_pair"],
    ]
    expected = references.apml(
        logits, warped_logits, labels, warped_labels, matrix, valid.reshape(2, -1), 1.0
    )
    return [Difference("L_APML and its parts", "NumPy loops", relative(found, expected), 1e-5)]


# --- Training ---


def _measure_learning_rate():
    differences = []
    for base, warmup, total in ((6e-5, 1500, 18000), (6e-4, 1500, 18000), (0.3, 0, 10), (0.3, 10, 10)):
        steps = range(total + 3)
        config = OptimizerConfig(base, base, 0.0, warmup, total, freeze_norms=False)
        found = jax.jit(jax.vmap(warmup_poly(base, config)))(jnp.asarray(steps))
        expected = [references.learning_rate(step, warmup, total) for step in steps]
        differences.append(absolute(np.asarray(found) / base, expected))
    # Below 1e-6, the fraction that the warm-up starts from.
    return [Difference("learning rate at every step, of the base", "the formula", max(differences), 5e-7)]


OPTIMIZER = OptimizerConfig(
    backbone_lr=0.02, head_lr=0.05, weight_decay=0.1, warmup_steps=4, total_steps=20, freeze_norms=True
)


def _measure_optimizer():
    """Measures ten updates of the parameters of a small network by random gradients."""
    model = nnx.eval_shape(lambda: RML(RMLConfig(SMALL_BACKBONE, num_classes=3), rngs=nnx.Rngs(0)))
    norms = {
        "/".join(map(str, path)) for path, part in nnx.iter_modules(model) if isinstance(part, nnx.LayerNorm)
    }
    tree = nnx.split(model)[1]
    rng = np.random.default_rng(0)
    start, *gradients = (
        {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in named_leaves(tree).items()}
        for _ in range(11)
    )
    trainable = [name for name in start if name.rpartition("/")[0] not in norms]
    expected = start | _trained_by_torch({name: start[name] for name in trainable}, gradients)
    found = named_leaves(_trained(with_leaves(tree, start), [with_leaves(tree, g) for g in gradients]))
    difference = max(relative(found[name], expected[name]) for name in start)
    return [Difference("AdamW in groups, norms frozen, 10 steps", "torch AdamW, LambdaLR", difference, 1e-5)]


def _trained(params, gradients):
    transform = make_optimizer(OPTIMIZER, params)

    @jax.jit
    def step(params, state, gradient):
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = transform.init(params)
    for gradient in gradients:
        params, state = step(params, state, gradient)
    return params


def _trained_by_torch(start, gradients):
    tensors = {name: _double(value).requires_grad_() for name, value in start.items()}
    backbone = [tensor for name, tensor in tensors.items() if name.startswith("backbone/")]
    heads = [tensor for name, tensor in tensors.items() if not name.startswith("backbone/")]
    groups = [
        {"params": backbone, "lr": OPTIMIZER.backbone_lr},
        {"params": heads, "lr": OPTIMIZER.head_lr},
    ]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=OPTIMIZER.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adamw,
        lambda step: references.learning_rate(step, OPTIMIZER.warmup_steps, OPTIMIZER.total_steps),
    )
    for gradient in gradients:
        for name, tensor in tensors.items():
            tensor.grad = _double(gradient[name])
        adamw.step()
        schedule.step()
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


# --- Scores ---


def _measure_scores_of_masks():
    rng = np.random.default_rng(0)
    annotation = rng.choice(np.array([0, 1, 2, 4, 255], np.uint8), (37, 41))
    prediction = rng.integers(0, 6, (37, 41)).astype(np.uint8)
    agree = rng.random((37, 41)) < 0.5
    prediction[agree & (annotation != 255)] = annotation[agree & (annotation != 255)]
    scored = annotation != 255
    found = metrics.mean_iou(metrics.confusion_matrix(prediction, annotation, 6))
    present = np.unique(annotation[scored])
    expected = sklearn.metrics.jaccard_score(
        annotation[scored], prediction[scored], labels=present, average="macro"
    )
    return [Difference("mIoU, 255 ignored", "scikit-learn", absolute(found, expected), 1e-12)]


def _measure_scores_of_tags():
    rng = np.random.default_rng(1)
    tags = rng.random((60, 5)) < 0.2
    # Two digits, so that some scores are equal.
    probabilities = np.clip(0.5 * tags + rng.normal(0.3, 0.2, tags.shape), 0, 1).round(2)
    found = metrics.classification_scores(probabilities, tags)
    expected = [
        sklearn.metrics.f1_score(tags, probabilities > 0.5, average="samples", zero_division=1),
        references.mean_average_precision(probabilities, tags),
    ]
    difference = absolute([found["f1"], found["map"]], expected)
    return [Difference("F1 and mAP of tags", "scikit-learn, NumPy loops", difference, 1e-12)]


CHECKS = [
    Check(measure.__name__.removeprefix("_measure_").replace("_", "-"), measure)
    for measure in (
        _measure_bilinear_resize,
        _measure_nearest_resize,
        _measure_normalisation,
        _measure_affine_warp,
        _measure_affine_warp_of_labels,
        _measure_affine_warp_of_pairs,
        _measure_depthwise_convolution,
        _measure_parts_of_a_block,
        _measure_multi_scale_cam,
        _measure_single_scale_cam,
        _measure_pixel_adaptive_refinement,
        _measure_pseudo_labels,
        _measure_affinity,
        _measure_classification_loss,
        _measure_mutual_information,
        _measure_ciml_loss,
        _measure_mfml_loss,
        _measure_apml_loss,
        _measure_learning_rate,
        _measure_optimizer,
        _measure_scores_of_masks,
        _measure_scores_of_tags,
    )
]
