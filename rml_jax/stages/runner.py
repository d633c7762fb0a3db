"""Execution of the stages on this process's devices, batch by batch, for evaluation and prediction."""

import copy
import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rml_jax.models import build
from rml_jax.ops.pseudo_label import tagged_slots
from rml_jax.stages.canvas import pad_image, place, smallest_side
from rml_jax.stages.config import stages_config
from rml_jax.stages.network import make_network
from rml_jax.stages.refine import make_link, make_refine
from rml_jax.stages.registry import STAGES, split_stage
from rml_jax.utils.processor import inference_options

PROTOCOLS = ("predicted", "given")
"""Whose tags determine the classes allowed in an image: the model's own, or the ground truth's."""

TAG_THRESHOLD = 0.5
"""The `predicted` protocol's threshold on the sigmoid of a class logit."""

# Numbers of slots that classes are refined in: the smallest that is enough for every image of the batch is used.
_SLOTS = (4, 8, 16, 32, 64, 128)
FEW_SLOTS = (1, 2, *_SLOTS)
"""The same, where images are refined one by one. Most have one or two tags; unused slots cost as much as others."""


class StageRunner:
    """Compiles the programs of the stages, each once per canvas, and runs them.

    A batch is split over all devices and every image is computed on one device, so that the number of devices does
    not change results.

    Args:
      config: ConfigDict of a run.
      graphdef: nnx.GraphDef of `RML`.
      probabilities_of: the chains whose probabilities are returned besides their masks.
      devices: sequence of devices; None for all of this process.

    Attributes:
      stages: StagesConfig.
      network, refine: the jitted functions of `make_network` and `make_refine`.
      refine_fixed: the same as `refine`, which does not choose scores.
      links: name of a stage -> the jitted function of `make_link`.
      devices: number of devices.
      canvases: (height, width) of each.
      smallest: smallest side of an image that the network accepts.
      programs: the programs used so far, each (name, canvas, class slots).
    """

    def __init__(self, config, graphdef, probabilities_of=(), devices=None):
        self.stages = stages_config(config, probabilities_of)
        self.canvases = tuple(map(tuple, config.eval.canvases))
        self.smallest = smallest_side(build.backbone(config), config.cam.scales)
        self._mesh = Mesh(np.array(jax.local_devices() if devices is None else devices), ("data",))
        self.devices = self._mesh.size
        self._classes = len(config.data.class_names)
        self.network = self.shard_map(make_network(graphdef, self.stages), 1, 3)
        self.refine = self.shard_map(make_refine(self.stages), 0, 6)
        fixed = dataclasses.replace(self.stages, region_contrast=0.0)
        self.refine_fixed = self.shard_map(make_refine(fixed), 0, 6)
        links = {part for name in self.stages.stages for part in split_stage(name)[1]}
        self.links = {name: self.shard_map(make_link(STAGES[name], self.stages), 0, 3) for name in links}
        self.programs = set()

    def grouper(self, batch_size):
        """Returns a `Grouper` for this runner's canvases; batch_size is a multiple of `devices`."""
        return Grouper(self.canvases, self.smallest, batch_size)

    def replicate(self, tree):
        """Puts arrays, such as the parameters, on every device."""
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def maps(self, params, batch):
        """Runs the network.

        Returns:
          `make_network`'s maps, on the devices, and the class probabilities as NumPy float32 [B, C].
        """
        maps = self.call(self.network, "network", batch, params, batch.images, batch.sizes)
        return maps, np.asarray(maps.pop("probabilities"))

    def slot_count(self, tags, counts=_SLOTS):
        """Returns the number of slots for some number of tags: the least of `counts` that is enough, at most C."""
        return min(next(slots for slots in (*counts, tags) if slots >= tags), self._classes)

    def slots(self, *allowed, counts=_SLOTS):
        """Computes `tagged_slots` of one or more bool [B, C], in the same number of slots for all of them.

        Returns:
          List of (classes, used), NumPy arrays.
        """
        slots = self.slot_count(max(tags.sum(axis=1).max() for tags in allowed), counts)
        return [jax.device_get(tagged_slots(tags, slots)) for tags in allowed]

    def soft(self, batch, maps, slots, backgrounds, choose=True):
        """Refines the maps up to the bases of all chains.

        Args:
          batch: Batch.
          maps: from `maps`.
          slots: (classes, used).
          backgrounds: dict from the names of `stages.bases` to the background's score, a scalar or one per image.
          choose: whether each image's score is chosen near it, if `stages.region_contrast` says so.

        Returns:
          The result of `make_refine`'s function, on the devices.
        """
        # Traced values, so that other background scores need no new program.
        shape = len(batch.images)
        scores = {name: np.broadcast_to(np.float32(backgrounds[name]), shape) for name in self.stages.bases}
        arguments = maps, batch.images, batch.sizes, *slots, scores
        refine = self.refine if choose else self.refine_fixed
        return self.call(refine, "refine", batch, *arguments, slots=slots[0].shape[1])

    def refined(self, batch, maps, slots, backgrounds, choose=True):
        """Runs all stages; arguments as for `soft`.

        Returns:
          Two dicts, on the devices: chain -> uint8 masks [B, H, W]; chain -> probabilities float32 [B, H, W, 1 + K],
          of the chains in `probabilities_of`.
        """
        soft = self.soft(batch, maps, slots, backgrounds, choose)
        inputs = {"images": batch.images, "sizes": batch.sizes, "affinity": maps["affinity"]}
        done = {
            (base,): {"masks": soft["masks"][base], "probabilities": soft["probabilities"].get(base)}
            for base in self.stages.bases
        }
        masks, probabilities = {}, {}
        for chain in self.stages.stages:
            base, links = split_stage(chain)
            for count, name in enumerate(links, 1):
                before, path = (base, *links[: count - 1]), (base, *links[:count])
                if path not in done:
                    arguments = STAGES[name].select(inputs), slots[0], done[before]["probabilities"]
                    done[path] = self.call(self.links[name], name, batch, *arguments, slots=slots[0].shape[1])
            masks[chain] = done[base, *links]["masks"]
            if chain in self.stages.probabilities_of:
                probabilities[chain] = done[base, *links]["probabilities"]
        return masks, probabilities

    def call(self, function, name, batch, *arguments, slots=0):
        """Calls a program of `shard_map` and counts it in `programs`."""
        self.programs.add((name, batch.canvas, slots))
        return function(*arguments)

    def shard_map(self, function, replicated, count):
        """Compiles a function whose arguments and results are sharded over the devices along their first axis.

        Args:
          function: of arrays; no image's result may depend on another image.
          replicated: number of leading arguments that are replicated.
          count: index after the last sharded argument; arguments from there on are replicated.
        """
        whole, sharded = PartitionSpec(), PartitionSpec("data")

        def call(*arguments):
            specs = tuple(sharded if replicated <= i < count else whole for i in range(len(arguments)))
            # The check of varying axes is not needed, since the function does not communicate.
            return jax.shard_map(
                function, mesh=self._mesh, in_specs=specs, out_specs=sharded, check_vma=False
            )(*arguments)

        return jax.jit(call, compiler_options=inference_options(self._mesh.devices.flat[0].platform))


