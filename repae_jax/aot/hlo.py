"""The traffic of a compiled program over links and to memory, counted from its HLO text."""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping

from repae_jax.aot.parts import part_of

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_SHAPE = re.compile(r"\b(pred|[a-z]+[0-9]+(?:e[0-9]m[0-9]\w*)?)\[([0-9,]*)\](\{[^}]*\})?")
_OPERAND = re.compile(r"%([\w.\-]+)(?:#(\d+))?")
_CALLED = re.compile(
    r"(?:to_apply|calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)"?\}')
_GROUPS = re.compile(r"replica_groups=\{\{([0-9,]+)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_SCRATCH = re.compile(r", [su]8\[\d+\](\{\d+\})?\)$")
COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
)  # fmt: skip
# Operations that move no data themselves.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation."""

    name: str
    shape: str
    operation: str
    rest: str  # operands and attributes


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes that one device moves in one run of the program.

    Attributes:
      links: kind of collective -> bytes that a device receives from others.
      memory: bytes read from and written to the device's memory.
      movers: part of the step (see `part_of`) -> its share of `memory`.
    """

    links: Mapping[str, float]
    memory: float
    movers: Mapping[str, float]


def measure_traffic(text: str, devices: int) -> Traffic:
    """Count a compiled program's traffic; a loop with a fixed trip count is multiplied by it.

    As in a ring, a device receives n - 1 of n parts in an all-gather, a reduce-scatter and an
    all-to-all over n devices, and twice that in an all-reduce. Memory traffic is the bytes that
    instructions outside of fusions read and write. Slices and updates in place count only the part
    that moves, and on-chip memory does not count.

    Args:
      text: `compiled.as_text()`.
      devices: number of devices of the program, for collectives without groups.
    """
    computations, entry = _parse(text)
    links: Counter = Counter()
    movers: Counter = Counter()
    for name, runs in _runs(computations, entry).items():
        instructions = {i.name: i for i in computations[name]}
        for instruction in computations[name]:
            kind = _collective(instruction)
            if kind:
                scattered = name.startswith("all-reduce-scatter")
                links[kind if not scattered else "reduce-scatter"] += runs.count * _received(
                    kind, instruction, devices, scattered
                )
            if not runs.fused and instruction.operation not in _FREE:
                moved = _moved(instruction, instructions, computations)
                movers[part_of(instruction.rest)] += runs.count * moved
    return Traffic(dict(links), sum(movers.values()), dict(movers))


@dataclasses.dataclass
class _Runs:
    count: float = 0.0
    fused: bool = False


def _parse(text):
    """Parse the text; returns {computation: instructions} and the entry computation's name."""
    computations: dict[str, list[Instruction]] = {}
    entry = current = None
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head and "=" not in line.split("(")[0]:
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(Instruction(*found.groups()))
    return computations, entry


def _runs(computations, entry):
    """For each computation, how often it runs and whether it is part of a fusion."""
    runs = {name: _Runs() for name in computations}

    def visit(name, count, fused):
        runs[name].count += count
        runs[name].fused = fused
        for instruction in computations[name]:
            turns = _turns(instruction, computations) if instruction.operation == "while" else 1
            inside = fused or instruction.operation not in (
                "while", "conditional", "call", "async-start",
            )  # fmt: skip
            for other in _called(instruction):
                if other in computations:
                    visit(other, count * turns, inside)

    visit(entry, 1.0, False)
    return runs


def _called(instruction):
    called = _CALLED.findall(instruction.rest)
    for branches in _BRANCHES.findall(instruction.rest):
        called += [branch.strip().lstrip("%") for branch in branches.split(",")]
    return called


def _turns(instruction, computations):
    """A loop's trip count: the annotated one, or the constant in its condition."""
    if known := _TRIPS.search(instruction.rest):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", instruction.rest)[1]
    constants, waiting = [], [condition]
    while waiting:
        for inner in computations.get(waiting.pop(), ()):
            if inner.operation == "constant" and (found := re.match(r"(\d+)\)", inner.rest)):
                constants.append(int(found[1]))
            waiting += _called(inner)
    return max(constants, default=1)


# --- memory ---


def _moved(instruction, instructions, computations):
    """Bytes that an instruction outside of a fusion reads and writes."""
    if instruction.operation == "async-start" or instruction.operation.endswith("-done"):
        return 0.0  # the asynchronous computation's own instructions are counted
    if instruction.operation.endswith("-start"):  # its result also contains its operands
        return bytes_of(instruction.shape)
    operands = _operand_shapes(instruction, instructions)
    if instruction.operation == "fusion":
        reads, written = _of_fusion(instruction, computations)
        for index, shape in enumerate(operands):
            whole = bytes_of(shape)
            written += min(whole, reads.get(index, whole))
        return written
    if instruction.operation in ("slice", "dynamic-slice"):
        return 2 * bytes_of(instruction.shape)
    if instruction.operation == "dynamic-update-slice":
        return 2 * bytes_of(operands[1])
    return sum(map(bytes_of, operands)) + bytes_of(_without_scratch(instruction))


