"""Runs the stages on this process's devices, batch by batch: what evaluation and prediction share."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rml_jax.models import build
from rml_jax.ops.pseudo_label import PseudoLabelConfig, tagged_slots
from rml_jax.stages.canvas import pad_picture, place, smallest_side
from rml_jax.stages.stages import StagesConfig, before_crf, make_crf, make_network, make_refine, parse_stage

# Classes are refined in this many slots, the next number up that holds those of every image in the batch.
_SLOTS = (4, 8, 16, 32, 64, 128)


def stages_config(config, probabilities_of=()):
    """StagesConfig of a run (ConfigDict)."""
    return StagesConfig(
        stages=tuple(config.eval.stages),
        scales=config.cam.scales,
        flip=config.cam.flip,
        stride=build.stride(config),
        radius=config.loss.radius,
        pseudo_label=PseudoLabelConfig(**config.pseudo_label),
        crf=config.eval.crf,
        probabilities_of=probabilities_of,
    )


class StageRunner:
    """The programs of the stages, each compiled once per canvas.

    All devices share a batch, and every picture is computed on one device alone, so that their number does not change
    a result.

    Args:
      config: ConfigDict of a run.
      graphdef: nnx.GraphDef of `RML`.
      probabilities_of: the stages whose probabilities are wanted beside their masks.

    Attributes:
      stages: StagesConfig.
      devices: their number.
      canvases: (height, width) of each.
      smallest: least side of a picture that the network takes.
      programs: the programs used so far, each (name, canvas, class slots).
    """

    def __init__(self, config, graphdef, probabilities_of=()):
        self.stages = stages_config(config, probabilities_of)
        self.canvases = tuple(map(tuple, config.eval.canvases))
        self.smallest = smallest_side(build.backbone(config), config.cam.scales)
        self._mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self._replicated = NamedSharding(self._mesh, PartitionSpec())
        self.devices = self._mesh.size
        self._classes = len(config.data.class_names)
        self._network = self.share(make_network(graphdef, self.stages), 1, 3)
        self._refine = self.share(make_refine(self.stages), 0, 5)
        self._crf = self.share(make_crf(self.stages), 0, 4)
        self.programs = set()

    def grouper(self, batch_size):
        """A `Grouper` for this runner's canvases; batch_size is a multiple of `devices`."""
        return Grouper(self.canvases, self.smallest, batch_size)

    def everywhere(self, tree):
        """Arrays, such as the parameters, on every device."""
        return jax.device_put(tree, self._replicated)

    def maps(self, params, batch):
        """`make_network`'s maps, on the devices, and the class probabilities, here: float32 [B, C]."""
        maps = self.call(self._network, "network", batch, params, batch.images, batch.sizes)
        return maps, np.asarray(maps.pop("probabilities"))

    def slots(self, *allowed):
        """`tagged_slots` of one or more bool [B, C], in the same number of slots for all of them.

        Returns:
          List of (classes, used), NumPy arrays.
        """
        most = max(tags.sum(axis=1).max() for tags in allowed)
        slots = min(next(slots for slots in (*_SLOTS, most) if slots >= most), self._classes)
        return [jax.device_get(tagged_slots(tags, slots)) for tags in allowed]

    def soft(self, batch, maps, slots, backgrounds):
        """What `make_refine`'s function gives, on the devices.

        Args:
          batch: Batch.
          maps: from `maps`.
          slots: (classes, used).
          backgrounds: dict from the names of `stages.soft_stages` to the background's score.
        """
        # Numbers that are traced: other background scores need no new program.
        scores = {name: np.float32(backgrounds[name]) for name in self.stages.soft_stages}
        arguments = maps, batch.images, batch.sizes, *slots, scores
        return self.call(self._refine, "refine", batch, *arguments, slots=slots[0].shape[1])

    def refined(self, batch, maps, slots, backgrounds):
        """All stages' results, on the devices; arguments as for `soft`.

        Returns:
          Two dicts: stage -> uint8 masks [B, H, W]; stage -> probabilities float32 [B, H, W, 1 + K], of those
          in `probabilities_of`.
        """
        soft = self.soft(batch, maps, slots, backgrounds)
        masks, probabilities = {}, {}
        for stage in self.stages.stages:
            before = before_crf(stage)
            result = {"masks": soft["masks"][before], "probabilities": soft["probabilities"].get(before)}
            if "crf" in parse_stage(stage):
                arguments = batch.images, batch.sizes, slots[0], result["probabilities"]
                result = self.call(self._crf, "crf", batch, *arguments, slots=slots[0].shape[1])
            masks[stage] = result["masks"]
            if stage in self.stages.probabilities_of:
                probabilities[stage] = result["probabilities"]
        return masks, probabilities

    def call(self, function, name, batch, *arguments, slots=0):
        """Calls a program of `share` and counts it in `programs`."""
        self.programs.add((name, batch.canvas, slots))
        return function(*arguments)

    def share(self, function, replicated, count):
        """`function` jitted, its arguments and results shared out over the devices along their first axis.

        Args:
          function: of arrays; no picture's result depends on another's.
          replicated: how many leading arguments every device gets whole.
          count: number of arguments up to which they are shared out; those behind are whole.
        """
        whole, shared = PartitionSpec(), PartitionSpec("data")

        def call(*arguments):
            specs = tuple(shared if replicated <= i < count else whole for i in range(len(arguments)))
            # Without communication there is nothing for the check of varying axes to find.
            return jax.shard_map(
                function, mesh=self._mesh, in_specs=specs, out_specs=shared, check_vma=False
            )(*arguments)

        return jax.jit(call)


class Grouper:
    """Groups pictures of mixed sizes into batches of one canvas each.

    Args:
      canvases: (height, width) of each.
      smallest: least side of a picture.
      batch_size: pictures in a batch.
    """

    def __init__(self, canvases, smallest, batch_size):
        self._canvases, self._smallest, self._batch_size = canvases, smallest, batch_size
        self._waiting = {}

    def add(self, key, item):
        """Takes a picture, a dict with `image`, uint8 [h, w, 3].

        Returns:
          List of Batch: one, if the picture filled it, or none.
        """
        size, canvas = place(item["image"].shape[:2], self._canvases, self._smallest)
        entries = self._waiting.setdefault(canvas, [])
        entries.append((key, item, size))
        if len(entries) < self._batch_size:
            return []
        return [Batch(self._waiting.pop(canvas), canvas, self._batch_size)]

    def rest(self):
        """What is left: list of Batch."""
        waiting, self._waiting = self._waiting, {}
        return [Batch(entries, canvas, self._batch_size) for canvas, entries in waiting.items()]


class Batch:
    """Pictures on one canvas, with the arrays that the programs take.

    Args:
      entries: list of (key, item, size): item a dict with `image`, uint8 [h, w, 3], and `size` the (height, width)
        it is evaluated at.
      canvas: (height, width).
      batch_size: a batch with fewer entries is filled up with its first: a new shape would compile a new program.

    Attributes:
      entries, canvas: as given.
      items: the items, filled up.
      images: uint8 [B, height, width, 3].
      sizes: int32 [B, 2].
    """

    def __init__(self, entries, canvas, batch_size):
        self.entries, self.canvas = entries, canvas
        filled = entries + [entries[0]] * (batch_size - len(entries))
        self.items = [item for _, item, _ in filled]
        self.images = np.stack([pad_picture(item["image"], size, canvas) for _, item, size in filled])
        self.sizes = np.array([size for _, _, size in filled], np.int32)
