"""Where the time of one training step goes, by operation and by the function of ours that asked for it.

    python -m benchmarks.profile [--json FILE] [--variant b1] [--batch 2] [--crop 320] [--dtype float32] [--top 15]

JAX's profiler says how long each instruction of the compiled program ran, the program's metadata which line of Python
it comes from. A fusion counts for its last operation. Times are an instruction's own, without those inside of a loop
or a call; where two run side by side, both count, so that the sum can exceed the step's time.
"""

import argparse
import collections
import dataclasses
import re
import tempfile
import time
from pathlib import Path

import jax

from benchmarks import measure
from benchmarks.contestants import ours

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\(")
_OURS = "/rml_jax/"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a compiled program.

    Attributes:
      operation: its name in XLA, such as "fusion", and after a slash that of JAX's operation.
      shape: of its result.
      function: the innermost function of rml_jax that it comes from, "" if none.
      backward: whether it belongs to a gradient.
    """

    operation: str
    shape: str
    function: str
    backward: bool


def main():
    parser = argparse.ArgumentParser("python -m benchmarks.profile")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--variant", default="b1")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--crop", type=int, default=320)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--top", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3)
    chosen = parser.parse_args()
    settings = {name: value for name, value in vars(chosen).items() if name != "json"}
    environment = measure.environment()
    contestant = ours.Contestant(chosen.variant, chosen.batch, chosen.crop, chosen.dtype)
    program = instructions(contestant.program())
    for _ in range(2):
        contestant.step()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        with jax.profiler.trace(folder):
            for _ in range(chosen.steps):
                contestant.step()
        seconds = (time.perf_counter() - begin) / chosen.steps
        times = own_times(next(Path(folder).rglob("*.xplane.pb")))
    per_step = {name: spent / chosen.steps for name, spent in times.items()}
    result = {
        "environment": environment,
        "settings": settings,
        "step_milliseconds": 1e3 * seconds,
        "operations": _table(_by_operation(per_step, program), chosen.top),
        "functions": _table(_by_function(per_step, program), chosen.top),
    }
    measure.write_json(result, chosen.json)


def own_times(path):
    """How long each instruction ran in a trace, all runs of it together.

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
    """Nanoseconds by name of events (name, start, end) of one thread, less those of the events inside of them."""
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
    """What a compiled program's text says of its instructions.

    Args:
      text: of `jax.stages.Compiled.as_text()`.

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
        """MODULE.FUNCTION of ours in which a frame or one of its callers lies, "" if none does."""
        while frame in self._frames:
            # A parent's number counts from 2, 1 is none: protobuf has 0 for what isn't there.
            place, parent = self._frames[frame]
            frame = parent - 1
            file, function = self._places[place]
            if _OURS in self._files[file]:
                module = self._files[file].rpartition(_OURS)[2].removesuffix(".py").replace("/", ".")
                return f"{module}.{self._functions[function].replace('.<locals>', '')}"
        return ""


def _table_at(text, title, pattern):
    """A table from a row's number to the rest of its groups, one or a list; it ends with an empty line."""
    _, _, table = text.partition(f"\n{title}\n")
    rows = map(re.compile(pattern).match, table.partition("\n\n")[0].split("\n"))
    groups = ([int(x) if x.isdecimal() else x for x in row.groups()] for row in rows if row)
    return {number: rest if len(rest) > 1 else rest[0] for number, *rest in groups}


def _by_operation(times, program):
    """(milliseconds, description) of each kind of instruction: the same operation, shape and function."""
    sums, counts = collections.Counter(), collections.Counter()
    for name, spent in times.items():
        if name in program:
            sums[program[name]] += spent
            counts[program[name]] += 1
    return [
        (spent, {"count": counts[kind], **dataclasses.asdict(kind)}) for kind, spent in sums.most_common()
    ]


def _by_function(times, program):
    sums = collections.Counter()
    for name, spent in times.items():
        if name in program:
            sums[program[name].function, program[name].backward] += spent
    return [
        (spent, {"function": function, "backward": backward})
        for (function, backward), spent in sums.most_common()
    ]


def _table(rows, top):
    return [{"milliseconds": round(spent, 1), **description} for spent, description in rows[:top]]


if __name__ == "__main__":
    main()
