r"""The full-size recipe and the sampler on one GPU, here and by the original, in one run.

    python benchmarks/gpu.py f8d4 --original PATH/TO/REPA-E --output DIR [--seconds 560]
    python benchmarks/gpu.py f16d32 --original ...

REPA-E at 256 x 256 in bfloat16, all terms on, teacher tokens given: SiT-XL/2 with f8d4, SiT-XL/1
with f16d32. The original as it ships, by torch.compile, which took seven minutes: it compiles in
the background while ours is compiled and timed, and the samplers are (benchmarks/sampling.py).
What it tries out on the GPU meanwhile disturbs some of our steps; hence medians of many.

Prints a table; DIR gets results.jsonl, a line a case as soon as it is known, and an XProf trace of
two steps. What does not end within --seconds is left out, and said.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
import types

import jax
import original as originals
import step
from side_by_side import Side

from repae_jax.parallel.chips import GPUS

SITS = {"f8d4": "SiT-XL/2", "f16d32": "SiT-XL/1"}
BATCHES = (32, 64)  # of ours; the original has the first
PEAK_TFLOPS = GPUS["h200"].flops / 1e12  # the H100's as well
ROUNDS, STEPS = 9, 4  # timings, of so many steps each
SAMPLING = ("--device", "cuda", "--dtype", "bfloat16", "--arch", "SiT-XL/2", "--resolution", "256",
            "--method", "euler-maruyama", "--steps", "250", "--batch-size", "16",
            "--repeats", "1")  # fmt: skip


class Case:
    """One side with one batch size in a process of its own, which compiles from now on."""

    def __init__(self, side: str, batch: int, options: argparse.Namespace):
        arch = SITS[options.vae]
        self.options = types.SimpleNamespace(
            recipe="repae", arch=arch, vae=options.vae, batch_size=batch, resolution=256,
            dtype="bfloat16", device="cuda", original=options.original,
        )  # fmt: skip
        self.side, self.name = side, f"{arch}, {options.vae}, batch {batch}"
        self.start = time.monotonic()
        self.process = Side(step.make_side, side, self.options)
        self.process.begin()

    def measure(self, deadline: float, trace: pathlib.Path | None = None) -> dict | None:
        """Wait for the first step, time the next ones; None where that is not to be had in time."""
        try:
            return self._measure(deadline, trace)
        except (EOFError, OSError):  # its process has said why
            print(f"{self.side}, {self.name}: ended by an error", flush=True)
            return None

    def _measure(self, deadline, trace):
        if not self.process.ready(max(0.0, deadline - time.monotonic())):
            print(f"{self.side}, {self.name}: not compiled in time", flush=True)
            return None
        first, first_seconds = self.process.end(), time.monotonic() - self.start
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            last = self.process(STEPS)
            seconds.append((time.perf_counter() - start) / STEPS)
        if trace:
            self.process(2, str(trace))
        rate = self.options.batch_size / statistics.median(seconds)
        tflops = rate * step.work(self.options) / 1e3
        return {
            "side": self.side,
            "case": self.name,
            "images_per_second": rate,
            "seconds": seconds,
            "tflops": tflops,
            "of_peak": tflops / PEAK_TFLOPS,
            "peak_memory_gb": last[step.PEAK],
            "first_step_s": first_seconds,
            "first_metrics": first,
        }


def main() -> None:
    """Compile, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    originals.add_original(parser)
    parser.add_argument("vae", choices=SITS)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=560.0, help="for all, about")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    options.output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the sides share the memory
    jax.config.update("jax_platforms", "cpu")  # of this process, which counts operations only
    print("| side | case | images/s | step, ms | TFLOP/s | of the peak | GB | first step, s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    theirs = Case(step.COMPILED, BATCHES[0], options)
    results = []
    for batch in BATCHES:
        if results:
            sample(options, deadline)
        case = Case("ours", batch, options)
        trace = None if results else options.output / "trace"
        results.append(note(case.measure(deadline - 20, trace), options))
        case.process.kill()
    original = note(theirs.measure(deadline), options)
    theirs.process.kill()
    if results[0] and original:  # of the same batch
        compare(results[0], original)


def note(result: dict | None, options: argparse.Namespace) -> dict | None:
    """Write and print a result at once."""
    if result is not None:
        with open(options.output / "results.jsonl", "a") as file:
            file.write(json.dumps(result) + "\n")
        print(row(result), flush=True)
    return result


def sample(options: argparse.Namespace, deadline: float) -> None:
    """Run benchmarks/sampling.py and print what it ends with."""
    script = pathlib.Path(__file__).with_name("sampling.py")
    command = [sys.executable, str(script), "--original", options.original, *SAMPLING]
    left = max(1.0, deadline - time.monotonic() - 30)
    log = options.output / "sampling.log"
    with open(log, "w") as file:
        try:
            subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=left)
        except subprocess.TimeoutExpired:
            print("the sampler did not end in time")
    print("\n".join(log.read_text().splitlines()[-8:]), flush=True)


def row(result: dict) -> str:
    """The table's line of a result."""
    numbers = (
        f"{result['images_per_second']:.1f}",
        f"{1e3 * statistics.median(result['seconds']):.0f}",
        f"{result['tflops']:.0f}",
        f"{100 * result['of_peak']:.1f} %",
        f"{result['peak_memory_gb']:.1f}",
        f"{result['first_step_s']:.0f}",
    )
    return f"| {result['side']} | {result['case']} | " + " | ".join(numbers) + " |"


def compare(ours: dict, theirs: dict) -> None:
    """Say how the first steps agree, and how many times the original's rate ours has."""
    apart = step.differences(ours["first_metrics"], theirs["first_metrics"])
    worst = max(apart, key=apart.get)
    ratio = ours["images_per_second"] / theirs["images_per_second"]
    told = f"first metrics agree within {apart[worst]:.1e} ({worst})"
    print(f"{ours['case']}: {ratio:.2f} x; {told}")


if __name__ == "__main__":
    main()
