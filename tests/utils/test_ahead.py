"""Threads that work ahead: order, limits and errors."""

import threading
import time

import pytest

from rml_jax.utils.ahead import map_ahead


def test_results_come_in_order_whichever_is_done_first():
    def slow_at_first(number):
        time.sleep(0.02 if number == 0 else 0)
        return number * number

    assert list(map_ahead(slow_at_first, range(7), count=3)) == [0, 1, 4, 9, 16, 25, 36]
    assert list(map_ahead(slow_at_first, [], count=3)) == []


def test_calls_run_beside_the_caller():
    begun = [threading.Event() for _ in range(2)]
    results = map_ahead(lambda number: begun[number].set(), range(2), count=1)
    next(results)
    assert begun[1].wait(timeout=10), "the second call has begun although its result is not asked for"


def test_no_more_items_are_taken_than_may_wait():
    taken = []

    def items():
        for number in range(10):
            taken.append(number)
            yield number

    results = map_ahead(lambda number: number, items(), count=3)
    assert next(results) == 0
    assert taken == [0, 1, 2, 3]


def test_error_comes_in_its_place_and_ends_the_work():
    called = []

    def fail_at_two(number):
        called.append(number)
        if number == 2:
            raise OSError("disk full")
        return number

    results = map_ahead(fail_at_two, range(100), count=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="disk full"):
        next(results)
    assert len(called) <= 5


def test_error_of_the_items_is_raised_after_what_came_before():
    def items():
        yield 1
        raise KeyError("gone")

    results = map_ahead(lambda number: number + 1, items(), count=4)
    assert next(results) == 2
    with pytest.raises(KeyError):
        next(results)
