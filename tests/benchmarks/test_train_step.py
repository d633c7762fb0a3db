"""The benchmark of the training step: which times are compared."""

import pytest

from benchmarks.train_step import ratios


def test_ratios_compare_the_same_precision_and_the_best_of_both():
    found = ratios({"ours": 2.0, "eager": 3.0, "ours:mixed": 1.0, "eager:mixed": 1.5, "compile": 1.2})
    assert found == pytest.approx({"eager": 1.5, "eager:mixed": 1.5, "compile": 0.6, "best": 1.2})


def test_ratios_of_a_contestant_alone():
    assert ratios({"ours": 2.0}) == ratios({"eager": 2.0}) == {}
    assert ratios({"ours": 2.0, "eager:mixed": 1.0}) == {"best": 0.5}
