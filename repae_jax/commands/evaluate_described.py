"""The `evaluate-described` command: whether images of the described data set fit their prompts."""

from __future__ import annotations

import argparse
import json
import math
import pathlib
from typing import TYPE_CHECKING, Any

from repae_jax.commands.options import DEFAULT, add_quiet, check_seed
from repae_jax.errors import UserError, warn

if TYPE_CHECKING:
    from repae_jax.evaluation.described_judge import DescribedJudge
    from repae_jax.evaluation.geneval import Detection, Score
    from repae_jax.evaluation.geneval_folder import PromptImages
    from repae_jax.evaluation.prompt_scores import TagScores

SUMMARY = "score images for prompts of the described data set, by GenEval's rules"
EPILOG = """\
IMAGES is a folder in GenEval's layout, as `generate --layout geneval` writes it. A small detector,
the judge, finds the objects; it is trained first, in minutes, if its file does not exist.

Columns of the table:
  score    the share of images that fit their prompts, with Wilson's 95 % interval
  seen     the score of prompts whose combinations of shapes and colors the training split has
  unseen   the score of prompts with a combination that it lacks
  floor    the share of images that fit the other prompts of the tag, as images without text do
  ceiling  the score of renders of the same prompts: below 0.97, the judge limits the score

examples:
  evaluate-described --write-prompts prompts.jsonl
  evaluate-described samples/prompts --judge runs/judge.safetensors --output scores.json"""
_LEAST_CEILING = 0.97
_PROMPTS = 50  # of a tag


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "images", metavar="IMAGES", nargs="?", type=pathlib.Path, help="the folder of images"
    )
    parser.add_argument(
        "--judge",
        type=pathlib.Path,
        metavar="FILE",
        help="the judge's weights (.safetensors), written if the file does not exist",
    )
    parser.add_argument(
        "--output", type=pathlib.Path, help="also write the figures to this JSON file"
    )
    prompts = parser.add_argument_group("prompts", "Write a file of prompts for `generate`.")
    prompts.add_argument(
        "--write-prompts",
        type=pathlib.Path,
        metavar="FILE",
        help="write prompts of all tags with GenEval's metadata (.jsonl), and end",
    )
    prompts.add_argument(
        "--count", type=int, default=_PROMPTS, help="prompts of each of the six tags " + DEFAULT
    )
    prompts.add_argument("--seed", type=int, default=0, help="seed of the choice " + DEFAULT)
    add_quiet(parser)


def run(options: argparse.Namespace) -> int:
    """Write prompts, or score the images of prompts; returns 0.

    Raises:
      UserError: the options, the folder, its images or the judge are wrong.
    """
    if options.write_prompts:
        _write_prompts(options)
        return 0
    if options.images is None:
        raise UserError("no IMAGES: name a folder of images, or a file for --write-prompts")
    if options.judge is None:
        raise UserError("--judge is missing: name the file with the judge's weights, or a new one")
    from repae_jax.data.described_prompts import check_known
    from repae_jax.evaluation.geneval_folder import open_geneval
    from repae_jax.evaluation.prompt_scores import mean_over_tags
    from repae_jax.evaluation.report import write_figures
    from repae_jax.utils.atomic_files import check_writable

    if options.output:
        check_writable(options.output)
    prompts = open_geneval(options.images)
    for prompt in prompts:
        check_known(prompt.metadata, source=str(prompt.folder / "metadata.jsonl"))
    judge = _make_judge(options.judge, progress=not options.quiet)
    scores = score_images(prompts, judge)
    means = mean_over_tags(scores)
    count = sum(len(prompt.files) for prompt in prompts)
    print(f"{count} images of {len(prompts)} prompts in {options.images}")
    print(describe(scores, means))
    for tag, found in scores.items():
        if found.ceiling.share < _LEAST_CEILING:
            warn(
                f"the ceiling of {tag} is {found.ceiling.share:.3f}, below {_LEAST_CEILING}: the "
                "judge limits its score; train a judge anew, or give more images"
            )
    if options.output:
        named = {"images": str(options.images), "judge_accuracy": judge.accuracy, "mean": means}
        tags = {tag: _figures(found) for tag, found in scores.items()}
        write_figures(options.output, named | {"tags": tags})
        print(f"figures: {options.output}")
    return 0


