"""The `evaluate-alignment` command: alignment of a backbone with its teacher at every depth."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING

from repae_jax.commands.options import DEFAULT, add_quiet, add_step, add_workdir
from repae_jax.errors import UserError, advise_batch_size

if TYPE_CHECKING:
    from repae_jax.data.source import Source
    from repae_jax.evaluation.representation import Representation

SUMMARY = (
    "measure the alignment of a run's backbone with its teacher: CKNNA, linear probes, spatial "
    "structure"
)
EPILOG = """\
The averaged backbone gets noisy latents of held-out images and the null condition. Writes
alignment.png and alignment.json.

example:
  evaluate-alignment --workdir runs/sdvae --count 10000 --times 0.2,0.5,0.8"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_workdir(parser, "a trained run with a teacher")
    add_step(parser)
    parser.add_argument("--split", default="heldout", help="split of the run's data " + DEFAULT)
    parser.add_argument("--count", type=int, default=1000, help="images, at most " + DEFAULT)
    parser.add_argument(
        "--times", default="0.1,0.3,0.5,0.7,0.9", help="noise levels, 1 is noise " + DEFAULT
    )
    parser.add_argument("--topk", type=int, default=10, help="neighbors for CKNNA " + DEFAULT)
    parser.add_argument("--batch-size", type=int, default=50, help="images per batch " + DEFAULT)
    parser.add_argument("--output", type=pathlib.Path, help="a folder (default: WORKDIR/alignment)")
    add_quiet(parser)


@advise_batch_size()
def run(options: argparse.Namespace) -> int:
    """Measure CKNNA and linear probes of a checkpoint of the run; returns 0.

    Raises:
      UserError: the options, the run or the data are wrong.
    """
    from repae_jax.data.sources import open_source
    from repae_jax.runs.workdir import load_config
    from repae_jax.utils.lock import writing_in
    from repae_jax.utils.schema import Batch, check_schema

    times = parse_times(options.times)
    check_schema(options.batch_size, Batch, source="--batch-size")
    folder = options.output or options.workdir / "alignment"
    source = open_source(load_config(options.workdir).data, options.split)
    with writing_in(folder):
        _measure(options, times, source, folder)
    return 0


def _measure(
    options: argparse.Namespace, times: tuple[float, ...], source: Source, folder: pathlib.Path
) -> None:
    """Measure the run, print the figures, and write them and their picture to the folder."""
    from repae_jax.evaluation.report import write_figures
    from repae_jax.evaluation.representation import extract_features, measure_representation
    from repae_jax.runs.open_run import open_run
    from repae_jax.utils.figures import save_png

    trained = open_run(options.workdir, step=options.step)
    count = min(options.count, len(source))
    if not 2 <= options.topk < count:
        raise UserError(f"--topk is {options.topk}: give 2 to {count - 1}, for {count} images")
    progress = not options.quiet
    features = extract_features(
        trained.config,
        trained.models,
        trained.state,
        source,
        times,
        count=count,
        batch_size=options.batch_size,
        progress=progress,
        spatial=True,
    )
    found = measure_representation(features, topk=options.topk, progress=progress)
    block = trained.models.backbone.encoder_depth
    print(describe(found, len(features.labels), block))
    picture = save_png(folder / "alignment.png", _picture(found))
    of_run = {"step": int(trained.state.step), "images": len(features.labels)}
    write_figures(folder / "alignment.json", of_run | _figures(found, block))
    print(f"picture: {picture}\nfigures: {folder / 'alignment.json'}")


def parse_times(text: str) -> tuple[float, ...]:
    """Parse noise levels from text such as "0.1,0.5".

    Raises:
      UserError: the text holds something else than numbers.
    """
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise UserError(f"--times is {text!r}: give noise levels such as 0.1,0.5,0.9") from error


def describe(found: Representation, count: int, block: int) -> str:
    """Format the figures as text, with a row per noise level and a column per block.

    Args:
      found: the figures.
      count: the images.
      block: the number of the aligned block, from 1.
    """
    lines = [f"{count} images; by row the noise level t, by column the block"]
    for name, table in found.alignment.items():
        lines += [f"CKNNA with {name} (the VAE's latents: {found.latents[name]:.3f})"]
        lines += _rows(found.times, table)
    if found.probes is not None:
        others = [f"the VAE's latents: {found.probe_latents:.3f}"]
        others += [f"{name}: {value:.3f}" for name, value in found.probe_teachers.items()]
        lines += [f"accuracy of linear probes ({', '.join(others)})"]
        lines += _rows(found.times, found.probes)
    if found.spatial is not None:
        lines += _spatial_rows(found.times, found.spatial, block)
    return "\n".join(lines)


def _picture(found: Representation):
    from repae_jax.evaluation.curves import depth_figure

    tables = {f"CKNNA with {name}": table for name, table in found.alignment.items()}
    references = {
        f"CKNNA with {name}": {"the VAE's latents": value} for name, value in found.latents.items()
    }
    if found.probes is not None:
        tables["accuracy of linear probes"] = found.probes
        references["accuracy of linear probes"] = {
            "the VAE's latents": found.probe_latents,
            **{f"the teacher {name}": value for name, value in found.probe_teachers.items()},
        }
    return depth_figure(found.times, tables, references)


def _rows(times, table):
    return [
        f"  t = {time:<5g}" + " ".join(f"{value:6.3f}" for value in row)
        for time, row in zip(times, table, strict=True)
    ]


def _spatial_rows(times, spatial, block):
    from repae_jax.evaluation.spatial import MEASURES

    rows = {name: values for name, values in spatial.teachers.items()}
    rows["the VAE's latents"] = spatial.latents
    rows |= {f"t = {t:g}": row for t, row in zip(times, spatial.backbone, strict=True)}
    width = max(map(len, rows))
    head = " ".join(f"{name.upper():>6}" for name in MEASURES)
    return [
        f"spatial structure of the tokens, the backbone's after block {block}",
        f"  {'':<{width}} {head}",
        *(f"  {n:<{width}} " + " ".join(f"{v:6.3f}" for v in row) for n, row in rows.items()),
    ]


def _figures(found: Representation, block: int) -> dict[str, object]:
    return {
        "times": list(found.times),
        "cknna": {name: table.tolist() for name, table in found.alignment.items()},
        "cknna_latents": dict(found.latents),
        "probes": None if found.probes is None else found.probes.tolist(),
        "probe_latents": found.probe_latents,
        "probe_teachers": dict(found.probe_teachers),
        "spatial": None if found.spatial is None else _spatial_figures(found.spatial, block),
    }


def _spatial_figures(spatial, block):
    from repae_jax.evaluation.spatial import named

    return {
        "block": block,
        "backbone": named(spatial.backbone),  # by time
        "latents": named(spatial.latents),
        "teachers": {name: named(values) for name, values in spatial.teachers.items()},
    }
