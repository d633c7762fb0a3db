"""Compiling a configuration's programs for GPUs and TPUs that are not there (docs/accelerators.md).

from rml_jax.compilation import compile_config, open_topology

topology = open_topology("v5e-1")
programs = compile_config(config, topology, ["train"])  # {"train": {"temporary_bytes": ...}}
"""

from rml_jax.compilation.measure import compile_config, compile_program, largest_batch
from rml_jax.compilation.programs import PROGRAMS
from rml_jax.compilation.topology import Topology, open_topology, topology_names

__all__ = [
    "PROGRAMS",
    "Topology",
    "compile_config",
    "compile_program",
    "largest_batch",
    "open_topology",
    "topology_names",
]
