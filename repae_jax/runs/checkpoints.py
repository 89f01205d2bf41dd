"""Checkpoints of the complete state and of the data iterator's position, through Orbax."""

import contextlib
import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging as absl_logging

from repae_jax.errors import LostProcess, UserError, first_line
from repae_jax.parallel.multihost import processes
from repae_jax.runs.checkpoint_names import names_of
from repae_jax.runs.integrity import MARK, Sums, check_checkpoint
from repae_jax.runs.optimizers import to_saved_form, to_template_form
from repae_jax.runs.retention import Record, Retention
from repae_jax.runs.state import TrainState
from repae_jax.utils.atomic_files import entries
from repae_jax.utils.schema import as_whole

FOLDER = "checkpoints"
# What to do where there is no checkpoint.
TRAIN_FIRST = "train first, or wait until step config.run.checkpoint_every of a run in training"
# Approximate bytes per file of arrays. A file is in memory while it is written, and its checksum is
# computed during that time.
_FILE_SIZE = 1 << 28
FIELDS = tuple(field.name for field in dataclasses.fields(TrainState))


class Checkpoints:
    """The checkpoints of one work directory.

    Saving runs in the background, under a temporary name. A checkpoint gets its final name when it
    is complete, so an incomplete one of a killed run is never taken for complete. A checkpoint
    holds the checksums of its files, so later damage is detected before anything is used. All
    processes of a job make the same calls.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        keep: int = 3,
        keep_every: int = 0,
        read_only: bool = False,
    ):
        """Set the folder; it is opened at the first use, and created if it is missing.

        Args:
          workdir: the work directory.
          keep: number of newest checkpoints to keep, besides the last proven one (see `Record`).
          keep_every: keep checkpoints at multiples of this step forever; 0: none.
          read_only: open for reading only.
        """
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self.folder = pathlib.Path(workdir).absolute() / FOLDER
        self._read_only, self._keep, self._every = read_only, keep, keep_every
        self._unproven: int | None = None  # a step
        self._sums = Sums()

    @functools.cached_property
    def record(self) -> Record:
        """The record of proven and late checkpoints."""
        write = not self._read_only and processes().first
        return Record(self.folder, saved_steps(self.folder.parent), write=write)

    @functools.cached_property
    def _manager(self):
        """Orbax's manager of the folder; raises UserError if the folder cannot be written."""
        ocp, reads = self._ocp, self._read_only
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "data": ocp.JsonCheckpointHandler()}
        try:
            with _errors_only():  # Orbax warns that a folder opened for reading is read-only
                options = ocp.CheckpointManagerOptions(
                    preservation_policy=Retention(self._keep, self._every, self.record),
                    create=not reads,
                    read_only=reads,
                    cleanup_tmp_directories=not reads,  # of killed runs
                    lightweight_initialize=True,  # otherwise one damaged checkpoint blocks others
                    # runs in the background in the first process, before the folder gets its name
                    async_options=ocp.AsyncOptions(post_finalization_callback=self._sums.write),
                )
                return ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        except OSError as error:
            raise UserError(f"{self.folder}: {error.strerror or error}; permit it") from error

    def latest_step(self) -> int | None:
        """The newest checkpoint's step; None if there is no checkpoint."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The checkpoints' steps in ascending order."""
        return sorted(self._manager.all_steps())

    def proven_step(self, before: int | None = None) -> int | None:
        """The step of the last proven checkpoint, if given before `before`; None without one."""
        proven = (s for s in self.steps() if s in self.record.proven)
        return max((s for s in proven if before is None or s < before), default=None)

    def follow(self, step: int, metrics: Callable[[], Mapping[str, float]]) -> None:
        """Use a completed step's metrics to prove the checkpoint before it.

        Call it after every step that was not skipped.

        Args:
          step: the completed step.
          metrics: returns the step's metrics; called only if they are needed.
        """
        awaited = self._unproven is not None and step > self._unproven
        if not awaited and self.record.begun:
            return
        self.record.judge(self._unproven if awaited else None, metrics())
        if self.folder.is_dir():  # otherwise the next save reports the error
            self.record.write(self.steps())
        if awaited:
            self._unproven = None

    def save(
        self, step: int, state: TrainState, data_state: dict, *, due: int | None = None
    ) -> None:
        """Start to save the state and the data iterator's state.

        Returns when the arrays are copied off the devices; writing continues in the background.

        Args:
          step: the state's step.
          state: the complete state.
          data_state: the data iterator's `get_state()`.
          due: the step at which the checkpoint was due, if an earlier one.

        Raises:
          UserError: this checkpoint or the one before it cannot be written.
        """
        if step in self._manager.all_steps():
            return
        args = self._ocp.args
        with self._writable(step):
            if not self.folder.is_dir():
                raise FileNotFoundError("the folder has been removed")
            self._manager.wait_until_finished()
            self._unproven = step
            self.record.forget(step)
            if processes().first:
                self._sums.begin(self.folder, step)
            if due is not None and due != step and self._every and due % self._every == 0:
                self.record.late.add(step)
            arrays = args.PyTreeSave(state, ocdbt_target_data_file_size=_FILE_SIZE)
            self._manager.save(
                step,
                args=args.Composite(state=arrays, data=args.JsonSave(data_state)),
                custom_metadata={MARK: True},
            )

    def wait(self) -> None:
        """Wait until all checkpoints are written.

        Raises:
          UserError: a checkpoint cannot be written.
        """
        with self._writable(None):
            self._manager.wait_until_finished()
        self._sums.close()

    def restore(self, template: TrainState, step: int | None = None) -> tuple[TrainState, dict]:
        """Restore the newest intact checkpoint, or the one at `step`; returns state and data state.

        A damaged checkpoint is reported and the one before it is restored. Unless this is
        read-only, the damaged one is renamed to damaged-<step>, so that the run can save at that
        step again.

        Args:
          template: a state of the same structure; arrays, or shapes with shardings. The result
            leaves out networks under `frozen` that the checkpoint lacks (an imported one has no
            teachers), and fields that the template lacks: an empty `opt_state` reads no moments.
          step: restore only the checkpoint at this step.

        Raises:
          UserError: there is no such checkpoint, or all are damaged or have another structure.
        """
        if step is None:
            return self._newest(lambda step: self._restore(step, template))
        if step not in self.steps():
            kept = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"no checkpoint of step {step} in {self.folder}: there are {kept}")
        check_checkpoint(self.folder / str(step))
        with self._readable(step):
            return self._restore(step, template)

    def restore_as_saved(self) -> dict[str, Any]:
        """Restore the newest intact checkpoint's state as nested dicts of numpy arrays.

        Raises:
          UserError: there is no intact checkpoint.
        """
        args = self._ocp.args

        def read(step):
            held = self._manager.item_metadata(step)["state"].tree
            numpy = self._ocp.RestoreArgs(restore_type=np.ndarray)
            state = args.PyTreeRestore(restore_args=jax.tree.map(lambda _: numpy, held))
            state = self._manager.restore(step, args=args.Composite(state=state))["state"]
            return names_of(state).present(state)

        return self._newest(read)

    def close(self) -> None:
        """Wait until all checkpoints are written, and close the manager."""
        self.wait()
        self._manager.close()

    def _restore(self, step, template):
        args = self._ocp.args
        held = self._manager.item_metadata(step)["state"].tree
        names = names_of(held)
        held = names.present(held)
        frozen = {name: tree for name, tree in template.frozen.items() if name in held["frozen"]}
        optimizers = {
            k: to_saved_form(s, held["opt_state"][k]) for k, s in template.opt_state.items()
        }
        wanted = _nonempty_fields(template.replace(frozen=frozen, opt_state=optimizers))
        _check_shapes(held, wanted)
        restore_args = self._ocp.checkpoint_utils.construct_restore_args(wanted)
        state = args.PyTreeRestore(
            names.stored(wanted), restore_args=names.stored(restore_args), partial_restore=True
        )
        restored = self._manager.restore(
            step, args=args.Composite(state=state, data=args.JsonRestore())
        )
        fields = names.present(restored["state"])
        _check_complete(fields, self.folder / str(step))
        fields["opt_state"] = {
            name: to_template_form(fields["opt_state"][name], wanted)
            for name, wanted in template.opt_state.items()
        }
        empty = {name: {} for name in FIELDS}
        return TrainState(**{**empty, **fields}), restored["data"]

    def _newest(self, read):
        """The result of `read` for the newest checkpoint that is intact."""
        group, damage = processes(), []
        if self.latest_step() is None:
            raise UserError(f"no checkpoint in {self.folder}: {TRAIN_FIRST}")
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                with group.together():
                    check_checkpoint(self.folder / str(step), group.index, group.count)
                with group.together(), self._readable(step):
                    result = read(step)
            except UserError as error:
                damage.append(error)
                continue
            for error in damage:
                verb = "using" if self._read_only else "resuming from"
                print(f"warning: {error}; {verb} step {step}", flush=True)
            self._set_aside(step, group)
            self._unproven = step
            return result
        if isinstance(damage[0], OtherNetwork):
            raise damage[0]
        count = len(damage)
        what = "it is the only one" if count == 1 else f"no other of {count} can be read"
        raise UserError(
            f"{damage[0]}; {what}: restore one from a copy, or begin anew, in this work directory "
            "by train --from-step 0 (an imported run: convert it once more)"
        ) from damage[0]

    def _set_aside(self, step, group):
        """Rename the unreadable checkpoints after `step` to damaged-<step>."""
        with group.together():
            later = [s for s in self._manager.all_steps() if s > step]
            if self._read_only or not later:
                return
            for damaged in later if group.first else ():
                target = self.folder / f"damaged-{damaged}"
                shutil.rmtree(target, ignore_errors=True)
                (self.folder / str(damaged)).rename(target)
        self._manager.reload()

    @contextlib.contextmanager
    def _readable(self, step):
        """Turn Orbax's errors during reading into a UserError of one line."""
        try:
            yield
        except Exception as error:
            # Orbax puts the error of a piece of an array into a bare Exception.
            cause = error.__cause__ if type(error) is Exception else error
            if not isinstance(cause, (ValueError, KeyError, OSError, TypeError)):
                raise
            raise UserError(
                f"checkpoint {self.folder / str(step)} cannot be read "
                f"({type(cause).__name__}: {first_line(cause)})"
            ) from error

    @contextlib.contextmanager
    def _writable(self, step):
        """Turn errors of Orbax, ArrayRecord and TensorStore during writing into a UserError."""
        try:
            yield
        except (ValueError, OSError, RuntimeError) as error:
            if isinstance(error, jax.errors.JaxRuntimeError):
                raise  # an error of the devices
            if isinstance(error, TimeoutError) and processes().count > 1:
                raise LostProcess(
                    f"another process did not finish its part of a checkpoint "
                    f"({first_line(error)}); start all processes again"
                ) from error
            what = "the checkpoint" if step is None else f"the checkpoint of step {step}"
            raise UserError(
                f"{self.folder}: {what} cannot be written ({first_line(error)}); make room or "
                "permit it there, and run the same command to resume from the last complete one"
            ) from error


