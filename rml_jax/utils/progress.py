"""A progress line with rate and time left."""

import collections
import sys
import time

# Seconds between lines where the output is no terminal (a log file, CI).
_PLAIN_INTERVAL = 15.0
# The rate is averaged over this many seconds, since the phases of a run differ in speed.
_RATE_WINDOW = 60.0


class Progress:
    """Prints the progress of a long task.

    On a terminal one line is rewritten; otherwise a line is printed every 15 seconds and at the end.

    Args:
      name: name of the task.
      total: number of units.
      unit: name of the units.
      start: units done before, in a resumed run; they don't count in the rate.
      stream: file to write to; standard error by default.
    """

    def __init__(self, name, total, unit, start=0, stream=None):
        self._name, self._total, self._unit = name, total, unit
        self._stream = stream or sys.stderr
        self._last = time.monotonic()
        self._history = collections.deque([(self._last, start)])

    def update(self, done, detail=""):
        """Shows that `done` units are done, followed by `detail`."""
        now, finished = time.monotonic(), done >= self._total
        interval = 0.2 if self._stream.isatty() else _PLAIN_INTERVAL
        if now - self._last < interval and not finished:
            return
        self._last = now
        rate = self._rate(now, done)
        left = "" if finished else f", {format_seconds((self._total - done) / max(rate, 1e-9))} left"
        line = f"{self._name} {done}/{self._total} {self._unit}, {rate:.3g}/s{left}"
        line = f"{line}  {detail}" if detail else line
        if self._stream.isatty():
            self._stream.write(f"\r\x1b[K{line}" + ("\n" if finished else ""))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def _rate(self, now, done):
        self._history.append((now, done))
        while len(self._history) > 2 and now - self._history[1][0] >= _RATE_WINDOW:
            self._history.popleft()
        then, before = self._history[0]
        return (done - before) / max(now - then, 1e-9)


def format_seconds(seconds):
    """Formats a duration as h:mm:ss or m:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
