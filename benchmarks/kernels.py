"""Where a GPU's time goes in a traced step, by parts of the step.

    python benchmarks/kernels.py TRACE [--steps 2] [--top 20]

TRACE is an .xplane.pb (or .xplane.pb.gz) of the train step on an NVIDIA GPU, as `train --profile`
and benchmarks/gpu.py --trace write it, or a folder that holds one. A kernel belongs to the
operation that the program's text, which the trace holds as well, says it was made from; library
kernels are told by their names. Milliseconds of one step; kernels that run beside others count in
full. --top lists the largest of the compiler's own kernels with the memory that they move at least.
"""

import argparse
import collections
import gzip
import pathlib
import re
from typing import NamedTuple

from repae_jax.aot.hlo import bytes_of

LIBRARIES = {
    "convolutions (cuDNN)": r"xmma|cutlass|convolve|nhwc",
    "matrix products (cuBLAS)": r"nvjet|splitKreduce",
    "attention (cuDNN)": r"sdpa|dot_do_o|convert_dq",
}
# The first that is found in an operation's name.
PARTS = {
    "GroupNorm and SiLU, backward": r"transpose\(jvp\(AutoencoderKL.*norm",
    "GroupNorm and SiLU, forward": r"AutoencoderKL.*norm",
    "the VAE's rest": r"AutoencoderKL",
    "LPIPS and discriminator": r"LPIPS|Discriminator",
    "between the SiT's products": r"SiT",
    "updates and moving average": r"cond/branch_1",
    "gradients' norms": r"tree_norm",
}


class Instruction(NamedTuple):
    """One of the program: what it gives, of what, and the operation it was made from."""

    shape: str
    megabytes: float
    operation: str


def main() -> None:
    """Read, add up, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("trace", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=2, help="in the trace")
    parser.add_argument("--top", type=int, default=0)
    options = parser.parse_args()
    space = read(options.trace)
    instructions = read_program(space)
    milliseconds, count = collections.Counter(), collections.Counter()
    for plane in space.planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                milliseconds[name] += event.duration_ps / 1e9 / options.steps
                count[name] += 1 / options.steps
    parts = collections.Counter()
    for name, taken in milliseconds.items():
        parts[part(name, instructions)] += taken
    print("| | ms |\n| --- | --- |")
    for name, taken in parts.most_common():
        print(f"| {name} | {taken:.1f} |")
    print(f"| sum | {sum(parts.values()):.1f} |")
    own = [name for name in milliseconds if name in instructions]
    for name in sorted(own, key=milliseconds.get, reverse=True)[: options.top]:
        shape, megabytes, operation = instructions[name]
        rate = megabytes * count[name] / milliseconds[name] / 1e3
        print(f"{milliseconds[name]:.2f} ms, {rate:.2f} TB/s: {name} {shape} {operation}")


def read(path: pathlib.Path):
    """The trace's XSpace."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    if path.is_dir():
        found = sorted(path.rglob("*.xplane.pb"))
        if not found:
            raise SystemExit(f"{path}: there is no *.xplane.pb")
        path = found[-1]
    data = path.read_bytes()
    return xplane_pb2.XSpace.FromString(gzip.decompress(data) if path.suffix == ".gz" else data)


def read_program(space) -> dict[str, Instruction]:
    """The train step's instructions by the names that its kernels have."""
    from tensorflow.compiler.xla.service import hlo_pb2

    found = [
        stat.bytes_value
        for plane in space.planes
        if plane.name == "/host:metadata"
        for metadata in plane.event_metadata.values()
        if "step" in metadata.name
        for stat in metadata.stats
        if stat.bytes_value
    ]
    if not found:
        raise SystemExit("the trace holds no program whose name has 'step' in it")
    module = hlo_pb2.HloProto.FromString(max(found, key=len)).hlo_module
    every = {i.id: i for computation in module.computations for i in computation.instructions}
    shapes = {number: describe(instruction.shape) for number, instruction in every.items()}
    return {
        instruction.name.replace(".", "_").replace("-", "_"): Instruction(
            shapes[number],
            sum(bytes_of(shapes[i]) for i in (number, *instruction.operand_ids)) / 1e6,
            instruction.metadata.op_name.removeprefix("jit(train_step)/"),
        )
        for number, instruction in every.items()
    }


def part(kernel: str, instructions: dict[str, Instruction]) -> str:
    """The part of the step that a kernel belongs to."""
    if kernel not in instructions:
        named = (name for name, pattern in LIBRARIES.items() if re.search(pattern, kernel))
        return next(named, "all else")
    operation = instructions[kernel].operation
    return next(
        (name for name, pattern in PARTS.items() if re.search(pattern, operation)), "all else"
    )


def describe(shape) -> str:
    """As XLA's text has it: "bf16[32,256]", or several in parentheses."""
    from tensorflow.compiler.xla import xla_data_pb2

    if shape.tuple_shapes:
        return "(" + ", ".join(map(describe, shape.tuple_shapes)) + ")"
    kind = xla_data_pb2.PrimitiveType.Name(shape.element_type).lower()
    return f"{kind}[{','.join(map(str, shape.dimensions))}]"


if __name__ == "__main__":
    main()