@contextlib.contextmanager
def _errors_only():
    """Drop what is logged below an error."""
    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        yield
    finally:
        absl_logging.set_verbosity(before)


def _nonempty_fields(state: TrainState) -> dict[str, Any]:
    """The fields that hold arrays; Orbax would treat an empty dict as a leaf."""
    fields = {name: getattr(state, name) for name in FIELDS}
    return {name: tree for name, tree in fields.items() if jax.tree.leaves(tree)}


def _check_shapes(held, wanted):
    """Raise ValueError for an array of a wrong shape, before anything is allocated."""
    for field in {"params", "batch_stats", "ema", "frozen"}.intersection(held):
        leaves = jax.tree_util.tree_leaves_with_path(held[field])
        shapes = {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
        for path, leaf in jax.tree_util.tree_leaves_with_path(wanted.get(field, {})):
            key = jax.tree_util.keystr(path)
            if key in shapes and tuple(shapes[key]) != tuple(leaf.shape):
                raise ValueError(
                    f"{field}{key} has the shape {tuple(shapes[key])}, the configuration needs "
                    f"{tuple(leaf.shape)}"
                )


class OtherNetwork(UserError):
    """A checkpoint is intact, but its arrays have other names than the network's."""


def _check_complete(tree, checkpoint):
    """Raise OtherNetwork for an array that the checkpoint lacks; Orbax returns its template."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise OtherNetwork(
                f"checkpoint {checkpoint} has no array {jax.tree_util.keystr(path)}, which the "
                "network has: its code has changed since, so train in a new work directory, or "
                "go back to the code that saved it"
            )


def saved_steps(workdir: str | pathlib.Path) -> list[int]:
    """The steps of a work directory's checkpoints in ascending order; [] without checkpoints."""
    # A checkpoint that is being written has a name that is no number.
    steps = map(as_whole, entries(pathlib.Path(workdir) / FOLDER))
    return sorted(step for step in steps if step is not None)


def restore_latest(workdir: str | pathlib.Path) -> dict[str, Any]:
    """Restore the newest state in a work directory as nested dicts of numpy arrays.

    Raises:
      UserError: there is no checkpoint, or all are damaged.
    """
    if not (pathlib.Path(workdir) / FOLDER).is_dir():
        raise UserError(f"{workdir} is no work directory of a run: it has no {FOLDER}/ folder")
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        return checkpoints.restore_as_saved()
    finally:
        checkpoints.close()