def _without_scratch(instruction):
    """An instruction's shape without the scratch space in the results of cuBLAS and cuDNN."""
    if 'custom_call_target="__cu' not in instruction.rest:
        return instruction.shape
    return _SCRATCH.sub(")", instruction.shape)


def _of_fusion(fusion, computations):
    """({operand: bytes read} for operands that are read partially, bytes written) of a fusion."""
    fused = computations.get(_called(fusion)[0], [])
    by_name = {instruction.name: instruction for instruction in fused}
    users: dict[str, list[tuple[Instruction, int]]] = {name: [] for name in by_name}
    for instruction in fused:
        for position, name in enumerate(_operands(instruction)):
            if name in users:
                users[name].append((instruction, position))

    def read(name):
        """Bytes read of a value if all its users take slices; else None."""
        total = 0.0
        for user, position in users[name]:
            if user.operation == "bitcast":
                part = read(user.name)
            elif user.operation == "fusion":  # fusions nest
                part = _of_fusion(user, computations)[0].get(position)
            else:
                part = _slice_read(user, position)
            if part is None:
                return None
            total += part
        return total if users[name] else None

    def origin(instruction):
        while instruction.operation == "bitcast":
            instruction = by_name[_operands(instruction)[0]]
        return instruction

    reads = {}
    for instruction in fused:
        if instruction.operation == "parameter":
            part = read(instruction.name)
            if part is not None:
                reads[int(instruction.rest.split(")")[0])] = part
    roots = [fused[-1]] if fused else []
    if roots and roots[0].operation == "tuple":
        roots = [by_name[name] for name in _operands(roots[0])]
    written = bytes_of(fusion.shape)
    for root in map(origin, roots):
        if root.operation == "dynamic-update-slice":
            written += bytes_of(by_name[_operands(root)[1]].shape) - bytes_of(root.shape)
    return reads, max(written, 0.0)


def _slice_read(user, position):
    """Bytes that a slice or an update in place reads of its first operand; None for other users."""
    if position == 0 and user.operation in ("slice", "dynamic-slice"):
        return bytes_of(user.shape)
    if position == 0 and user.operation == "dynamic-update-slice":
        return 0.0
    return None


def _operands(instruction):
    return [name for name, _ in _operand_parts(instruction)]


def _operand_parts(instruction):
    """(name, index in a tuple or "") of each operand: %x#3 is element 3 of x."""
    return _OPERAND.findall(instruction.rest.split("), ")[0])


def _operand_shapes(instruction, instructions):
    """The operands' shapes; "" for an unknown operand."""
    shapes = []
    for name, part in _operand_parts(instruction):
        shape = instructions[name].shape if name in instructions else ""
        if part and shape:
            shape = [match[0] for match in _SHAPE.finditer(shape)][int(part)]
        shapes.append(shape)
    return shapes


# --- links ---


def _collective(instruction):
    operation = instruction.operation.removesuffix("-start")
    return operation if operation in COLLECTIVES else None


def _received(kind, instruction, devices, scattered):
    """Bytes that one device receives in a collective."""
    group = _group_size(instruction.rest, devices)
    shapes = [bytes_of(match[0], on_chip=True) for match in _SHAPE.finditer(instruction.shape)]
    if instruction.operation.endswith("-start") and kind in ("all-gather", "collective-permute"):
        whole = max(shapes)  # the others are operands and flags
    else:
        whole = sum(shapes)
    if kind == "collective-permute":
        return whole
    if kind == "reduce-scatter":
        whole *= group
    rounds = 2 if kind == "all-reduce" and not scattered else 1
    return rounds * whole * (group - 1) / group


def _group_size(rest, devices):
    if found := _GROUPS.search(rest):
        return len(found[1].split(","))
    if found := _IOTA_GROUPS.search(rest):
        return int(found[2])
    if found := _MESH_GROUPS.search(rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        group = 1
        for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2]):
            group *= int(part or sizes[axis])
        return group
    return devices


def bytes_of(shape: str, *, on_chip: bool = False) -> float:
    """The size in bytes of all arrays in a shape's text; `on_chip` includes on-chip memory."""
    total = 0.0
    for kind, dims, layout in _SHAPE.findall(shape):
        if "S(" in layout and "S(0)" not in layout and not on_chip:
            continue
        count = 1
        for dim in filter(None, dims.split(",")):
            count *= int(dim)
        bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])
        total += count * bits / 8
    return total
