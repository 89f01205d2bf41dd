"""The `evaluate` command: generated images measured against real ones."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from typing import TYPE_CHECKING

from repae_jax.commands.options import (
    LABELS_HELP,
    SAMPLER_OPTIONS,
    add_processes,
    add_quiet,
    add_sampler,
    add_step,
    join_processes,
)
from repae_jax.commands.sampled_run import chosen_sampler, sampled_config
from repae_jax.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from repae_jax.evaluation.fid_metrics import Reference, Scores
    from repae_jax.evaluation.image_sets import ImageSet
    from repae_jax.parallel.multihost import Processes

SUMMARY = "measure generated images against real ones: FID, sFID, IS, precision, recall"
EPILOG = """\
SAMPLES is an .npz as `generate` and ADM's scripts write it, a folder of pictures, or
one that `prepare` wrote. The reference is any of these, or one of ADM's reference
batches, such as VIRTUAL_imagenet256_labeled.npz. The figures are ADM's evaluator's.
SAMPLES may also be a run's work directory: the images that `generate` would write are
then measured as they are made, and nothing is written to disk.

examples:
  evaluate runs/x --reference VIRTUAL_imagenet256_labeled.npz --guidance-scale 2.2
  evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz
  evaluate samples/ --reference data/mine/heldout --save-reference mine.npz"""
_PER_DEVICE = 64  # images per batch and device, unless --batch-size is given
_MADE_PER_DEVICE = 32  # the same for images that are generated during the measurement
_COUNT = 50_000  # images of a run, unless --count is given
_FEW = 10_000  # with fewer images, FID depends more on their number than on their quality
_LABELS = {
    "fid": ("FID", "Fréchet distance of Inception's pooled features"),
    "sfid": ("sFID", "Fréchet distance of Inception's spatial features"),
    "inception_score": ("Inception Score", "of the samples by themselves"),
    "precision": ("precision", "samples that are near real images"),
    "recall": ("recall", "real images that are near samples"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("samples", metavar="SAMPLES", help="generated images, or a run")
    parser.add_argument("--reference", required=True, help="real images, or their statistics")
    parser.add_argument(
        "--inception",
        default="pretrained/inception/pt_inception-2015-12-05-6726825d.pth",
        help="InceptionV3's weights (default: %(default)s; if the file is missing, the error names "
        "its source)",
    )
    parser.add_argument(
        "--count", type=int, help="measure only the first N samples (default: all; a run's: 50000)"
    )
    parser.add_argument("--resolution", type=int, help="crop pictures to N pixels per side")
    parser.add_argument(
        "--batch-size", type=int, help="images per batch (default: 64 per device; a run's: 32)"
    )
    parser.add_argument(
        "--output", type=pathlib.Path, help="also write the figures to this JSON file"
    )
    parser.add_argument(
        "--save-reference", type=pathlib.Path, help="write the reference's statistics as .npz"
    )
    sampling = parser.add_argument_group("if SAMPLES is a run", "The options of `generate`.")
    add_step(sampling)
    sampling.add_argument("--labels", help=LABELS_HELP)
    add_sampler(sampling)
    add_processes(parser)
    add_quiet(parser)


def run(options: argparse.Namespace) -> int:
    """Measure the samples against the reference; returns 0.

    All processes of a job make the same call and read the same images; each computes its part of
    every batch, and the first one writes.

    Raises:
      UserError: the options, images, reference or weights are wrong, or the images cannot be
        compared.
      LostProcess: another process of the job is gone.
    """
    from repae_jax.parallel.multihost import processes

    join_processes(options)
    group = processes()
    with group.translate_device_errors():
        scores, reference = _measured(options, group)
        with group.together():
            if group.first:
                _print_scores(options, scores, reference)
    return 0


def _measured(options: argparse.Namespace, group: Processes) -> tuple[Scores, Reference]:
    """Measure the samples; returns the scores and the reference, which --save-reference saves."""
    from repae_jax.evaluation.fid_metrics import (
        check_resolutions,
        compare,
        measure,
        read_reference,
    )
    from repae_jax.evaluation.image_sets import open_images
    from repae_jax.evaluation.inception_features import make_features
    from repae_jax.evaluation.reference import write_statistics
    from repae_jax.interop.inception import read_inception
    from repae_jax.parallel.mesh import make_mesh, padded_batch_size
    from repae_jax.runs.workdir import is_run
    from repae_jax.utils.atomic_files import check_writable

    mesh = make_mesh()
    with group.together():
        made = is_run(options.samples)
        per_device = _MADE_PER_DEVICE if made else _PER_DEVICE
        batch_size = padded_batch_size(mesh, options.batch_size, per_device)
        _check_options(options, made)
        for path in filter(None, (options.output, options.save_reference)):
            check_writable(path)
        variables = read_inception(options.inception)
    features = make_features(variables, mesh=mesh)
    progress = not options.quiet and group.first
    how = {"batch_size": batch_size, "progress": progress}
    if made:
        samples = _open_sampled(options, mesh)
    else:
        samples = open_images(options.samples, options.resolution).first(options.count)
    reference = read_reference(options.reference, features, resolution=options.resolution, **how)
    if options.save_reference and group.first:
        write_statistics(options.save_reference, reference.pooled, reference.spatial)
        print(f"reference: {options.save_reference}")
    check_resolutions(samples, reference)  # before the samples take their time
    return compare(measure(samples, features, **how), reference, progress=progress), reference


def _open_sampled(options: argparse.Namespace, mesh: Mesh) -> ImageSet:
    """The images that `generate` makes from the run in `options.samples` with the same options.

    Raises:
      UserError: the options are wrong, or there is no run to sample from.
    """
    from repae_jax.evaluation.generated_images import generated_image_set
    from repae_jax.parallel.mesh import place_key
    from repae_jax.runs.open_run import open_run, sampling_weights
    from repae_jax.sampling.class_labels import BALANCED, choose_labels
    from repae_jax.sampling.generate import make_generate
    from repae_jax.utils.schema import Count, check_schema

    workdir = pathlib.Path(options.samples)
    config = sampled_config(workdir)
    sampler = chosen_sampler(config, options)
    count = (
        _COUNT if options.count is None else check_schema(options.count, Count, source="--count")
    )
    labels, _ = choose_labels(
        options.labels or BALANCED, count, config.data.num_classes, options.seed
    )
    trained = open_run(workdir, mesh, step=options.step)
    name = f"{workdir}, step {int(trained.state.step)}"
    generate = make_generate(trained.models, sampler, mesh=mesh)
    key, weights = place_key(mesh, options.seed), sampling_weights(trained.state)
    return generated_image_set(
        name, generate, weights, key, {"label": labels}, config.data.resolution, mesh
    )


def _check_options(options: argparse.Namespace, made: bool) -> None:
    """Raise UserError for options that exclude each other; `made`: the samples are a run's."""
    from repae_jax.config.needs import check_nothing_missing
    from repae_jax.interop.inception import missing_inception

    written, read = options.save_reference, (options.reference, options.samples)
    missing = [
        f"{path} does not exist: name images, an .npz file or a run"
        for path in read
        if not pathlib.Path(path).exists()
    ]
    if missing:  # if only the weights are missing, their reader reports it
        check_nothing_missing([*missing, *missing_inception(options.inception)])
    if written and written.resolve() in [pathlib.Path(path).resolve() for path in read]:
        raise UserError(f"--save-reference {written} would replace what is read: give another name")
    of_runs = ("step", "labels", *SAMPLER_OPTIONS)
    given = [name for name in of_runs if getattr(options, name) is not None]
    if given and not made:
        raise UserError(
            f"--{given[0].replace('_', '-')} is for a run's work directory, but {options.samples} "
            "is none: leave it out, or name the run"
        )
    if made and options.count is not None and options.count < 2:
        raise UserError(f"--count is {options.count}: a distribution needs at least 2 images")