def _write_prompts(options: argparse.Namespace) -> None:
    from repae_jax.data.described_prompts import make_prompts
    from repae_jax.utils.atomic_files import check_writable, write_atomically
    from repae_jax.utils.schema import Count, check_schema

    if options.images is not None:
        raise UserError(f"--write-prompts reads no images: leave {options.images} out")
    for name in ("judge", "output"):
        if getattr(options, name) is not None:
            raise UserError(f"--write-prompts takes no --{name}: leave it out")
    check_schema(options.count, Count, source="--count")
    check_seed(options.seed)
    check_writable(options.write_prompts)
    prompts = make_prompts(options.count, options.seed)
    lines = "".join(f"{json.dumps(metadata)}\n" for metadata in prompts)
    file = options.write_prompts
    if file.exists() and file.read_bytes() != lines.encode():
        raise UserError(f"{file} exists already and is something else: name another file")
    print(f"{len(prompts)} prompts: {write_atomically(file, lines.encode())}")


def _make_judge(path: pathlib.Path, *, progress: bool) -> DescribedJudge:
    """Load the judge of a file, trained first if there is none."""
    from repae_jax.evaluation.described_judge import load_judge, save_judge
    from repae_jax.training.detector import DetectorRecipe, train_judge
    from repae_jax.utils.atomic_files import check_writable
    from repae_jax.utils.lock import writing

    if path.suffix != ".safetensors":
        raise UserError(f"--judge is {str(path)!r}: give a file .safetensors")
    if not path.exists():
        check_writable(path)
        with writing(path):
            judge = train_judge(DetectorRecipe(), progress=progress)
            save_judge(path, judge)
        share = 100 * judge.accuracy
        print(f"judge: {path}  (names all objects of {share:.1f} % of held-out renders)")
    return load_judge(path)


def score_images(prompts: list[PromptImages], judge: DescribedJudge) -> dict[str, TagScores]:
    """Score the images of prompts, and as many renders of the same prompts.

    Raises:
      UserError: an image is unreadable.
    """
    from repae_jax.data.described import RESOLUTION
    from repae_jax.data.described_prompts import is_unseen, render_prompt
    from repae_jax.evaluation.geneval_folder import read_images
    from repae_jax.evaluation.prompt_scores import score_by_tag

    def renders(number, prompt):
        copies = range(len(prompt.files))
        return [render_prompt(prompt.metadata["prompt"], number, copy).image for copy in copies]

    counts = [len(prompt.files) for prompt in prompts]
    found = _detect(judge, [read_images(prompt, RESOLUTION) for prompt in prompts], counts)
    true = _detect(judge, [renders(*numbered) for numbered in enumerate(prompts)], counts)
    metadata = [prompt.metadata for prompt in prompts]
    return score_by_tag(metadata, found, true, lambda prompt: is_unseen(prompt["prompt"]))


def _detect(judge, images, counts) -> list[list[list[Detection]]]:
    """What the judge detects: by prompt, by image."""
    import numpy as np

    found = iter(judge(np.concatenate(images)))
    return [[next(found) for _ in range(count)] for count in counts]


def describe(scores: dict[str, TagScores], means: dict[str, float]) -> str:
    """Format the scores as a table with a row per tag, and the means over tags."""
    lines = [
        f"{'tag':<14} {'score':>6} {'95 % interval':>16} {'seen':>6} {'unseen':>6} {'floor':>6} "
        f"{'ceiling':>7}"
    ]
    for tag, found in scores.items():
        interval = f"{found.all.low:.3f} to {found.all.high:.3f}"
        rest = (found.seen.share, found.unseen.share, found.floor)
        lines.append(_row(tag, found.all.share, interval, rest, found.ceiling.share))
    rest = (means["seen"], means["unseen"], means["floor"])
    lines.append(_row("mean over tags", means["all"], "", rest, means["ceiling"]))
    return "\n".join(lines)


def _row(name, score, interval, rest, ceiling):
    shown = " ".join(_number(value, 6) for value in rest)
    return f"{name:<14} {_number(score, 6)} {interval:>16} {shown} {_number(ceiling, 7)}"


def _number(value, width):
    return f"{'-':>{width}}" if math.isnan(value) else f"{value:{width}.3f}"


def _figures(found: TagScores) -> dict[str, Any]:
    def shown(score: Score):
        return score._asdict() if score.count else None

    return {
        "score": shown(found.all),
        "seen": shown(found.seen),
        "unseen": shown(found.unseen),
        "floor": found.floor,
        "ceiling": shown(found.ceiling),
    }
