r"""The full-size recipe and the sampler on one GPU, here and by the original, in one run.

    python benchmarks/gpu.py f8d4:32 --original PATH/TO/REPA-E --output DIR
    python benchmarks/gpu.py f8d4:32 f16d32:64 --beside f8d4:32 --original ... --sampler

A case is a VAE and a batch size: REPA-E at 256 x 256 in bfloat16, all terms on, teacher tokens
given, with SiT-XL/2 for f8d4 and SiT-XL/1 for f16d32. Ours make each of them, the original, as it
ships by torch.compile, those of --beside (by default the first). Compiling takes the original seven
minutes, so all compile at the same time, ours two at a time, and hold still while one is timed.

Prints a table; DIR gets results.jsonl, a line a case as soon as it is known, and with --trace an
XProf trace of two steps of each of ours. What does not end within --seconds is left out, and said.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Iterator, Sequence

import jax
import original as originals
import step
from side_by_side import Side

from repae_jax.aot.chips import GPUS

SITS = {"f8d4": "SiT-XL/2", "f16d32": "SiT-XL/1"}
AT_ONCE = 2  # of ours that compile; each holds its memory as well
PEAK_TFLOPS = GPUS["h200"].flops / 1e12  # the H100's as well
ROUNDS, STEPS = 9, 4  # timings, of so many steps each
SAMPLING = ("--device", "cuda", "--dtype", "bfloat16", "--arch", "SiT-XL/2", "--resolution", "256",
            "--method", "euler-maruyama", "--steps", "250", "--batch-size", "16",
            "--repeats", "1")  # fmt: skip


class Case:
    """One side of one case in a process of its own, which makes the first step from now on."""

    def __init__(self, side: str, case: tuple[str, int], original: str):
        vae, batch = case
        arch = SITS[vae]
        self.options = types.SimpleNamespace(
            recipe="repae", arch=arch, vae=vae, batch_size=batch, resolution=256,
            dtype="bfloat16", device="cuda", original=original,
        )  # fmt: skip
        self.side, self.name = side, f"{arch}, {vae}, batch {batch}"
        self.ours = side == "ours"
        self.start = time.monotonic()
        self.process = Side(step.make_side, side, self.options)
        self.process.begin()

    def ready(self) -> bool:
        """Whether the first step is done, or the process gone."""
        return self.process.ready(0.0)

    def measure(self, others: Sequence["Case"], trace: pathlib.Path | None = None) -> dict | None:
        """Time the steps after the first, for which it waits; None where an error ended it.

        `others` hold still meanwhile.
        """
        seconds = []
        try:
            first, first_seconds = self.process.end(), time.monotonic() - self.start
            with still(others):
                for _ in range(ROUNDS):
                    start = time.perf_counter()
                    last = self.process(STEPS)
                    seconds.append((time.perf_counter() - start) / STEPS)
                if trace:
                    self.process(2, str(trace))
        except (EOFError, OSError):  # its process has said why
            print(f"{self.side}, {self.name}: ended by an error", flush=True)
            return None
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


@contextlib.contextmanager
def still(others: Sequence[Case]) -> Iterator[None]:
    """They hold still for as long as the context lasts."""
    for other in others:
        other.process.pause()
    try:
        yield
    finally:
        for other in others:
            other.process.pause(still=False)


def parse_case(text: str) -> tuple[str, int]:
    """'f8d4:32' -> ("f8d4", 32)."""
    vae, _, batch = text.partition(":")
    if vae not in SITS or not batch.isdigit():
        raise argparse.ArgumentTypeError(f"{text}: expected {' or '.join(SITS)}, and :BATCH")
    return vae, int(batch)


def main() -> None:
    """Compile, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    originals.add_original(parser)
    parser.add_argument("cases", nargs="+", type=parse_case, metavar="VAE:BATCH")
    parser.add_argument("--beside", nargs="*", type=parse_case, metavar="VAE:BATCH")
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=560.0, help="for all, about")
    parser.add_argument("--trace", action="store_true", help="write traces")
    parser.add_argument("--sampler", action="store_true", help="run the sampler of both, too")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    options.output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the sides share the memory
    jax.config.update("jax_platforms", "cpu")  # of this process, which counts operations only
    print("| side | case | images/s | step, ms | TFLOP/s | of the peak | GB | first step, s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    results = measure_all(options, deadline)
    compare(results)
    if options.sampler:
        sample(options, deadline)


def measure_all(options: argparse.Namespace, deadline: float) -> list[dict]:
    """Results of whichever case is ready next; each is written and printed at once."""
    beside = options.cases[:1] if options.beside is None else options.beside
    running = [Case(step.COMPILED, case, options.original) for case in beside]
    waiting, results = list(options.cases), []
    while (running or waiting) and time.monotonic() < deadline:
        while waiting and sum(case.ours for case in running) < AT_ONCE:
            running.append(Case("ours", waiting.pop(0), options.original))
        case = next((case for case in running if case.ready()), None)
        if case is None:
            time.sleep(0.1)
            continue
        running.remove(case)
        trace = options.output / f"trace_{case.options.vae}_{case.options.batch_size}"
        result = case.measure(running, trace if options.trace and case.ours else None)
        case.process.kill()
        if result is not None:
            results.append(result)
            with open(options.output / "results.jsonl", "a") as file:
                file.write(json.dumps(result) + "\n")
            print(row(result), flush=True)
    for case in running:
        print(f"{case.side}, {case.name}: not compiled in time", flush=True)
        case.process.kill()
    return results


def sample(options: argparse.Namespace, deadline: float) -> None:
    """Run benchmarks/sampling.py and print what it ends with."""
    script = pathlib.Path(__file__).with_name("sampling.py")
    command = [sys.executable, str(script), "--original", options.original, *SAMPLING]
    left = max(1.0, deadline - time.monotonic())
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


def compare(results: list[dict]) -> None:
    """Say of each case of both sides how the first steps agree, and the ratio of the rates."""
    ours = {result["case"]: result for result in results if result["side"] == "ours"}
    for theirs in results:
        if theirs["side"] == "ours" or theirs["case"] not in ours:
            continue
        mine = ours[theirs["case"]]
        apart = step.differences(mine["first_metrics"], theirs["first_metrics"])
        worst = max(apart, key=apart.get)
        ratio = mine["images_per_second"] / theirs["images_per_second"]
        told = f"first metrics agree within {apart[worst]:.1e} ({worst})"
        print(f"{mine['case']}: {ratio:.2f} x; {told}")


if __name__ == "__main__":
    main()
