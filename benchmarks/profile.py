"""Time of one training step by operation and by the function of rml_jax that it comes from.

    python -m benchmarks.profile [--json FILE] [--variant b1] [--batch 2] [--crop 320] [--dtype float32] [--top 15]

JAX's profiler gives the time of each instruction of the compiled program, the program's metadata its line of Python.
A fusion is attributed to its last operation. Times are an instruction's own, without the instructions inside a loop
or a call. Instructions that run concurrently are all counted, so the sum can exceed the step's time.
"""

import collections
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import measure
from benchmarks.contestants import ours

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\(")
_OURS = "/rml_jax/"


class Instruction(NamedTuple):
    """An instruction of a compiled program."""

    operation: str  # its name in XLA, such as "fusion", and after a slash that of JAX's operation
    shape: str  # of its result
    function: str  # the innermost function of rml_jax that it comes from, "" if none
    backward: bool  # whether it belongs to a gradient


def main():
    chosen, result = measure.start(**measure.STEP, top=15, steps=3)
    contestant = ours.Contestant(chosen.variant, chosen.batch, chosen.crop, chosen.dtype)
    program = instructions(contestant.program())
    for _ in range(2):
        contestant.step()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            seconds = [measure.timed(contestant.step) for _ in range(chosen.steps)]
        times = own_times(next(Path(folder).rglob("*.xplane.pb")))
    per_step = {name: spent / chosen.steps for name, spent in times.items()}
    wall, cpu = np.mean(seconds, axis=0)
    result |= {"step_milliseconds": 1e3 * wall, "step_cpu_milliseconds": 1e3 * cpu}
    result["operations"] = _table(per_step, program, Instruction._fields, chosen.top)
    result["functions"] = _table(per_step, program, ("function", "backward"), chosen.top)
    measure.write_json(result, chosen.json)


def own_times(path):
    """Sums the time of each instruction in a trace.

    Args:
      path: pathlib.Path of the profiler's xplane.pb.

    Returns:
      Dict from the instruction's name to its milliseconds.
    """
    times = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            events = []
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if name:
                    events.append((name, event.start_ns, event.start_ns + event.duration_ns))
            times.update(_without_inner(events))
    return {name: nanoseconds / 1e6 for name, nanoseconds in times.items()}


def _without_inner(events):
    """Sums nanoseconds by name of events (name, start, end) of one thread, without the events nested in them."""
    times, open_events = collections.Counter(), []
    for name, start, end in sorted(events, key=lambda event: (event[1], -event[2])):
        while open_events and open_events[-1][1] <= start:
            open_events.pop()
        if open_events:
            times[open_events[-1][0]] -= end - start
        times[name] += end - start
        open_events.append((name, end))
    return times


def instructions(text):
    """Parses the instructions of a compiled program.

    Args:
      text: result of `jax.stages.Compiled.as_text()`.

    Returns:
      Dict from name to Instruction.
    """
    frames = _Frames(text)
    found = {}
    for line in text.splitlines():
        match = _INSTRUCTION.match(line)
        if match:
            name, shape, operation = match.groups()
            source = re.search(r'op_name="([^"]*)"', line)
            path = source[1] if source else ""
            frame = re.search(r"stack_frame_id=(\d+)", line)
            found[name] = Instruction(
                operation=f"{operation}/{path.rpartition('/')[2]}".rstrip("/"),
                shape=re.sub(r"\{[^}]*\}", "", shape),
                function=frames.innermost(int(frame[1])) if frame else "",
                backward="transpose(" in path,
            )
    return found


class _Frames:
    """The tables of Python's stack frames at the head of a program's text."""

    def __init__(self, text):
        self._files = _table_at(text, "FileNames", r'(\d+) "(.*)"')
        self._functions = _table_at(text, "FunctionNames", r'(\d+) "(.*)"')
        self._places = _table_at(text, "FileLocations", r"(\d+) \{file_name_id=(\d+) function_name_id=(\d+)")
        self._frames = _table_at(text, "StackFrames", r"(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)")

    def innermost(self, frame):
        """Returns MODULE.FUNCTION of rml_jax in which a frame or one of its callers lies, "" if none does."""
        while frame in self._frames:
            # Parents are numbered from 2, and 1 means none.
            place, parent = self._frames[frame]
            frame = parent - 1
            file, function = self._places[place]
            if _OURS in self._files[file]:
                module = self._files[file].rpartition(_OURS)[2].removesuffix(".py").replace("/", ".")
                return f"{module}.{self._functions[function].replace('.<locals>', '')}"
        return ""


def _table_at(text, title, pattern):
    """Returns a table that ends at an empty line: row number -> the rest of its groups, one or a list."""
    _, _, table = text.partition(f"\n{title}\n")
    rows = map(re.compile(pattern).match, table.partition("\n\n")[0].split("\n"))
    groups = ([int(x) if x.isdecimal() else x for x in row.groups()] for row in rows if row)
    return {number: rest if len(rest) > 1 else rest[0] for number, *rest in groups}


def _table(times, program, fields, top):
    """Sums the times of instructions with equal fields. Returns the longest sums as dicts."""
    sums, counts = collections.Counter(), collections.Counter()
    for name, milliseconds in times.items():
        if name in program:
            kind = tuple(getattr(program[name], field) for field in fields)
            sums[kind] += milliseconds
            counts[kind] += 1
    return [
        {"milliseconds": round(total, 1), "count": counts[kind], **dict(zip(fields, kind, strict=True))}
        for kind, total in sums.most_common(top)
    ]


if __name__ == "__main__":
    main()
