"""The `evaluate-alignment` command: where in a backbone the teacher's view of images is."""

import argparse

from repae_jax.data.sources import open_source
from repae_jax.errors import UserError, batch_size_advised
from repae_jax.evaluation.curves import depth_figure
from repae_jax.evaluation.report import write_figures
from repae_jax.evaluation.representation import (
    Representation,
    extract_features,
    measure_representation,
)
from repae_jax.runs.open_run import open_run
from repae_jax.runs.workdir import load_config
from repae_jax.utils.figures import save_png
from repae_jax.utils.lock import writing_in
from repae_jax.utils.schema import Batch, checked


@batch_size_advised()
def evaluate_alignment_command(options: argparse.Namespace) -> int:
    """Measure CKNNA and linear probes of `options.workdir`'s newest checkpoint; returns 0.

    Raises:
      UserError: bad options, run or data.
    """
    times = parse_times(options.times)
    checked(options.batch_size, Batch, source="--batch-size")
    folder = options.output or options.workdir / "alignment"
    source = open_source(load_config(options.workdir).data, options.split)
    with writing_in(folder):
        _measure(options, times, source, folder)
    return 0


def _measure(options, times, source, folder):
    run = open_run(options.workdir)
    count = min(options.count, len(source))
    if not 2 <= options.topk < count:
        raise UserError(f"--topk is {options.topk}: give 2 to {count - 1}, for {count} images")
    progress = not options.quiet
    features = extract_features(
        run,
        source,
        times,
        count=count,
        batch_size=options.batch_size,
        progress=progress,
    )
    found = measure_representation(features, topk=options.topk, progress=progress)
    print(describe(found, len(features.labels)))
    picture = save_png(folder / "alignment.png", _picture(found))
    told = {"step": int(run.state.step), "images": len(features.labels), **_figures(found)}
    write_figures(folder / "alignment.json", told)
    print(f"picture: {picture}\nfigures: {folder / 'alignment.json'}")


def parse_times(text: str) -> tuple[float, ...]:
    """Noise levels from "0.1,0.5".

    Raises:
      UserError: they are no numbers.
    """
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise UserError(f"--times is {text!r}: give noise levels such as 0.1,0.5,0.9") from error


def describe(found: Representation, count: int) -> str:
    """The figures as text: a row a noise level, a column a block."""
    lines = [f"{count} images; by row the noise level t, by column the block"]
    for name, table in found.alignment.items():
        lines += [f"CKNNA with {name} (the VAE's latents: {found.latents[name]:.3f})"]
        lines += _rows(found.times, table)
    if found.probes is not None:
        others = [f"the VAE's latents: {found.probe_latents:.3f}"]
        others += [f"{name}: {value:.3f}" for name, value in found.probe_teachers.items()]
        lines += [f"accuracy of linear probes ({', '.join(others)})"]
        lines += _rows(found.times, found.probes)
    return "\n".join(lines)


def _picture(found):
    tables = {f"CKNNA with {name}": table for name, table in found.alignment.items()}
    references = {
        f"CKNNA with {name}": {"the VAE's latents": value} for name, value in found.latents.items()
    }
    if found.probes is not None:
        tables["accuracy of linear probes"] = found.probes
        references["accuracy of linear probes"] = {
            "the VAE's latents": found.probe_latents,
            **found.probe_teachers,
        }
    return depth_figure(found.times, tables, references)


def _rows(times, table):
    return [
        f"  t = {time:<5g}" + " ".join(f"{value:6.3f}" for value in row)
        for time, row in zip(times, table, strict=True)
    ]


def _figures(found):
    return {
        "times": list(found.times),
        "cknna": {name: table.tolist() for name, table in found.alignment.items()},
        "cknna_latents": dict(found.latents),
        "probes": None if found.probes is None else found.probes.tolist(),
        "probe_latents": found.probe_latents,
        "probe_teachers": dict(found.probe_teachers),
    }
