"""The `sample` command: a picture of a few images."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING

from repae_jax.commands.options import DEFAULT, add_quiet, add_sampler, add_step, add_workdir
from repae_jax.commands.sampled_run import chosen_sampler, sampled_config
from repae_jax.errors import advise_batch_size

if TYPE_CHECKING:
    import numpy as np

SUMMARY = "make a picture of a few images from a trained run"
EPILOG = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_workdir(parser, "a trained run")
    add_step(parser)
    parser.add_argument(
        "--output", type=pathlib.Path, help="PNG grid (default: WORKDIR/sample.png)"
    )
    parser.add_argument(
        "--labels",
        help="one image of each of these classes, such as 3,1,4; or none: 64 images of the null "
        "class (default: eight of each class, up to 10 classes)",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch " + DEFAULT)
    add_sampler(parser)
    add_quiet(parser)


@advise_batch_size()
def run(options: argparse.Namespace) -> int:
    """Generate images from a checkpoint of the run, and save their grid; returns 0.

    Raises:
      UserError: the options or the run are wrong.
    """
    import jax

    from repae_jax.runs.open_run import open_run, sampling_weights
    from repae_jax.sampling.generate import generate_all, make_generate
    from repae_jax.utils.figures import image_grid, save_png
    from repae_jax.utils.schema import Batch, check_schema

    config = sampled_config(options.workdir)
    sampler = chosen_sampler(config, options)
    labels, columns = _labels(options.labels, config.data.num_classes)
    check_schema(options.batch_size, Batch, source="--batch-size")
    trained = open_run(options.workdir, step=options.step)
    generate = make_generate(trained.models.backbone, trained.models.tokenizer, sampler)
    images = generate_all(
        generate,
        sampling_weights(trained.state),
        jax.random.key(options.seed),
        labels,
        batch_size=min(options.batch_size, len(labels)),
        progress=not options.quiet,
    )
    output = options.output or options.workdir / "sample.png"
    save_png(output, image_grid(images, columns))
    print(f"samples: {output}")
    return 0


def _labels(text: str | None, num_classes: int) -> tuple[np.ndarray, int]:
    """Labels (N,) int32, and the columns of their grid; by default eight images per class."""
    import numpy as np

    from repae_jax.sampling.class_labels import NONE, parse_labels, unconditional_labels

    if text is None:
        return np.repeat(np.arange(min(10, num_classes), dtype=np.int32), 8), 8
    if text == NONE:
        return unconditional_labels(64), 8
    labels = parse_labels(text, num_classes)
    return labels, min(len(labels), 10)
