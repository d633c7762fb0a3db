"""Compiled programs are kept between runs, so that a second start takes seconds."""

import hashlib
import os
import platform
from pathlib import Path

import jax


def use_compilation_cache():
    """Has JAX keep compiled programs in `rml_jax` below the user's cache folder.

    That is `$XDG_CACHE_HOME`, `~/.cache` by default. A folder that the user chose by JAX_COMPILATION_CACHE_DIR stays
    chosen, and where nothing can be written, programs are compiled afresh as if this had not been called. Several
    processes may share the folder: an entry's name is a digest of all that shapes the program.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "rml_jax" / _processor_digest()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home.
        return
    if os.access(folder, os.W_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _processor_digest():
    """Programs for a CPU use its instructions; machines of several kinds may share one home."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        features = next(line for line in lines if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        features = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:16]