class Grouper:
    """Groups images of mixed sizes into batches of one canvas each.

    Args:
      canvases: (height, width) of each.
      smallest: smallest side of an image that the network accepts.
      batch_size: images in a batch.
    """

    def __init__(self, canvases, smallest, batch_size):
        self._canvases, self._smallest, self._batch_size = canvases, smallest, batch_size
        self._waiting = {}

    def add(self, key, item):
        """Adds an image, a dict with `image`, uint8 [h, w, 3].

        Returns:
          List of Batch: the one that the image completes, or none.
        """
        size, canvas = place(item["image"].shape[:2], self._canvases, self._smallest)
        entries = self._waiting.setdefault(canvas, [])
        entries.append((key, item, size))
        if len(entries) < self._batch_size:
            return []
        return [Batch(self._waiting.pop(canvas), canvas, self._batch_size)]

    def rest(self):
        """Returns the incomplete batches: list of Batch."""
        waiting, self._waiting = self._waiting, {}
        return [Batch(entries, canvas, self._batch_size) for canvas, entries in waiting.items()]


class Batch:
    """Images on one canvas, as the arrays that the programs take.

    Args:
      entries: list of (key, item, size): item a dict with `image`, uint8 [h, w, 3], and `size` the (height, width)
        it is evaluated at.
      canvas: (height, width).
      batch_size: number of images. A batch with fewer entries is filled with copies of the first, since a new shape
        would compile a new program.

    Attributes:
      entries, canvas: as given.
      items: `batch_size` items.
      images: uint8 [B, height, width, 3].
      sizes: int32 [B, 2].
    """

    def __init__(self, entries, canvas, batch_size):
        self.entries, self.canvas = entries, canvas
        filled = entries + [entries[0]] * (batch_size - len(entries))
        self.items = [item for _, item, _ in filled]
        self.images = np.stack([pad_image(item["image"], size, canvas) for _, item, size in filled])
        self.sizes = np.array([size for _, _, size in filled], np.int32)

    def part(self, first, count):
        """Returns the Batch of the images from `first` to before `first + count`, at least one of them an entry's."""
        part, rows = copy.copy(self), slice(first, first + count)
        part.entries, part.items = self.entries[rows], self.items[rows]
        part.images, part.sizes = self.images[rows], self.sizes[rows]
        return part
