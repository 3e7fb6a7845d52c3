"""What a compiled program does in one call: what it reads, writes and sends.

Read from XLA's text of it, as no interface gives it: the cost analysis counts the body of a loop
once.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

_BYTES = {"pred": 1, "c64": 8, "c128": 16}
_SHAPE = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\((.*)$")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:body|to_apply|calls|called_computations)=\{?%?([\w.\-]+)")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}")
_IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_BRACKET = re.compile(r"[()]")
_SLICES = ("dynamic-slice", "slice", "gather")
_ON_CHIP = re.compile(r"S\([1-9]")  # a memory space that is not the chip's main one
# These name what is there already.
_FREE = {
    *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional"),
    *("call", "after-all", "partition-id", "replica-id", "opt-barrier", "domain"),
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of exchange between devices along some axes of the mesh."""

    kind: str
    axes: tuple[str, ...]
    group: int  # devices that exchange
    count: int  # a call of the program
    bytes: float  # of a device's arrays, all of them: what it has before, or all-gather: after
    largest: float  # of one of them

    @property
    def sent(self) -> float:
        """Bytes that a device sends at least, on a ring."""
        share = (self.group - 1) / self.group
        return self.bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(
            self.kind, share
        )

    def together(self, axes: Mapping[str, int], node: int) -> int:
        """How many of a group are in one node of so many devices, in the mesh's order; 0: all."""
        grid = np.arange(math.prod(axes.values())).reshape(tuple(axes.values()))
        one = grid[tuple(slice(None) if name in self.axes else 0 for name in axes)].ravel()
        return int(np.sum(one // node == one[0] // node)) if node else self.group


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Of one device in one call."""

    memory: float  # bytes read from and written to main memory
    collectives: tuple[Collective, ...]


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    rest: str  # operands and attributes
    is_root: bool

    @functools.cached_property
    def operands(self) -> list[str]:
        depth = 0
        for bracket in _BRACKET.finditer(self.rest):
            depth += 1 if bracket.group() == "(" else -1
            if depth < 0:
                return re.findall(r"%([\w.\-]+)", self.rest[: bracket.start()])
        return []


_Bodies = Mapping[str, list[_Instruction]]


def traffic(text: str, axes: Mapping[str, int]) -> Traffic:
    """Of a program's text; `axes` are those of its mesh, with their sizes, in order.

    A fusion reads of an array what it slices from it. A loop counts once where the text does not
    tell how often it goes round.
    """
    computations = dict(_computations(text))
    entry = next(name for name, (is_entry, _) in computations.items() if is_entry)
    memory = 0.0
    found: dict[tuple, list[float]] = collections.defaultdict(list)
    bodies = {name: body for name, (_, body) in computations.items()}
    for times, name in _executed(entry, bodies):
        shapes = {each.name: each.shape for each in bodies[name]}
        for each in bodies[name]:
            for kind, rest, size in _exchanged(each, shapes, bodies):
                within, group = _group(rest, axes)
                found[kind, within, group] += [
                    size * group if kind == "all-gather" else size
                ] * times
            if each.opcode not in _FREE and not each.opcode.endswith("-done"):
                memory += times * _moved(each, shapes, bodies)
    collectives = tuple(
        Collective(kind, within, group, len(sizes), sum(sizes), max(sizes))
        for (kind, within, group), sizes in sorted(found.items())
        if group > 1
    )
    return Traffic(memory, collectives)


def _exchanged(
    each: _Instruction, shapes: Mapping[str, str], bodies: _Bodies
) -> Iterator[tuple[str, str, float]]:
    """Kind, attributes and bytes of operands of an exchange, and of those within a fusion."""
    kind = each.opcode.removesuffix("-start")
    if kind in _COLLECTIVES:
        yield kind, each.rest, sum(_size(shapes[name]) for name in each.operands if name in shapes)
    elif each.opcode == "fusion" and (called := _called(each, bodies)):
        inside = {part.name: part.shape for part in called}
        for part in called:
            for kind, rest, size in _exchanged(part, inside, bodies):
                # TPU's form of it: the sum over all, of which a device cuts out its part.
                scattered = kind == "all-reduce" and "scatter" in each.rest
                yield "reduce-scatter" if scattered else kind, rest, size


def _computations(text: str) -> Iterator[tuple[str, tuple[bool, list[_Instruction]]]]:
    body: list[_Instruction] = []
    name, is_entry = "", False
    for line in text.splitlines():
        if not line.startswith(" "):
            if head := _COMPUTATION.match(line):
                is_entry, name, body = bool(head.group(1)), head.group(2), []
            elif line == "}" and name:  # other lines go on with attributes of kernels
                yield name, (is_entry, body)
                name = ""
        elif name and (found := _INSTRUCTION.match(line)):
            root, own, shape, opcode, rest = found.groups()
            body.append(_Instruction(own, shape, opcode, rest, bool(root)))


def _executed(name: str, bodies: _Bodies, times: int = 1) -> Iterator[tuple[int, str]]:
    """How often each computation runs on its own, not as part of a fusion or reduction."""
    yield times, name
    for each in bodies[name]:
        if each.opcode == "while":
            body = re.search(r"body=%?([\w.\-]+)", each.rest)
            if body and body.group(1) in bodies:
                yield from _executed(body.group(1), bodies, times * _passes(each, bodies))
        elif each.opcode == "conditional":
            # One of them runs; the longest is taken.
            names = [
                name.strip().removeprefix("%")
                for listed in _BRANCHES.findall(each.rest)
                for name in (listed[0].split(",") if listed[0] else [listed[1]])
            ]
            branches = [name for name in names if name in bodies]
            if branches:
                longest = max(branches, key=lambda name: len(bodies[name]))
                yield from _executed(longest, bodies, times)
        elif each.opcode in ("call", "async-start"):
            called = _CALLED.search(each.rest)
            if called and called.group(1) in bodies:
                yield from _executed(called.group(1), bodies, times)


def _passes(loop: _Instruction, bodies: _Bodies) -> int:
    """How often a loop goes round: what it says, or the number that its condition compares with."""
    if known := re.search(r'known_trip_count[^}]*?"n":"(\d+)"', loop.rest):
        return int(known.group(1))
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    numbers = [
        int(number.group(1))
        for each in (bodies.get(condition.group(1), []) if condition else [])
        if each.opcode == "constant" and (number := re.match(r"(\d+)\)", each.rest))
    ]
    return max(numbers, default=1)


def _moved(each: _Instruction, shapes: Mapping[str, str], bodies: _Bodies) -> float:
    """Bytes that an instruction reads and writes."""
    if each.opcode == "async-start":
        return 0.0  # what it calls is counted
    if each.opcode.endswith("-start"):  # copies to or from memory on the chip, and collectives
        sent = sum(_size(shapes[name]) for name in each.operands if name in shapes)
        return 2.0 * sent if each.opcode.removesuffix("-start") in _COLLECTIVES else sent
    if each.opcode in _SLICES:
        return 2.0 * _size(each.shape)
    if each.opcode == "dynamic-update-slice":
        return 2.0 * _size(shapes.get(each.operands[1], ""))
    read = [_size(shapes.get(name, "")) for name in each.operands]
    written = _size(each.shape)
    if each.opcode == "fusion" and (called := _called(each, bodies)):
        read = [min(size, _read(called, i, bodies)) for i, size in enumerate(read)]
        for part in called:
            # Written in place: what lies around it is not touched.
            if part.opcode == "dynamic-update-slice" and _size(part.shape) <= written:
                inside = {one.name: one.shape for one in called}
                written += _size(inside.get(part.operands[1], "")) - _size(part.shape)
    return sum(read) + written


def _read(fused: Sequence[_Instruction], number: int, bodies: _Bodies) -> float:
    """Bytes that a fusion reads of its operand of this number, at most all of it."""
    parameters = (each for each in fused if each.opcode == "parameter")
    return sum(
        _used(each.name, fused, bodies) for each in parameters if each.rest.startswith(f"{number})")
    )


def _used(name: str, fused: Sequence[_Instruction], bodies: _Bodies) -> float:
    """Bytes that are read of an array within a fusion; infinity for all of it."""
    total = 0.0
    for each in fused:
        for place, operand in enumerate(each.operands):
            if operand != name:
                continue
            if each.opcode in _SLICES and place == 0:
                total += _size(each.shape)
            elif each.opcode == "dynamic-update-slice" and place == 0:
                total += 0.0
            elif each.opcode == "bitcast":
                total += _used(each.name, fused, bodies)
            elif each.opcode == "fusion" and (called := _called(each, bodies)):
                total += _read(called, place, bodies)
            else:
                return math.inf
    return total


def _called(each: _Instruction, bodies: _Bodies) -> list[_Instruction] | None:
    found = _CALLED.search(each.rest)
    return bodies.get(found.group(1)) if found else None


def _size(shape: str) -> float:
    """Bytes of an array, or of all of a tuple, in the device's main memory."""
    total = 0.0
    for kind, dimensions, layout in _SHAPE.findall(shape):
        if layout and _ON_CHIP.search(layout):
            continue
        bits = re.search(r"\d+", kind)
        one = _BYTES.get(kind, int(bits.group()) / 8 if bits else 0)
        total += one * math.prod(int(size) for size in dimensions.split(",") if size)
    return total


def _group(rest: str, axes: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """The axes along which devices exchange, and how many devices do."""
    count = math.prod(axes.values())
    group = _first_group(rest, count)
    grid = np.arange(count).reshape(tuple(axes.values()))
    places = np.argwhere(np.isin(grid, group))
    within = tuple(
        name for name, place in zip(axes, places.T, strict=True) if len(set(place.tolist())) > 1
    )
    return within, len(group)


def _first_group(rest: str, devices: int) -> list[int]:
    """Numbers of the devices of one of the groups, in whichever form they are written."""
    if named := _MESH.search(rest):
        sizes, kept = [], []  # of the program's own mesh, whose axes may be parts of ours
        written = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named.group(3))
        for name, size in re.findall(r"'([^']+)'=(\d+)", named.group(1)):
            whole = [part for part in written if part[0] == name]
            before, own = 1, 1
            if whole and whole[0][1]:
                before, own = int(whole[0][1]), int(whole[0][2])
            elif whole:
                own = int(size)
            sizes += [before, own, int(size) // before // own]
            kept += [slice(1), slice(None) if whole else slice(1), slice(1)]
        numbers = np.arange(math.prod(sizes))
        if order := named.group(2):
            iota = _IOTA.fullmatch(order)
            numbers = _numbered(iota) if iota else np.array(re.findall(r"\d+", order), int)
        return numbers.reshape(sizes)[tuple(kept)].ravel().tolist()
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return [int(number) for number in listed.group(1).split(",") if number]
    if rest_of := re.search(r"replica_groups=(?=\[)", rest):
        if iota := _IOTA.match(rest, rest_of.end()):
            return _numbered(iota)[: int(iota.group(1).rpartition(",")[2])].tolist()
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        return [int(pairs.group(1)), int(pairs.group(2))]
    return list(range(devices))


def _numbered(iota: re.Match) -> np.ndarray:
    """Devices in the order that [groups,size]<=[shape]T(axes) or [shape]T(axes) gives them."""
    shape, counted, order = iota.groups()
    numbers = np.arange(math.prod(int(size) for size in (counted or shape).split(",")))
    numbers = numbers.reshape([int(size) for size in (counted or shape).split(",")])
    if order:
        numbers = numbers.transpose([int(axis) for axis in order.split(",")])
    return numbers.ravel()
