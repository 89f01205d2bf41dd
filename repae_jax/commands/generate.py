"""The `generate` command: N images, on all devices of all processes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from repae_jax.commands.options import (
    LABELS_HELP,
    add_negative_prompt,
    add_processes,
    add_quiet,
    add_sampler,
    add_step,
    add_workdir,
    join_processes,
)
from repae_jax.commands.sampled_run import (
    check_prompt_options,
    chosen_sampler,
    negative_prompt,
    of_captions,
    sampled_config,
)
from repae_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from jax.sharding import Mesh
    from ml_collections import ConfigDict

    from repae_jax.data.tokens import Tokenize
    from repae_jax.parallel.multihost import Processes
    from repae_jax.runs.open_run import Run
    from repae_jax.sampling.generate import Inputs
    from repae_jax.sampling.outputs import Folder, Npz
    from repae_jax.sampling.prompts import PromptFolder
    from repae_jax.sampling.sampler import Sampler
    from repae_jax.utils.lock import Lock

SUMMARY = "generate many images from a trained run, on all devices"
EPILOG = """\
Image i depends on the seed, its number i and its class alone: other batches, devices or processes
change no pixel by more than one level. A killed command resumes where it stopped, and ends with the
same bytes. Beside NAME.npz it writes NAME.json, which describes the images, and NAME_preview.png.

examples:
  generate --workdir runs/x --output samples/x.npz                50,000, for FID
  generate --workdir runs/x --output samples/dogs --labels 207,250 --count 64    PNG files
  generate --workdir runs/x --output samples/sde.npz --method euler-maruyama --steps 250 \\
      --guidance-scale 2.5 --guidance-high 0.75
  generate --distributed --workdir ... --output ...               on every host of a pod
  generate --workdir runs/t --output samples/geneval --prompts geneval.jsonl --layout geneval

A run with captions takes a file of prompts, and writes a folder as a benchmark's scorer reads it:
  geneval, dpg, genai, coco, mjhq   the file and the folder of that benchmark
  flat (default)                    a text with a prompt a line; 00000_00.png, ..., prompts.jsonl
There an image depends on the seed, its prompt and its number among the prompt's images alone.

