"""The `evaluate` command: generated images measured against real ones."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from repae_jax.commands.options import (
    LABELS_HELP,
    SAMPLER_OPTIONS,
    add_processes,
    add_quiet,
    add_sampler,
    add_step,
    join_processes,
)
from repae_jax.commands.sampled_run import open_sampled
from repae_jax.errors import UserError

if TYPE_CHECKING:
    from repae_jax.evaluation.fid_metrics import Reference, Scores
    from repae_jax.parallel.multihost import Processes

SUMMARY = "measure generated images: FID, sFID, IS, precision, recall; CLIP score of prompts"
EPILOG = """\
SAMPLES is an .npz as `generate` and ADM's scripts write it, a folder of pictures, or
one that `prepare` wrote. The reference is any of these, or one of ADM's reference
batches, such as VIRTUAL_imagenet256_labeled.npz. The figures are ADM's evaluator's.
SAMPLES may also be a run's work directory: the images that `generate` would write are
then measured as they are made, and nothing is written to disk.

With --clip, SAMPLES is a folder of images of prompts, with prompts.jsonl (COCO),
index_to_prompt.json (GenAI-Bench) or */metadata.jsonl (GenEval). The CLIP score needs
no reference. FID of text to image is usually clean-fid's: --resizing clean.

examples:
  evaluate runs/x --reference VIRTUAL_imagenet256_labeled.npz --guidance-scale 2.2
  evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz
  evaluate samples/ --reference data/mine/heldout --save-reference mine.npz
  evaluate coco30k/ --reference coco/val2014 --resizing clean \\
      --clip hf://openai/clip-vit-large-patch14"""
_PER_DEVICE = 64  # images per batch and device, unless --batch-size is given
_MADE_PER_DEVICE = 32  # the same for images that are generated during the measurement
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
    parser.add_argument(
        "--reference", help="real images, or their statistics (optional with --clip)"
    )
    parser.add_argument(
        "--inception",
        default="pretrained/inception/pt_inception-2015-12-05-6726825d.pth",
        help="InceptionV3's weights (default: %(default)s; if the file is missing, the error names "
        "its source)",
    )
    parser.add_argument(
        "--count", type=int, help="measure only the first N samples (default: all; a run's: 50000)"
    )
    parser.add_argument(
        "--resolution", type=int, help="crop pictures to N pixels per side; not for the CLIP score"
    )
    parser.add_argument(
        "--resizing",
        default="adm",
        help="how images become 299 x 299 for InceptionV3: adm, as ADM's evaluator and its "
        "reference batches; or clean, as clean-fid, each picture from its own size "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--clip",
        help="also measure the CLIP score of images and prompts, by the CLIPModel of this folder, "
        "such as hf://openai/clip-vit-large-patch14",
    )
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


@dataclasses.dataclass(frozen=True)
class _Measured:
    """The figures; None for what was not requested."""

    scores: Scores | None = None
    reference: Reference | None = None
    clip_score: float | None = None
    clip_images: int | None = None


