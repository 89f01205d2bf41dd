"""The start of a run: check the input, open it, claim the work directory, load the state.

`loop.train` calls these functions in this order; before `claim`, nothing is written.
"""

import pathlib

import jax
from ml_collections import ConfigDict

from repae_jax.config.needs import check_files
from repae_jax.config.validate import check_devices
from repae_jax.data.caption_states import PadStates
from repae_jax.data.pipeline import train_batches
from repae_jax.data.source import check_captions
from repae_jax.models.networks import Models
from repae_jax.parallel import sharding
from repae_jax.parallel.mesh import local_rows, make_mesh, place
from repae_jax.parallel.multihost import Processes
from repae_jax.runs import run_data
from repae_jax.runs import workdir as work_directory
from repae_jax.runs.build import build_models
from repae_jax.runs.captions import check_tokenizer, keep_tokenizer, make_tokenize
from repae_jax.runs.checkpoints import FOLDER, Checkpoints, saved_steps
from repae_jax.runs.going_back import check_step, has_gone_back, recovery_command, set_aside
from repae_jax.runs.initial_state import load_frozen
from repae_jax.runs.state import TrainState
from repae_jax.runs.wandb_writer import start_over
from repae_jax.training.hooks import RunContext
from repae_jax.training.logger import Logger
from repae_jax.training.monitor import Monitor
from repae_jax.training.program import Program
from repae_jax.utils.atomic_files import write_atomically

BAD_IMAGES = "bad_images.txt"  # in the work directory: images that data.on_bad_image skipped
SHARDING = "sharding.txt"  # in the work directory: the sharding of each array of the state


def check(
    config: ConfigDict, workdir: pathlib.Path, from_step: int | None, processes: Processes
) -> tuple[list[str], int | None]:
    """Check the configuration against the files, the devices and the work directory.

    Returns:
      The differences from the run's own configuration, and the step to go back to: None if the same
      command has already gone back there.

    Raises:
      UserError: files are missing, the devices do not fit, or the work directory holds another run.
    """
    check_files(config, loads=not (workdir / FOLDER).exists() or from_step == 0)
    check_devices(config, jax.device_count())
    changed = work_directory.check(workdir, config)
    if from_step is not None:
        if not changed and has_gone_back(workdir, from_step):
            print(f"this run has gone back to step {from_step} and continues from there")
            return changed, None
        check_step(workdir, from_step, processes.index, processes.count)
    return changed, from_step


def open_context(
    config: ConfigDict, workdir: pathlib.Path, processes: Processes, *, progress: bool
) -> RunContext:
    """Open the data and build the networks, without writing.

    Raises:
      UserError: the data cannot be opened, or have changed since the run began.
    """
    checkpoints = Checkpoints(
        workdir, keep=config.run.keep_checkpoints, keep_every=config.run.keep_every
    )

    def back(before):
        return recovery_command(workdir, config, checkpoints.proven_step(before), processes.count)

    logger = Logger(config, workdir, first=processes.first, progress=progress)
    models = build_models(config)
    data = run_data.open_data(config, workdir, bad_images=workdir / BAD_IMAGES)
    if models.text_encoder is not None:
        check_captions(data.train)
        check_tokenizer(workdir, make_tokenize(config))
    return RunContext(
        config=config,
        workdir=workdir,
        models=models,
        mesh=make_mesh(config.mesh.data, config.mesh.fsdp),
        processes=processes,
        data=data,
        checkpoints=checkpoints,
        logger=logger,
        monitor=Monitor(config.run.max_skipped, config.run.on_collapse, logger.say, back),
    )


def open_batches(run: RunContext):
    """Open an iterator over this process's rows of the batches, from the first batch."""
    config, encoder = run.config, run.models.text_encoder
    caption = {}
    if encoder is not None:
        caption["tokenize"] = make_tokenize(config)
        if getattr(run.data.train, "keeps_states", False):
            caption["pad_states"] = PadStates(encoder.length)
    return train_batches(
        run.data.train,
        batch_size=config.batch_size,
        seed=config.seed,
        rows=local_rows(run.mesh, config.batch_size),
        workers=config.data.workers,
        flip=config.data.flip,
        random_crop=config.data.random_crop,
        **caption,
    )


def claim(run: RunContext, from_step: int | None) -> str:
    """Claim the work directory for this configuration; only the first process calls it.

    Checkpoints and samples after `from_step` are set aside.

    Returns:
      A message about the data, or "".
    """
    config, workdir = run.config, run.workdir
    if from_step is None:
        work_directory.claim(workdir, config, step=max(saved_steps(workdir), default=0))
    else:
        aside = set_aside(workdir, from_step)
        start_over(workdir, aside)
        # The same command then resumes, if it has gone back and has steps left to train.
        continues = aside or from_step < config.run.steps
        notes = {"from_step": from_step} if continues else {}
        notes |= {"set_aside": aside} if aside else {}
        work_directory.claim(workdir, config, step=from_step, **notes)
        if aside:
            print(
                f"the checkpoints after step {from_step} are in {workdir / aside}, a work directory"
            )
    if run.models.text_encoder is not None:
        keep_tokenizer(workdir, make_tokenize(config))
    return run_data.record(config, workdir, run.data)


def resume(run: RunContext, program: Program, batches) -> TrainState:
    """Restore the newest checkpoint's state to the devices, and move `batches` to its position.

    Raises:
      UserError: no checkpoint can be read.
    """
    state, data_state = run.checkpoints.restore(program.template)
    # The checkpoint of an imported run lacks teachers and LPIPS; they are read from their files.
    missing = program.template.frozen.keys() - state.frozen.keys()
    frozen = load_frozen(run.config, run.models, sorted(missing))
    shardings = {name: program.shardings.frozen[name] for name in frozen}
    batches.set_state(data_state)
    return state.replace(frozen={**state.frozen, **place(frozen, shardings)})


def describe(run: RunContext, program: Program) -> None:
    """Print a summary of the state's sharding, and write the full table to the work directory."""
    shapes, shardings = program.template, program.shardings
    axes = ", ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    kind = run.mesh.devices.flat[0].device_kind
    run.logger.say(
        f"{_amount(run.mesh.size, 'device')} ({kind}; {axes}), "
        f"{_amount(run.processes.count, 'process', 'processes')}\n"
        + sharding.summary(shapes, shardings)
    )
    if note := frozen_encoder_note(run.config, run.models):
        run.logger.say(f"warning: {note}")
    if run.processes.first:
        text = sharding.table(shapes, shardings) + "\n"
        write_atomically(run.workdir / SHARDING, text.encode())


def frozen_encoder_note(config: ConfigDict, models: Models) -> str:
    """What a joint run cannot do with a tokenizer whose encoder no run trains; "" for others."""
    joint = {"backbone", "tokenizer"} <= set(config.train)
    if not joint or not getattr(models.tokenizer, "frozen_encoder", False):
        return ""
    return (
        "this tokenizer's encoder is frozen, so the alignment cannot tune the latents: the run "
        "trains the decoder beside the backbone; the recipes repa and vanilla train the backbone "
        "alone"
    )


def _amount(count, one, many=""):
    return f"{count} {one if count == 1 else many or one + 's'}"
