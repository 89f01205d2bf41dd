"""The `report` command."""

import argparse

from repae_jax.commands.options import DEFAULT, add_quiet, add_step, add_workdir, check_seed

SUMMARY = "measure a trained run and write its report.html"
EPILOG = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_workdir(parser, "a trained run")
    add_step(parser)
    parser.add_argument(
        "--samples", type=int, default=1000, help="generated images to measure " + DEFAULT
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of these images " + DEFAULT)
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help="prepared images, whose held-out split is reconstructed (default: the run's data, of "
        "which cached latents have none)",
    )
    add_quiet(parser)


def run(options: argparse.Namespace) -> int:
    """Write `report.html` and its pictures into the work directory; returns 0.

    Raises:
      UserError: the options, the run or its data are wrong.
    """
    from repae_jax.data.source import check_images
    from repae_jax.data.sources import open_source
    from repae_jax.evaluation.run_report import write_run_report
    from repae_jax.runs.open_run import open_run
    from repae_jax.runs.workdir import load_config
    from repae_jax.utils.lock import writing_in
    from repae_jax.utils.schema import Count, check_schema

    check_schema(options.samples, Count, source="--samples")
    check_seed(options.seed)
    data = load_config(options.workdir).data
    if options.images is not None:
        data.update(source="packed", path=options.images, name="")
    of_latents = data.source == "latents"
    source = open_source(data, "train" if of_latents else "heldout")
    if not of_latents:
        check_images(source)
    pictures = options.workdir / "report"
    with writing_in(pictures):
        path, summary = write_run_report(
            open_run(options.workdir, step=options.step),
            source,
            pictures,
            heldout=not of_latents,
            samples=options.samples,
            seed=options.seed,
            progress=not options.quiet,
        )
    for label, value, note in summary:
        print(f"{label}: {value}  ({note})")
    print(f"report: {path}")
    return 0