def run(options: argparse.Namespace) -> int:
    """Measure the samples; returns 0.

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
        measured = _measured(options, group)
        with group.together():
            if group.first:
                _print_figures(options, measured)
    return 0


def _measured(options: argparse.Namespace, group: Processes) -> _Measured:
    """Compare the samples with the reference, and with their prompts, as requested."""
    from repae_jax.parallel.mesh import make_mesh, padded_batch_size
    from repae_jax.runs.workdir import is_run
    from repae_jax.utils.atomic_files import check_writable

    mesh, prompted = make_mesh(), None
    with group.together():
        made = is_run(options.samples)
        per_device = _MADE_PER_DEVICE if made else _PER_DEVICE
        batch_size = padded_batch_size(mesh, options.batch_size, per_device)
        _check_options(options, made)
        for path in filter(None, (options.output, options.save_reference)):
            check_writable(path)
        if options.clip:
            from repae_jax.evaluation.clip_score import CLIPScorer
            from repae_jax.evaluation.prompted_images import find_prompted

            prompted = find_prompted(options.samples).first(options.count)
            scorer = CLIPScorer(options.clip, mesh)
    how = {"batch_size": batch_size, "progress": not options.quiet and group.first}
    measured = _Measured()
    if options.reference:
        measured = _Measured(*_compared(options, mesh, group, made, how))
    if prompted is None:
        return measured
    clip = {"clip_score": scorer(prompted, **how), "clip_images": len(prompted.files)}
    return dataclasses.replace(measured, **clip)


def _compared(options, mesh, group, made, how) -> tuple[Scores, Reference]:
    """The scores of the samples against the reference, which --save-reference saves."""
    from repae_jax.evaluation.fid_metrics import (
        check_resolutions,
        compare,
        measure,
        read_reference,
    )
    from repae_jax.evaluation.image_sets import open_images
    from repae_jax.evaluation.inception_features import make_features
    from repae_jax.evaluation.reference import CLEAN, write_statistics
    from repae_jax.evaluation.resized_images import clean_set, open_clean
    from repae_jax.interop.inception import read_inception

    clean = options.resizing == CLEAN
    with group.together():
        variables = read_inception(options.inception)
    features = make_features(variables, mesh=mesh, resized=clean)
    if made:
        samples = open_sampled(options, mesh)
        samples = clean_set(samples) if clean else samples
    else:
        opener = open_clean if clean else open_images
        samples = opener(options.samples, options.resolution).first(options.count)
    read = {"resolution": options.resolution, "resizing": options.resizing}
    reference = read_reference(options.reference, features, **read, **how)
    if options.save_reference and group.first:
        moments = (reference.pooled, reference.spatial)
        write_statistics(options.save_reference, *moments, resizing=options.resizing)
        print(f"reference: {options.save_reference}")
    check_resolutions(samples, reference)  # before the samples take their time
    scores = compare(measure(samples, features, **how), reference, progress=how["progress"])
    return scores, reference


def _check_options(options: argparse.Namespace, made: bool) -> None:
    """Raise UserError for options that exclude each other; `made`: the samples are a run's."""
    from repae_jax.config.needs import check_nothing_missing, missing_paths
    from repae_jax.evaluation.reference import ADM, CLEAN
    from repae_jax.interop.inception import missing_inception

    if not (options.reference or options.clip):
        raise UserError(
            "there is nothing to measure by: give --reference, or --clip for images of prompts"
        )
    if options.resizing not in (ADM, CLEAN):
        raise UserError(f"--resizing is {options.resizing!r}: use {ADM} or {CLEAN}")
    if made and options.clip:
        raise UserError(
            f"--clip needs prompts, but {options.samples} is a run: name a folder of images of "
            "prompts, or leave --clip out"
        )
    written, read = options.save_reference, (options.reference, options.samples)
    if written and not options.reference:
        raise UserError(f"--save-reference {written} needs --reference, whose statistics it holds")
    read = [path for path in read if path]
    missing = [
        f"{path} does not exist: name images, an .npz file or a run"
        for path in read
        if not pathlib.Path(path).exists()
    ]
    missing += missing_paths({"--clip": options.clip})
    if missing:  # if only the weights are missing, their reader reports it
        inception = missing_inception(options.inception) if options.reference else []
        check_nothing_missing([*missing, *inception])
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


def _print_figures(options: argparse.Namespace, measured: _Measured) -> None:
    from repae_jax.evaluation.report import write_figures

    figures: dict[str, Any] = {"samples": str(options.samples)}
    if measured.scores:
        print(describe(measured.scores, measured.reference, options.resizing))
        figures |= {"reference": measured.reference.name, "resizing": options.resizing}
        figures |= {k: v for k, v in dataclasses.asdict(measured.scores).items() if v is not None}
    if measured.clip_score is not None:
        count = measured.clip_images
        print(f"{count} images of prompts in {options.samples}, by {options.clip}")
        print(_line("CLIP score", measured.clip_score, "100 times the cosine, negative ones as 0"))
        figures |= {"clip": options.clip, "clip_images": count, "clip_score": measured.clip_score}
    if options.output:
        write_figures(options.output, figures)
        print(f"figures: {options.output}")


def describe(scores: Scores, reference: Reference, resizing: str) -> str:
    """Format the figures as text, and explain the missing ones."""
    from repae_jax.evaluation.precision_recall import NEIGHBORS
    from repae_jax.evaluation.reference import CLEAN

    how = ", resized as by clean-fid" if resizing == CLEAN else ""
    lines = [f"{scores.count} images against {reference.name}{how}"]
    lines += [_line(label, getattr(scores, key), what) for key, (label, what) in _LABELS.items()]
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


def _line(label, value, what):
    shown = "-" if value is None else f"{value:.4f}"
    return f"  {label:<16}{shown:>10}  {what}"
