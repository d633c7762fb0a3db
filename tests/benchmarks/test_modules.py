"""Every benchmark and experiment can be imported: most of them run for minutes and have no other test."""

import importlib
import pkgutil

import pytest

import benchmarks
import experiments

MODULES = [
    module.name
    for package in (benchmarks, experiments)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_module_is_imported(name):
    importlib.import_module(name)
