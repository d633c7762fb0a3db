"""The registry of stages, and the names of their chains."""

from rml_jax.stages.affinity import Affinity
from rml_jax.stages.cam import Cam
from rml_jax.stages.crf import Crf
from rml_jax.stages.par import Par
from rml_jax.stages.stage import INPUTS

STAGES = {stage.name: stage for stage in (Cam(), Affinity(), Par(), Crf())}
"""Name of a stage -> Stage. Chains start with `cam`; the others may follow in any order."""


def register(stage):
    """Adds a stage, which `eval.stages` then accepts.

    Args:
      stage: Stage.

    Raises:
      ValueError: if its name is empty, contains "+" or is taken, or it needs an input that is not in INPUTS.
    """
    if not stage.name or "+" in stage.name or stage.name in STAGES:
        raise ValueError(f"stage name {stage.name!r}: expected one without + that no other stage has")
    if unknown := [name for name in stage.needs if name not in INPUTS]:
        raise ValueError(f"stage {stage.name} needs {unknown[0]!r}: expected some of {', '.join(INPUTS)}")
    STAGES[stage.name] = stage


def parse_stage(name):
    """Splits the name of a chain.

    Args:
      name: such as "cam", "par" or "affinity+crf".

    Returns:
      Tuple of the names of its stages without the first, `cam`; () for "cam".

    Raises:
      ValueError: if a part is unknown or occurs twice.
    """
    parts = name.split("+")
    refiners = tuple(parts[1:] if parts[0] == "cam" else parts)
    known = [other for other in STAGES if other != "cam"]
    if len(set(refiners)) < len(refiners) or not set(refiners) <= set(known):
        raise ValueError(
            f"{name!r} is no stage: expected cam, or some of {', '.join(known)} joined by +, each once"
        )
    return refiners


def split_stage(name):
    """Splits a chain before its first stage that is compiled by itself (`Stage.own_program`).

    Args:
      name: see `parse_stage`.

    Returns:
      The name of the first part, its base, such as "cam" of "crf" or "affinity" of "affinity+crf+par", and the tuple
      of the names that follow it.
    """
    refiners = parse_stage(name)
    count = next((i for i, part in enumerate(refiners) if STAGES[part].own_program), len(refiners))
    return "+".join(refiners[:count]) or "cam", refiners[count:]


def base_stage(name):
    """Returns the name of a chain's base (`split_stage`), whose probabilities depend on the background's score."""
    return split_stage(name)[0]


def background_key(name, keys):
    """Returns the key of eval.background that holds the background's score of a chain.

    Args:
      name: see `parse_stage`.
      keys: the existing keys.

    Returns:
      The name of the first stage of the chain's base, which computes the probabilities; "cam" if it has no key.
    """
    first = base_stage(name).split("+")[0]
    return first if first in keys else "cam"


def stage_needs(name):
    """Returns the set of INPUTS that the stages of a chain need."""
    return {need for part in parse_stage(name) for need in STAGES[part].needs}