An .npz holds arr_0, uint8 (N, H, W, 3), and arr_1, the classes (-1: unconditional), for the
evaluator of ADM (openai/guided-diffusion), which most published FIDs on ImageNet come from:
  python evaluations/evaluator.py VIRTUAL_imagenet256_labeled.npz samples/x.npz"""
_LAYOUTS = ("geneval", "dpg", "genai", "coco", "mjhq", "flat")
_OF_PROMPTS = ("prompts", "layout", "images_per_prompt", "negative_prompt")
_COUNT = 50_000  # images of a run of classes by default
_PER_DEVICE = 32  # images per batch and device, unless --batch-size is given


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_workdir(parser, "a trained run, or one that `convert` imported")
    add_step(parser)
    parser.add_argument(
        "--output",
        required=True,
        type=pathlib.Path,
        help="NAME.npz: all images in one file; a folder: each as a PNG, or as the layout has it",
    )
    parser.add_argument("--count", type=int, help="images in all (default: 50000)")
    parser.add_argument("--labels", help=LABELS_HELP)
    prompts = parser.add_argument_group("a run with captions")
    prompts.add_argument(
        "--prompts", type=pathlib.Path, metavar="FILE", help="prompts in the layout's form"
    )
    prompts.add_argument("--layout", choices=_LAYOUTS, help="(default: flat)")
    prompts.add_argument(
        "--images-per-prompt",
        type=int,
        metavar="N",
        help="images of each prompt (default: four for geneval and dpg, one for the others)",
    )
    add_negative_prompt(prompts)
    parser.add_argument(
        "--batch-size",
        type=int,
        help="images per batch over all devices, rounded up to a multiple of their number "
        "(default: 32 per device)",
    )
    add_sampler(parser)
    add_processes(parser)
    add_quiet(parser)


@dataclasses.dataclass(frozen=True)
class Job:
    """The requested images.

    Attributes:
      config: the run's configuration.
      sampler: the sampler.
      seed: the seed of all images.
      inputs: the inputs (N, ...) of all images, on the host.
      indices: (N,) integers, the index of each image's noise; None: 0, 1, 2, ...
      asked: identifies the choice of classes or prompts in the file beside the images.
      tokenize: the tokenizer of a run with captions.
      negative_prompt: what guidance leads away from; "" for the empty prompt.
      output: the file or folder.
      mesh: the devices.
      batch_size: images per batch.
    """

    config: ConfigDict
    sampler: Sampler
    seed: int
    inputs: Inputs
    indices: np.ndarray | None
    asked: Mapping[str, Any]
    tokenize: Tokenize | None
    negative_prompt: str
    output: Npz | Folder | PromptFolder
    mesh: Mesh
    batch_size: int


def run(options: argparse.Namespace) -> int:
    """Generate images from a checkpoint of the run; returns 0.

    All processes of a job make the same call. Each computes its part of every batch; all processes
    receive the images, and the first one writes them.

    Raises:
      UserError: the options, the run or the output are wrong.
      LostProcess: another process of the job is gone.
    """
    import numpy as np

    from repae_jax.parallel.multihost import processes
    from repae_jax.runs.captions import with_negative_prompt
    from repae_jax.runs.open_run import open_run, sampling_weights
    from repae_jax.sampling.generate import make_generate

    join_processes(options)
    group = processes()
    lock = None  # held by the first process
    with group.translate_device_errors(), contextlib.ExitStack() as held:
        with group.together():
            job = _plan(options)
        trained = open_run(options.workdir, job.mesh, step=options.step)
        weights = sampling_weights(trained.state)
        if job.negative_prompt:
            weights = with_negative_prompt(
                weights, trained.models, job.tokenize, job.negative_prompt
            )
        with group.together():
            count = job.output.count
            finished, missing = False, np.zeros(-(-count // job.batch_size), np.int32)
            if group.first:
                lock = held.enter_context(job.output.claimed())
                job.output.begin(_made(job, trained, weights))
                starts = job.output.missing(job.batch_size)
                finished = not starts and job.output.is_finished()
                missing[np.array(starts, int) // job.batch_size] = 1
        missing = np.flatnonzero(group.from_first(missing)) * job.batch_size
        models = trained.models
        generate = make_generate(models, job.sampler, mesh=job.mesh)
        del trained  # only the sampling weights stay on the devices
        if missing.size:
            _write_missing(job, generate, weights, missing, lock, group, progress=not options.quiet)
        with group.together():
            if group.first:
                job.output.show(count)
                if not finished:
                    job.output.finish(job.inputs.get("label"))
    if group.first:
        _print_output(job.output, finished)
    return 0


def _plan(options: argparse.Namespace) -> Job:
    """Check the options before anything large is loaded; returns the job."""
    from repae_jax.parallel.mesh import make_mesh, padded_batch_size

    config = sampled_config(options.workdir)
    check_prompt_options(config, options, _OF_PROMPTS)
    sampler = chosen_sampler(config, options)
    plan = _plan_prompts if of_captions(config) else _plan_classes
    negative = negative_prompt(options.negative_prompt, sampler)
    asked = plan(options, config)
    mesh = make_mesh()
    batch_size = padded_batch_size(mesh, options.batch_size, _PER_DEVICE, asked["output"].count)
    return Job(
        config=config, sampler=sampler, seed=options.seed, mesh=mesh, batch_size=batch_size,
        negative_prompt=negative, **asked,
    )  # fmt: skip


def _plan_classes(options: argparse.Namespace, config: ConfigDict) -> dict[str, Any]:
    """The fields of a `Job` that the classes determine."""
    from repae_jax.sampling.class_labels import BALANCED, choose_labels
    from repae_jax.sampling.outputs import make_output

    side, count = config.data.resolution, _COUNT if options.count is None else options.count
    output = make_output(options.output, count, (side, side, 3))
    labels, text = choose_labels(
        options.labels or BALANCED, count, config.data.num_classes, options.seed
    )
    asked = {"labels": text}
    return dict(inputs={"label": labels}, indices=None, asked=asked, tokenize=None, output=output)


def _plan_prompts(options: argparse.Namespace, config: ConfigDict) -> dict[str, Any]:
    """The fields of a `Job` that the prompts determine."""
    from repae_jax.runs.captions import make_tokenize, tokenized, warn_of_cut_prompts
    from repae_jax.sampling.layouts import read_prompts
    from repae_jax.sampling.prompts import (
        describe_prompts,
        make_prompt_folder,
        prompt_indices,
        spread,
    )

    if options.prompts is None:
        raise UserError(
            f"{options.workdir} is a run with captions: name a file of prompts with --prompts FILE"
        )
    if options.count is not None:
        raise UserError(
            f"--count is {options.count}, but the prompts determine the number of images: leave it "
            "out, or set --images-per-prompt"
        )
    layout, side = options.layout or "flat", config.data.resolution
    prompts = read_prompts(layout, options.prompts)
    output = make_prompt_folder(
        options.output, layout, prompts, options.images_per_prompt, (side, side, 3)
    )
    tokenize, texts = make_tokenize(config), [prompt.text for prompt in prompts]
    warn_of_cut_prompts(tokenize, texts)
    return dict(
        inputs=spread(tokenized(tokenize, texts), output.each),
        indices=prompt_indices(texts, output.each),
        asked=describe_prompts(layout, prompts, output.each),
        tokenize=tokenize,
        output=output,
    )


def _made(job: Job, run: Run, weights: Mapping[str, Any]) -> dict[str, Any]:
    """The values that determine the images, for the file beside them."""
    from repae_jax.runs.fingerprint import weights_sha256
    from repae_jax.sampling.outputs import Npz

    return {
        "config": job.config.name,
        "step": int(run.state.step),
        "weights_sha256": weights_sha256(weights),
        **dataclasses.asdict(job.sampler),
        "seed": job.seed,
        **job.asked,
        **({} if job.tokenize is None else {"negative_prompt": job.negative_prompt}),
        "count": job.output.count,
        "shape": list(job.output.shape),
        "files": "npz" if isinstance(job.output, Npz) else "png",
    }


def _write_missing(
    job: Job,
    generate: Callable,
    weights: Mapping[str, Any],
    starts: np.ndarray,
    lock: Lock | None,
    group: Processes,
    *,
    progress: bool,
) -> None:
    """Generate the batches that begin at `starts`; the first process writes them."""
    from tqdm import tqdm

    from repae_jax.parallel.mesh import place_key
    from repae_jax.sampling.generate import generate_batches

    count, size = job.output.count, job.batch_size
    key = place_key(job.mesh, job.seed)
    batches = generate_batches(
        generate, weights, key, job.inputs, starts, batch_size=size, indices=job.indices,
        mesh=job.mesh,
    )  # fmt: skip
    left = sum(min(size, count - start) for start in starts)
    with tqdm(
        total=count,
        initial=count - left,
        unit="image",
        desc=job.output.path.name,
        disable=not (progress and group.first),
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
    ) as bar:
        for start, images in batches:
            if lock is not None:
                lock.check()
                job.output.write(start, images)
                job.output.show(start + len(images))
            bar.update(len(images))


def _print_output(output: Npz | Folder | PromptFolder, finished: bool) -> None:
    side = "x".join(map(str, output.shape[:2]))
    state = "exist already" if finished else "written"
    first = f"; first ones: {output.preview}" if output.preview.is_file() else ""
    print(f"{output.path}: {output.count} images, {side}, {state}{first}")
