"""The page of `rml-jax predict --page`, on which the background score is chosen by eye."""

from rml_jax.models import build
from rml_jax.report.explorer import MAX_IMAGES, cell_size, explorer_scene, explorer_section
from rml_jax.report.page import page
from rml_jax.utils.files import atomic_write


class ScorePage:
    """Collects the CAMs of predictions, of the first `MAX_IMAGES` images, and writes the page.

    Args:
      predictor: `rml_jax.inference.predictor.Predictor`.
    """

    def __init__(self, predictor):
        config = predictor.config
        self._predictor, self._cell = predictor, cell_size(build.stride(config), config.cam.scales)
        self._scenes, self._left_out = [], 0

    def add(self, name, image, prediction):
        """Adds a `Prediction` with its CAMs, and its image, uint8 [H, W, 3]."""
        if len(self._scenes) == MAX_IMAGES:
            self._left_out += 1
            return
        labels = [self._predictor.classes.index(tag) + 1 for tag in prediction.tags]
        cams = {label: prediction.cams[..., number] for number, label in enumerate(labels)}
        self._scenes.append(explorer_scene(name, image, cams, self._cell))

    def content(self):
        """Returns what was added, as JSON-like values, for the `extend` of another process's object."""
        return [self._scenes, self._left_out]

    def extend(self, content):
        """Adds what another process's object was given (`content`)."""
        scenes = self._scenes + content[0]
        self._left_out += content[1] + max(0, len(scenes) - MAX_IMAGES)
        self._scenes = scenes[:MAX_IMAGES]

    def write(self, path, names):
        """Writes the page to a pathlib.Path, with the images in the order of some names."""
        order = {name: number for number, name in enumerate(names)}
        self._scenes.sort(key=lambda scene: order[scene["name"]])
        settings = self._predictor.settings()
        shown = f"{len(self._scenes)}" + (f", {self._left_out} more are left out" if self._left_out else "")
        scales = ", ".join(f"{scale:g}" for scale in settings["scales"])
        facts = {
            "images": shown,
            "scales of the CAMs": scales,
            "tag threshold": f"{settings['tag_threshold']:g}",
        }
        command = "--stage=cam --background=SCORE"
        if settings["region_contrast"]:
            command += " --region_contrast=0"  # The page shows one score for all images.
        section = explorer_section(self._scenes, self._predictor.classes, settings["background"], command)
        atomic_write(path, page(f"Predictions of {self._predictor.config.data.name}", facts, [section]))
