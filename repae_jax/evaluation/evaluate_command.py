"""The `evaluate` command: how near generated images come to real ones."""

import argparse
import dataclasses
import pathlib

from repae_jax.errors import UserError, batch_size_advised
from repae_jax.evaluation.generated import (
    Reference,
    Scores,
    check_resolutions,
    compare,
    measure,
    read_reference,
)
from repae_jax.evaluation.image_sets import open_images
from repae_jax.evaluation.inception_features import make_features
from repae_jax.evaluation.precision_recall import NEIGHBOURS
from repae_jax.evaluation.reference import write_statistics
from repae_jax.evaluation.report import write_figures
from repae_jax.interop.inception import read_inception
from repae_jax.parallel.mesh import make_mesh, whole_batches

PER_DEVICE = 64  # images at a time, unless --batch-size tells
LABELS = {
    "fid": ("FID", "Fréchet distance of Inception's pooled features"),
    "sfid": ("sFID", "the same of its spatial features"),
    "inception_score": ("Inception Score", "of the samples by themselves"),
    "precision": ("precision", "samples that are near real images"),
    "recall": ("recall", "real images that are near samples"),
}
FEW = 10_000  # images; with fewer, FID says more of their number than of their quality


@batch_size_advised()
def evaluate_command(options: argparse.Namespace) -> int:
    """Measure `options.samples` against `options.reference`; returns 0.

    Raises:
      UserError: bad options, images, reference or weights; images that cannot be compared.
    """
    mesh = make_mesh()
    batch_size = whole_batches(mesh, options.batch_size, PER_DEVICE)
    written, read = options.save_reference, (options.reference, options.samples)
    if written and written.resolve() in [pathlib.Path(path).resolve() for path in read]:
        raise UserError(f"--save-reference {written} would replace what is read: give another name")
    samples = open_images(options.samples, options.resolution).first(options.count)
    features = make_features(read_inception(options.inception), mesh=mesh)
    how = {"batch_size": batch_size, "progress": not options.quiet}
    reference = read_reference(options.reference, features, resolution=options.resolution, **how)
    if options.save_reference:
        write_statistics(options.save_reference, reference.pooled, reference.spatial)
        print(f"reference: {options.save_reference}")
    check_resolutions(samples, reference)  # before the samples take their time
    measured = measure(samples, features, **how)
    scores = compare(measured, reference, progress=not options.quiet)
    print(describe(scores, reference))
    if options.output:
        figures = {k: v for k, v in dataclasses.asdict(scores).items() if v is not None}
        told = {"samples": str(options.samples), "reference": reference.name, **figures}
        write_figures(options.output, told)
        print(f"figures: {options.output}")
    return 0


def describe(scores: Scores, reference: Reference) -> str:
    """The figures as text, and what is missing and why."""
    lines = [f"{scores.count} images against {reference.name}"]
    for key, (label, what) in LABELS.items():
        value = getattr(scores, key)
        shown = "-" if value is None else f"{value:.4f}"
        lines.append(f"  {label:<16}{shown:>10}  {what}")
    if scores.sfid is None:
        lines.append("  no sFID: the reference has no mu_s and sigma_s")
    if scores.precision is None:
        lines.append(
            f"  no precision and recall: they need more than {NEIGHBOURS} images of either side"
        )
    if scores.count < FEW:
        lines.append(f"  FID falls with the number of images: compare it at equal numbers only, "
                     f"published ones are of 50000, these of {scores.count}")  # fmt: skip
    return "\n".join(lines)
