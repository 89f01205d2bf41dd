"""The `generate` command: as many images as one likes, on all devices of all processes."""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from repae_jax.commands.sample import chosen_sampler, sampled_config
from repae_jax.parallel.mesh import make_mesh, put_key, whole_batches
from repae_jax.parallel.multihost import Processes, processes
from repae_jax.runs.fingerprint import weights_sha256
from repae_jax.runs.open_run import Run, open_run, sampling_weights
from repae_jax.sampling.class_labels import choose_labels
from repae_jax.sampling.generate import generate_batches, make_generate
from repae_jax.sampling.outputs import Folder, Npz, make_output
from repae_jax.sampling.samplers import Sampler
from repae_jax.utils.lock import Lock

_PER_DEVICE = 32  # images at a time, unless --batch-size tells


@dataclasses.dataclass(frozen=True)
class Job:
    """What is asked for: images of `labels` (N,) at `output`, `batch_size` at a time."""

    config: ConfigDict
    sampler: Sampler
    seed: int
    labels: np.ndarray
    labels_told: str
    output: Npz | Folder
    mesh: Mesh
    batch_size: int


def generate_command(options: argparse.Namespace) -> int:
    """Generate images from the newest checkpoint of `options.workdir`; returns 0.

    All processes of a job call it alike. Each computes its part of every batch; the images, small
    beside what they cost, go to all, and the first process writes them.

    Raises:
      UserError: bad options, run or output.
      LostProcess: another process of the job is gone.
    """
    group = processes()
    lock = None  # of the first process
    with group.devices_errors_said(), contextlib.ExitStack() as held:
        with group.together():
            job = _plan(options)
        run = open_run(options.workdir, job.mesh)
        weights = sampling_weights(run.state)
        with group.together():
            finished, missing = False, np.zeros(-(-len(job.labels) // job.batch_size), np.int32)
            if group.first:
                lock = held.enter_context(job.output.claimed())
                job.output.begin(_made(job, run, weights))
                starts = job.output.missing(job.batch_size)
                finished = not starts and job.output.path.exists()
                missing[np.array(starts, int) // job.batch_size] = 1
        missing = np.flatnonzero(group.from_first(missing)) * job.batch_size
        generate = make_generate(
            run.models.backbone, run.models.tokenizer, job.sampler, mesh=job.mesh
        )
        del run  # only what sampling needs stays on the devices
        if missing.size:
            _write_missing(job, generate, weights, missing, lock, group, progress=not options.quiet)
        with group.together():
            if group.first:
                job.output.show(len(job.labels))
                if not finished:
                    job.output.finish(job.labels)
    if group.first:
        _say(job, finished)
    return 0


def _plan(options: argparse.Namespace) -> Job:
    """What is asked for, checked before anything large is loaded."""
    config = sampled_config(options.workdir)
    sampler = chosen_sampler(config, options)
    side = config.data.resolution
    output = make_output(options.output, options.count, (side, side, 3))
    labels, told = choose_labels(
        options.labels, options.count, config.data.num_classes, options.seed
    )
    mesh = make_mesh()
    batch_size = whole_batches(mesh, options.batch_size, _PER_DEVICE, options.count)
    return Job(config, sampler, options.seed, labels, told, output, mesh, batch_size)


def _made(job: Job, run: Run, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides what the images are, for the file beside them."""
    return {
        "config": job.config.name,
        "step": int(run.state.step),
        "weights_sha256": weights_sha256(weights),
        **dataclasses.asdict(job.sampler),
        "seed": job.seed,
        "labels": job.labels_told,
        "count": job.output.count,
        "shape": list(job.output.shape),
        "files": "npz" if isinstance(job.output, Npz) else "png",
    }


def _write_missing(
    job, generate, weights, starts, lock: Lock | None, group: Processes, *, progress: bool
) -> None:
    """Make the batches that begin at `starts`; the first process writes them."""
    from tqdm import tqdm

    count, size = len(job.labels), job.batch_size
    key = put_key(job.mesh, job.seed)
    batches = generate_batches(
        generate, weights, key, job.labels, starts, batch_size=size, mesh=job.mesh
    )
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


def _say(job, finished):
    output = job.output
    side = "x".join(map(str, output.shape[:2]))
    there = "are there already" if finished else "written"
    print(f"{output.path}: {output.count} images, {side}, {there}; first ones: {output.preview}")
