"""The `sample` command: a picture of a few images."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING

from repae_jax.commands.options import (
    DEFAULT,
    add_negative_prompt,
    add_quiet,
    add_sampler,
    add_step,
    add_workdir,
)
from repae_jax.commands.sampled_run import (
    check_prompt_options,
    chosen_sampler,
    negative_prompt,
    of_captions,
    sampled_config,
)
from repae_jax.errors import advise_batch_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from ml_collections import ConfigDict

    from repae_jax.data.tokens import Tokenize
    from repae_jax.sampling.generate import Inputs

SUMMARY = "make a picture of a few images from a trained run"
EPILOG = """\
examples:
  sample --workdir runs/x --labels 3,1,4 --guidance-scale 2.5
  sample --workdir runs/t --prompt "a red disc left of a blue star" --prompt "two green rings\""""
_PROMPTS, _EACH = 8, 8  # captions of the data without --prompt, and images of a prompt


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
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="eight images of this prompt, for a run with captions; may be given more than once "
        "(default: the first captions of its data)",
    )
    add_negative_prompt(parser)
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
    import numpy as np

    from repae_jax.runs.captions import with_negative_prompt
    from repae_jax.runs.open_run import open_run, sampling_weights
    from repae_jax.sampling.generate import generate_all, make_generate, number_of
    from repae_jax.utils.atomic_files import check_writable
    from repae_jax.utils.figures import class_grid, image_grid, save_png
    from repae_jax.utils.schema import Batch, check_schema

    config = sampled_config(options.workdir)
    check_prompt_options(config, options, ("prompt", "negative_prompt"))
    sampler = chosen_sampler(config, options)
    output = options.output or options.workdir / "sample.png"
    check_writable(output)
    negative = negative_prompt(options.negative_prompt, sampler)
    of_text, indices = of_captions(config), None
    if of_text:
        inputs, prompts, indices, tokenize = _prompts(options.prompt, config)
    else:
        labels, columns = _labels(options.labels, config.data.num_classes)
        inputs = {"label": labels}
    check_schema(options.batch_size, Batch, source="--batch-size")
    trained = open_run(options.workdir, step=options.step)
    weights = sampling_weights(trained.state)
    if of_text and negative:
        weights = with_negative_prompt(weights, trained.models, tokenize, negative)
    images = generate_all(
        make_generate(trained.models, sampler),
        weights,
        jax.random.key(options.seed),
        inputs,
        batch_size=min(options.batch_size, number_of(inputs)),
        indices=indices,
        progress=not options.quiet,
    )
    if of_text:
        rows = np.repeat(np.arange(len(prompts)), _EACH)
        save_png(output, class_grid(images, rows, prompts, _EACH))
    else:
        save_png(output, image_grid(images, columns))
    print(f"samples: {output}")
    return 0


def _prompts(
    given: Sequence[str] | None, config: ConfigDict
) -> tuple[Inputs, list[str], np.ndarray, Tokenize]:
    """The inputs of a grid of prompts, the prompts, their images' indices, and the tokenizer."""
    from repae_jax.data.sources import open_source
    from repae_jax.runs.captions import (
        captions_of,
        make_tokenize,
        tokenized,
        warn_of_cut_prompts,
    )
    from repae_jax.sampling.layouts import prompt_text
    from repae_jax.sampling.prompts import prompt_indices, spread

    tokenize = make_tokenize(config)
    prompts = [prompt_text(text, "--prompt") for text in given or ()]
    warn_of_cut_prompts(tokenize, prompts)
    prompts = prompts or captions_of(open_source(config.data, "train"), _PROMPTS)
    inputs = spread(tokenized(tokenize, prompts), _EACH)
    return inputs, list(prompts), prompt_indices(prompts, _EACH), tokenize


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
