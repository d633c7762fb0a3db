"""JAX's cache of compiled programs, kept between runs."""

import hashlib
import os
from pathlib import Path

import jax

from rml_jax.utils.processor import digest_text


def use_compilation_cache():
    """Makes JAX keep compiled programs in the folder `rml_jax` of `$XDG_CACHE_HOME`, by default `~/.cache`.

    Does nothing if JAX_COMPILATION_CACHE_DIR names another folder or the folder can't be written to. Several
    processes may share it, since entries are named by a digest of the program and its compiler options.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "rml_jax" / _processor_digest()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder.
        return
    if os.access(folder, os.W_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _processor_digest():
    # CPU programs use instructions that other machines with the same home folder may lack.
    return hashlib.sha256(digest_text().encode()).hexdigest()[:16]
