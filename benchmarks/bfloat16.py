"""Does a run in bfloat16 follow the one in float32?

    python benchmarks/bfloat16.py CONFIG --output DIR [--steps 500] [--config.KEY=VALUE ...]

CONFIG is a configuration file, FILE[:RECIPE], that `train` takes. Trains it in float32, in
bfloat16, and once more in float32 from another seed, one after the other; what is there already is
kept. Prints how far the losses are apart, in moving averages over a tenth of the steps: bfloat16
from float32, and, as what chance does, seed from seed. DIR/losses.png shows all three.
"""

import argparse
import pathlib
import subprocess
import sys

import numpy as np

from repae_jax.evaluation.curves import loss_curves
from repae_jax.runs.metrics import read_history
from repae_jax.utils.figures import save_png

RUNS = {
    "float32": ("--config.dtype=float32", "--config.seed=0"),
    "bfloat16": ("--config.dtype=bfloat16", "--config.seed=0"),
    "float32, another seed": ("--config.dtype=float32", "--config.seed=1"),
}
LOSSES = (
    "sit_loss", "denoising_loss", "proj_loss", "vae_align_loss", "reconstruction_loss",
    "perceptual_loss", "kl_loss", "gan_loss", "d_loss",
)  # fmt: skip


def apart(first: np.ndarray, second: np.ndarray) -> float:
    """The root mean square of the difference of two curves' moving averages over a tenth."""
    window = max(1, len(first) // 10)
    kernel = np.full(window, 1 / window)
    difference = np.convolve(first - second, kernel, "valid")
    return float(np.sqrt(np.square(difference).mean()))


def main() -> None:
    """Train, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", help="FILE[:RECIPE]")
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=500)
    options, overrides = parser.parse_known_args()
    fixed = [f"--config.run.steps={options.steps}", "--config.run.log_every=1"]
    curves = {}
    for name, changes in RUNS.items():
        workdir = options.output / name.replace(", ", "_").replace(" ", "_")
        words = ["--config", options.config, "--workdir", str(workdir), "--quiet"]
        command = [sys.executable, "-m", "repae_jax", "train", *words]
        subprocess.run([*command, *overrides, *fixed, *changes], check=True)
        curves[name] = read_history(workdir)
    losses = [loss for loss in LOSSES if all(loss in history for history in curves.values())]
    print(f"\n{options.config}, {options.steps} steps\n")
    print("| loss | bfloat16 from float32 | seed from seed |\n| --- | --- | --- |")
    for loss in losses:
        values = {name: history[loss][1] for name, history in curves.items()}
        base, low, other = (values[name] for name in RUNS)
        print(f"| {loss} | {apart(low, base):.2g} | {apart(other, base):.2g} |")
    drawn = {
        f"{loss}, {name}": history[loss] for name, history in curves.items() for loss in losses
    }
    groups = {loss: [f"{loss}, {name}" for name in RUNS] for loss in losses}
    print(f"\n{save_png(options.output / 'losses.png', loss_curves(drawn, groups))}")


if __name__ == "__main__":
    main()
