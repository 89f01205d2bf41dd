"""Measure the train step against the original's and put the figures into docs/numerics.md.

REPAE_ORIGINAL=path/to/REPA-E PYTHONPATH=.:tests/helpers python benchmarks/numerics_table.py
"""

import pathlib
import sys

import original_differences as difference
from original_comparison import STEPS, compare
from original_networks import reason_to_skip

from repae_jax.utils import process_env

DOCUMENT = pathlib.Path(__file__).parents[1] / "docs" / "numerics.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"

STATE_COLUMNS = {
    "params/backbone": "SiT",
    "params/tokenizer": "VAE",
    "params/discriminator": "discriminator",
    "ema/params": "EMA",
    "moments/backbone": "Adam, SiT",
    "moments/tokenizer": "Adam, VAE",
    "moments/discriminator": "Adam, discriminator",
    "batch_stats/latent_norm": "LatentNorm",
    "ema/latent_norm": "LatentNorm's EMA",
    "batch_stats/discriminator": "BatchNorm",
    "batch_stats/lecam": "LeCam",
}


def main():
    if reason := reason_to_skip():
        sys.exit(reason)
    process_env.prepare()  # as the command line does
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    DOCUMENT.write_text(before + BEGIN + measured() + END + after)


def measured() -> str:
    """The three tables under their headings."""
    metrics = {}
    for case in difference.CASES:
        comparison = compare(case)
        metrics[case] = [difference.metrics(comparison, step) for step in range(STEPS)]
        print(case, [worst(step) for step in metrics[case]], flush=True)
    parts = {
        "The metric that differs most, by configuration": by_configuration(metrics),
        "The largest difference in any configuration, by metric": by_metric(metrics),
        "The state after three steps": by_state(),
    }
    return "\n".join(f"### {heading}\n\n{body}" for heading, body in parts.items())


def by_configuration(metrics) -> str:
    """The largest difference of each step, and the metric that shows it."""
    header = ["configuration", *(f"step {step + 1}" for step in range(STEPS))]
    rows = [[str(case), *map(worst, steps)] for case, steps in metrics.items()]
    return table(header, rows)


def by_metric(metrics) -> str:
    """The largest difference of each metric in any configuration."""
    header = ["metric", *(f"step {step + 1}" for step in range(STEPS))]
    names = sorted({name for steps in metrics.values() for name in steps[0]})
    rows = []
    for name in names:
        steps = zip(*metrics.values(), strict=True)
        rows.append([f"`{name}`", *(figure(max(m.get(name, 0.0) for m in s)) for s in steps)])
    return table(header, rows)


def by_state() -> str:
    """What three steps did to each part of the state."""
    rows = []
    for case in difference.CASES:
        comparison = compare(case)
        present = {"/".join(path.split("/")[:2]) for path in comparison.theirs}
        row = [str(case)]
        for group in STATE_COLUMNS:
            measure = difference.moved if group in difference.MOVED else difference.values
            trained = not (case.frozen_vae and group == "params/tokenizer")
            shown = group in present and trained
            row.append(figure(measure(comparison, group)[0]) if shown else "")
        rows.append(row)
    return table(["configuration", *STATE_COLUMNS.values()], rows)


def worst(metrics: dict[str, float]) -> str:
    name = max(metrics, key=metrics.get)
    return f"{figure(metrics[name])} `{name}`"


def figure(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
