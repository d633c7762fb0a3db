"""Counting what an optimised XLA program does, from its text."""

import dataclasses
import functools
import re

# Instructions that move nothing by themselves. The ends of asynchronous copies to a TPU's on-chip memory are left
# out as well (docs/accelerators.md, Bytes).
_FREE = {"parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "after-all"}
_FREE |= {"partition-id", "replica-id"}
_FREE |= {f"{kind}-{part}" for kind in ("copy", "slice", "async") for part in ("start", "update", "done")}
_CALLS = ("while", "conditional", "call")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")


@dataclasses.dataclass(frozen=True)
class Counts:
    """What one execution of a program does on one device, loops counted.

    Attributes:
      bytes_moved: bytes of operands and results in device memory, of every instruction outside fusions.
      bytes_sliced: the same, but of an operand that is only sliced, the slices, and of an array that is updated in
        place, the update.
      collectives: kind, such as "all-reduce" -> {"count", "bytes" of the results}.
    """

    bytes_moved: int
    bytes_sliced: int
    collectives: dict


@dataclasses.dataclass(frozen=True)
class _Instruction:
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool


class UnknownTrips(ValueError):
    """The program has a loop whose number of rounds its text does not tell."""


def count(text):
    """Counts the bytes and the collectives of a program.

    A loop's body counts as often as it runs, a conditional as its most expensive branch. Arrays in a TPU's on-chip
    memory do not count.

    Args:
      text: of the optimised program (`jax.stages.Compiled.as_text`).

    Returns:
      Counts.

    Raises:
      UnknownTrips: if the text does not tell the rounds of a loop.
    """
    computations, entry = _parse(text)

    @functools.cache
    def visit(name):
        moved = sliced = 0
        collectives = {}
        for one in computations[name].values():
            if one.opcode in _CALLS:
                below = max((visit(called) for called in _called(one)), key=lambda counts: counts.bytes_moved)
                times = _trips(one, computations) if one.opcode == "while" else 1
                moved, sliced = moved + times * below.bytes_moved, sliced + times * below.bytes_sliced
                for kind, (number, size) in below.collectives.items():
                    _add(collectives, kind, times * number, times * size)
            elif one.opcode not in _FREE:
                arrays = _arrays(one, computations[name], computations)
                moved += sum(whole for whole, _ in arrays)
                sliced += sum(min(pair) for pair in arrays)
                kind = one.opcode.removesuffix("-start")
                if kind in _COLLECTIVES:
                    _add(collectives, kind, 1, array_bytes(one.shape))
        return Counts(moved, sliced, collectives)

    counts = visit(entry)
    kinds = {kind: {"count": number, "bytes": size} for kind, (number, size) in counts.collectives.items()}
    return dataclasses.replace(counts, collectives=kinds)


def _arrays(one, computation, computations):
    """Returns pairs of bytes, whole and sliced, of the result and of each operand of an instruction."""
    inside, names, users, root = computation, one.operands, [one], one
    if one.opcode == "fusion":
        inside = computations[re.search(r"calls=%?([\w.\-]+)", one.attributes)[1]]
        names = [name for name, other in inside.items() if other.opcode == "parameter"]
        names.sort(key=lambda name: int(re.search(r"\d+", inside[name].attributes)[0]))
        users, root = inside.values(), next(other for other in inside.values() if other.is_root)
    result = array_bytes(one.shape)
    in_place = root.opcode == "dynamic-update-slice" and root.operands[1] in inside
    pairs = [(result, array_bytes(inside[root.operands[1]].shape) if in_place else result)]
    for operand, name in zip(one.operands, names, strict=True):
        size = array_bytes(computation[operand].shape) if operand in computation else 0
        pairs.append((size, sum(_read_bytes(user, name, size) for user in users if name in user.operands)))
    return pairs


def _read_bytes(user, name, size):
    """Returns the bytes that an instruction reads of an operand of some size."""
    if user.operands[0] != name or name in user.operands[1:]:
        return size
    if user.opcode in ("dynamic-slice", "slice", "gather"):
        return array_bytes(user.shape)
    return 0 if user.opcode == "dynamic-update-slice" else size


def array_bytes(shape):
    """Computes the bytes in device memory of an array or tuple.

    Args:
      shape: as in a program's text, such as "(bf16[2,3]{1,0}, f32[]{:S(1)})".

    Returns:
      int; arrays whose layout names another memory space, S(n), count 0.
    """
    total = 0
    for kind, lengths, layout in _ARRAY.findall(shape):
        if "S(" in layout and "S(0)" not in layout:
            continue
        size = functools.reduce(lambda a, b: a * int(b), filter(None, lengths.split(",")), 1)
        total += -(-size * _bits(kind) // 8)
    return total


def _bits(kind):
    """Returns the bits of a number, such as 16 of "bf16" and 8 of "f8e4m3fn"; 0 of tokens."""
    if kind == "pred":
        return 8
    digits = re.search(r"\d+", kind)
    return int(digits[0]) if digits else 0


def _add(collectives, kind, number, size):
    before = collectives.get(kind, (0, 0))
    collectives[kind] = before[0] + number, before[1] + size


def _parse(text):
    """Returns the instructions of every computation by name, and the entry's name."""
    computations, current, entry = {}, None, None
    for line in map(str.strip, text.splitlines()):
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current[found[2]] = _instruction(found[3], bool(found[1]))
    return computations, entry


def _instruction(text, is_root):
    """Parses what follows the name and the equals sign: SHAPE OPCODE(OPERANDS), ATTRIBUTES."""
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].strip()
    opcode, _, _ = rest.partition("(")
    begin = len(opcode)
    close = _closing(rest, begin)
    operands = re.findall(r"%([\w.\-]+)", rest[begin:close])
    # The number in `constant(5)` is what a loop's condition compares with, that in `parameter(0)` its place.
    attributes = rest[begin:] if opcode in ("constant", "parameter") else rest[close:]
    return _Instruction(shape, opcode, tuple(operands), attributes, is_root)


def _closing(text, begin):
    """Returns the index after the parenthesis that closes the one at `begin`."""
    depth = 0
    for index in range(begin, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index + 1
    return len(text)


def _called(one):
    """Returns the names of the computations that a loop's body, a conditional or a call runs."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
    if listed:
        return re.findall(r"[\w.\-]+", listed[1].replace("%", ""))
    return re.findall(r"(?:body|to_apply|true_computation|false_computation)=%?([\w.\-]+)", one.attributes)


def _trips(one, computations):
    """Returns the rounds of a loop: what the compiler notes, or the constant that its condition compares with."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', one.attributes):
        return int(noted[1])
    condition = re.search(r"condition=%?([\w.\-]+)", one.attributes)
    limits = [
        int(number[1])
        for other in computations.get(condition[1] if condition else "", {}).values()
        if other.opcode == "constant" and (number := re.match(r"\((\d+)\)", other.attributes))
    ]
    if len(limits) != 1:
        raise UnknownTrips("a loop's number of rounds is not in the program's text")
    return limits[0]
