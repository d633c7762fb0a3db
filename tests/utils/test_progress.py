"""The progress line, with a clock of our own."""

import io

import pytest

from rml_jax.utils import progress
from rml_jax.utils.progress import Progress, format_seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Callable that moves the module's clock on by some seconds."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    return advance


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (9, "0:09"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599, "59:59"),
        (3599.9, "1:00:00"),
        (3661, "1:01:01"),
        (90000, "25:00:00"),
    ],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_plain_stream_gets_a_line_every_15_seconds_and_one_at_the_end(clock):
    stream = io.StringIO()
    line = Progress("train", 100, "steps", stream=stream)
    for done in range(1, 101):
        clock(0.5)
        line.update(done, f"loss {done}")
    assert stream.getvalue().splitlines() == [
        "train 30/100 steps, 2/s, 0:35 left  loss 30",
        "train 60/100 steps, 2/s, 0:20 left  loss 60",
        "train 90/100 steps, 2/s, 0:05 left  loss 90",
        "train 100/100 steps, 2/s  loss 100",
    ]
    assert stream.getvalue().endswith("\n")


def test_short_work_is_reported_once_on_a_plain_stream(clock):
    stream = io.StringIO()
    line = Progress("eval", 3, "images", stream=stream)
    for done in (1, 2, 3):
        clock(0.1)
        line.update(done)
    assert stream.getvalue() == "eval 3/3 images, 10/s\n"


def test_terminal_rewrites_one_line(clock):
    stream = Terminal()
    line = Progress("train", 4, "steps", stream=stream)
    for done in range(1, 5):
        clock(1)
        line.update(done)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    # Each line goes back to the start of the row and clears what is there.
    assert text.split("\r\x1b[K") == [
        "",
        "train 1/4 steps, 1/s, 0:03 left",
        "train 2/4 steps, 1/s, 0:02 left",
        "train 3/4 steps, 1/s, 0:01 left",
        "train 4/4 steps, 1/s\n",
    ]


def test_terminal_is_not_flooded(clock):
    stream = Terminal()
    line = Progress("train", 1001, "steps", stream=stream)
    for done in range(1, 1001):
        clock(0.001)
        line.update(done)
    assert 1 <= stream.getvalue().count("\r") <= 5


def test_resumed_work_counts_only_what_was_done_since(clock):
    stream = io.StringIO()
    line = Progress("train", 1000, "steps", start=900, stream=stream)
    clock(20)
    line.update(940)
    assert stream.getvalue() == "train 940/1000 steps, 2/s, 0:30 left\n"


def test_rate_is_that_of_the_last_minute(clock):
    stream = io.StringIO()
    line = Progress("train", 1000, "steps", stream=stream)
    for done in range(100, 600, 100):
        clock(20)
        line.update(done)
    for done in range(520, 580, 20):
        clock(20)
        line.update(done)
    assert stream.getvalue().splitlines()[4] == "train 500/1000 steps, 5/s, 1:40 left"
    assert stream.getvalue().splitlines()[-1] == "train 560/1000 steps, 1/s, 7:20 left"


def test_lines_go_to_standard_error(clock, capsys):
    line = Progress("eval", 1, "images")
    clock(1)
    line.update(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "eval 1/1 images, 1/s\n"
