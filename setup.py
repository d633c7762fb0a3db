"""The packages to install; everything else is in pyproject.toml.

The experiments in configs/ become rml_jax/configs/, so that `--config=digits` works without a checkout.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["rml_jax*"]), "rml_jax.configs"],
    package_dir={"rml_jax.configs": "configs"},
)
