"""The `evaluate` command: how near generated images come to real ones."""

import argparse
import dataclasses
import pathlib

from jax.sharding import Mesh

from repae_jax.commands.sample import chosen_sampler, sampled_config
from repae_jax.commands.sampling_arguments import SAMPLER_OPTIONS
from repae_jax.config.needs import check_nothing_missing
from repae_jax.errors import UserError
from repae_jax.evaluation.fid_metrics import (
    Reference,
    Scores,
    check_resolutions,
    compare,
    measure,
    read_reference,
)
from repae_jax.evaluation.generated_images import sampled
from repae_jax.evaluation.image_sets import ImageSet, open_images
from repae_jax.evaluation.inception_features import make_features
from repae_jax.evaluation.precision_recall import NEIGHBOURS
from repae_jax.evaluation.reference import write_statistics
from repae_jax.evaluation.report import write_figures
from repae_jax.interop.inception import missing_inception, read_inception
from repae_jax.parallel.mesh import make_mesh, put_key, whole_batches
from repae_jax.parallel.multihost import Processes, processes
from repae_jax.runs.open_run import open_run, sampling_weights
from repae_jax.runs.workdir import is_run
from repae_jax.sampling.class_labels import BALANCED, choose_labels
from repae_jax.sampling.generate import make_generate
from repae_jax.utils.atomic_files import check_writable
from repae_jax.utils.schema import Count, checked

PER_DEVICE = 64  # images at a time, unless --batch-size tells;
MADE_PER_DEVICE = 32  # where they are made as well
LABELS = {
    "fid": ("FID", "Fréchet distance of Inception's pooled features"),
    "sfid": ("sFID", "the same of its spatial features"),
    "inception_score": ("Inception Score", "of the samples by themselves"),
    "precision": ("precision", "samples that are near real images"),
    "recall": ("recall", "real images that are near samples"),
}
COUNT = 50_000  # images of a run, unless --count specifies
FEW = 10_000  # images; with fewer, FID says more of their number than of their quality


def evaluate_command(options: argparse.Namespace) -> int:
    """Measure `options.samples` against `options.reference`; returns 0.

    All processes of a job call it alike and see the same images; each computes its part of every
    batch, and the first one writes.

    Raises:
      UserError: bad options, images, reference or weights; images that cannot be compared.
      LostProcess: another process of the job is gone.
    """
    group = processes()
    with group.devices_errors_said():
        scores, reference = _measured(options, group)
        with group.together():
            if group.first:
                _say(options, scores, reference)
    return 0


def _measured(options, group: Processes) -> tuple[Scores, Reference]:
    """The figures, and what they compare with; that is saved if it is asked for."""
    mesh = make_mesh()
    with group.together():
        made = is_run(options.samples)
        per_device = MADE_PER_DEVICE if made else PER_DEVICE
        batch_size = whole_batches(mesh, options.batch_size, per_device)
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
    """The images that `generate` would make with these options of the run in `options.samples`.

    Raises:
      UserError: bad options, or no run that can be sampled from.
    """
    workdir = pathlib.Path(options.samples)
    config = sampled_config(workdir)
    sampler = chosen_sampler(config, options)
    count = COUNT if options.count is None else checked(options.count, Count, source="--count")
    labels, _ = choose_labels(options.labels, count, config.data.num_classes, options.seed)
    run = open_run(workdir, mesh)
    name = f"{workdir}, step {int(run.state.step)}"
    generate = make_generate(run.models.backbone, run.models.tokenizer, sampler, mesh=mesh)
    key, weights = put_key(mesh, options.seed), sampling_weights(run.state)
    return sampled(name, generate, weights, key, labels, config.data.resolution, mesh)


def _check_options(options, made):
    """Raise UserError for what does not go together; `made`: the samples are a run's."""
    written, read = options.save_reference, (options.reference, options.samples)
    missing = [
        f"{path} does not exist: name images, an .npz file or a run"
        for path in read
        if not pathlib.Path(path).exists()
    ]
    if missing:  # if only the weights are, their reader will say it
        check_nothing_missing([*missing, *missing_inception(options.inception)])
    if written and written.resolve() in [pathlib.Path(path).resolve() for path in read]:
        raise UserError(f"--save-reference {written} would replace what is read: give another name")
    given = [name for name in ("labels", *SAMPLER_OPTIONS) if getattr(options, name) is not None]
    if given and not made:
        raise UserError(
            f"--{given[0].replace('_', '-')} is for a run's work directory, but {options.samples} "
            "is none: leave it out, or name the run"
        )
    if made:
        options.labels = options.labels or BALANCED
        if options.count is not None and options.count < 2:
            raise UserError(f"--count is {options.count}: a distribution needs at least 2 images")


def _say(options, scores, reference):
    print(describe(scores, reference))
    if options.output:
        figures = {k: v for k, v in dataclasses.asdict(scores).items() if v is not None}
        told = {"samples": str(options.samples), "reference": reference.name, **figures}
        write_figures(options.output, told)
        print(f"figures: {options.output}")


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