def _print_scores(options: argparse.Namespace, scores: Scores, reference: Reference) -> None:
    from repae_jax.evaluation.report import write_figures

    print(describe(scores, reference))
    if options.output:
        figures = {k: v for k, v in dataclasses.asdict(scores).items() if v is not None}
        named = {"samples": str(options.samples), "reference": reference.name}
        write_figures(options.output, named | figures)
        print(f"figures: {options.output}")


def describe(scores: Scores, reference: Reference) -> str:
    """Format the figures as text, and explain the missing ones."""
    from repae_jax.evaluation.precision_recall import NEIGHBORS

    lines = [f"{scores.count} images against {reference.name}"]
    for key, (label, what) in _LABELS.items():
        value = getattr(scores, key)
        shown = "-" if value is None else f"{value:.4f}"
        lines.append(f"  {label:<16}{shown:>10}  {what}")
    if scores.sfid is None:
        lines.append("  no sFID: the reference has no mu_s and sigma_s")
    if scores.precision is None:
        lines.append(
            f"  no precision and recall: they need more than {NEIGHBORS} images of either side"
        )
    if scores.count < _FEW:
        lines.append(f"  FID falls with the number of images: compare it at equal numbers only; "
                     f"published values have 50000, this one {scores.count}")  # fmt: skip
    return "\n".join(lines)
