"""The `sample` command: a picture, and the images themselves if asked for."""

import argparse
import io

import jax
import numpy as np

from repae_jax.atomic import write_atomically
from repae_jax.errors import UserError
from repae_jax.evaluation.figures import image_grid, save_png
from repae_jax.sampling.generate import generate_all, make_generate
from repae_jax.training.run import make_sampler, open_run, sampling_weights
from repae_jax.training.workdir import load_config


def sample_command(options: argparse.Namespace) -> int:
    """Generate images from the newest checkpoint of `options.workdir`; returns 0."""
    config = load_config(options.workdir)
    labels, columns = parse_labels(options.labels, config.data.num_classes)
    if "sit" not in config.train:
        raise UserError(f"{options.workdir} trained a VAE alone: there is nothing to sample from")
    if options.batch_size < 1:
        raise UserError(f"--batch-size is {options.batch_size}: give at least 1")
    sampler = make_sampler(
        config,
        method=options.method,
        steps=options.steps,
        guidance_scale=options.guidance_scale,
        guidance_low=options.guidance_low,
        guidance_high=options.guidance_high,
    )
    run = open_run(options.workdir)
    generate = make_generate(run.models.sit, run.models.vae, sampler)
    images = generate_all(
        generate,
        sampling_weights(run.state),
        jax.random.key(options.seed),
        labels,
        batch_size=min(options.batch_size, len(labels)),
        progress=not options.quiet,
    )
    output = options.output or options.workdir / "sample.png"
    save_png(output, image_grid(images, columns))
    print(f"samples: {output}")
    if options.npz is not None:
        buffer = io.BytesIO()
        np.savez(buffer, arr_0=images, labels=labels)
        write_atomically(options.npz, buffer.getvalue())
        print(f"arrays: {options.npz}")
    return 0


def parse_labels(text: str | None, num_classes: int) -> tuple[np.ndarray, int]:
    """Labels (N,) int32 from "3,1,4", and the columns of their grid; default eight a class.

    Raises:
      UserError: not numbers, or a class that does not exist.
    """
    if text is None:
        labels = np.repeat(np.arange(min(10, num_classes), dtype=np.int32), 8)
        return labels, 8
    try:
        labels = np.array([int(word) for word in text.split(",")], np.int32)
    except ValueError as error:
        raise UserError(f"--labels is {text!r}: give class numbers such as 3,1,4") from error
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if wrong.size:
        raise UserError(f"--labels has {wrong[0]}: the run's classes are 0 to {num_classes - 1}")
    return labels, min(len(labels), 10)
