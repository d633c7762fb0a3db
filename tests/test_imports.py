"""The order of packages: imports run only downwards; ops, losses and models load only jax, flax and numpy."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import rml_jax

PACKAGE = Path(rml_jax.__file__).parent
# From the bottom to the top; a module imports from its own layer's package or from lower layers.
ORDER = (
    ("labels", "utils"),
    ("config", "variants"),
    ("ops",),
    ("models", "losses"),
    ("data",),
    ("stages",),
    ("visualize",),
    ("checkpoint",),
    ("validate",),
    ("evaluation",),
    ("training",),
    ("compilation",),
    ("inference",),
    ("report",),
    ("commands",),
    ("__main__",),
)
LAYERS = {name: layer for layer, names in enumerate(ORDER) for name in names}
# The package itself gives its version to everyone and, when asked for it, `load`.
ROOT = "__init__"


def module_name(path):
    """Dotted name below rml_jax, such as "ops.cam" of ops/cam.py, and "ops" of ops/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if "configs" not in path.parts}


def imported(path):
    """Dotted names below rml_jax that a file imports, anywhere but under `if TYPE_CHECKING:`."""
    found, nodes = set(), [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            # Of `from a import b`, b may be a module or a name in a.
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("rml_jax.") in MODULES else node.module for name in below]
        else:
            continue
        found |= {name.removeprefix("rml_jax.") for name in names if name.startswith("rml_jax.")}
    return found - {module_name(path)}


def layer(module):
    return LAYERS[module.partition(".")[0]]


def test_every_module_has_its_place_in_the_order():
    assert {name.partition(".")[0] for name in MODULES} == LAYERS.keys() | {ROOT}


def test_imports_run_downwards():
    upwards = []
    for module, path in MODULES.items():
        for other in imported(path) if module != ROOT else ():
            same_package = module.partition(".")[0] == other.partition(".")[0]
            if not same_package and layer(other) >= layer(module):
                upwards.append(f"{module} imports {other}")
    assert upwards == []


def test_no_module_imports_itself_by_way_of_others():
    edges = {module: imported(path) & MODULES.keys() for module, path in MODULES.items() if module != ROOT}
    done, way = set(), []

    def visit(module):
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            way.append(module)
            for other in sorted(edges[module]):
                visit(other)
            done.add(way.pop())

    for module in edges:
        visit(module)


def loaded_by(*modules, after=()):
    """Top-level names in sys.modules that importing some modules adds to those that `after` has loaded."""
    program = (
        "import importlib, json, sys\n"
        f"for name in {after!r}: importlib.import_module(name)\n"
        "before = set(sys.modules)\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


ALLOWED = {"jax", "jaxlib", "flax", "numpy", "rml_jax", *sys.stdlib_module_names}
ARRAYS = [name for name in MODULES if name.partition(".")[0] in ("ops", "losses", "models")]


def test_modules_of_arrays_load_jax_flax_and_numpy_only():
    added = loaded_by(*(f"rml_jax.{name}" for name in ARRAYS), after=("jax", "flax.nnx", "numpy"))
    assert added - ALLOWED == set()


@pytest.mark.parametrize("module", ARRAYS)
def test_modules_of_arrays_name_jax_flax_and_numpy_only(module):
    """What flax happens to load, such as optax, is no more theirs than what it does not."""
    found = set()
    for node in ast.parse(MODULES[module].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.partition(".")[0])
    assert found - ALLOWED == set()


def test_the_configuration_needs_no_library_of_arrays_or_images():
    added = loaded_by("rml_jax.config", "rml_jax.variants")
    assert "ml_collections" in added
    assert not added & {"jax", "flax", "PIL", "pycocotools", "simplejpeg", "grain", "optax", "orbax"}
