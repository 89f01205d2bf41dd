"""Checkpoints: the whole state and the data iterator's place, through Orbax."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from repae_jax.errors import LostProcess, UserError, first_line
from repae_jax.parallel.multihost import processes
from repae_jax.runs.checkpoint_names import names_of
from repae_jax.runs.integrity import MARK, Sums, check_checkpoint
from repae_jax.runs.optimizers import as_held, as_wanted
from repae_jax.runs.retention import Record, Retention
from repae_jax.runs.state import TrainState
from repae_jax.utils.atomic_files import entries
from repae_jax.utils.schema import as_whole

FOLDER = "checkpoints"
# Bytes of a file of arrays, about: one is held in memory while it is written, and its checksum is
# taken at once, while it is in memory still.
_FILE_SIZE = 1 << 28
FIELDS = tuple(field.name for field in dataclasses.fields(TrainState))


class Checkpoints:
    """The checkpoints of one work directory.

    Saving runs in the background, under a temporary name that is renamed when all is written,
    so a killed run leaves no half checkpoint that could be mistaken for a whole one. Each holds the
    checksums of its files, so that damage since shows before anything is used. All processes of a
    job make the same calls.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        keep: int = 3,
        keep_every: int = 0,
        read_only: bool = False,
    ):
        """Name them; the folder is opened at the first use, and made where it is missing.

        Args:
          workdir: the work directory.
          keep: how many of the newest stay; the last one that is proven (see `Record`) does, too.
          keep_every: those at multiples of this stay for ever; 0: none.
          read_only: never write.
        """
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self.folder = pathlib.Path(workdir).absolute() / FOLDER
        self._read_only, self._keep, self._every = read_only, keep, keep_every
        self._unproven: int | None = None  # a step
        self._sums = Sums()

    @functools.cached_property
    def record(self) -> Record:
        """What is known of the checkpoints beside their content."""
        write = not self._read_only and processes().first
        return Record(self.folder, saved_steps(self.folder.parent), write=write)

    @functools.cached_property
    def _manager(self):
        """Orbax' manager of the folder; raises UserError where that cannot be written."""
        ocp = self._ocp
        options = ocp.CheckpointManagerOptions(
            preservation_policy=Retention(self._keep, self._every, self.record),
            create=not self._read_only,
            read_only=self._read_only,
            cleanup_tmp_directories=not self._read_only,  # what killed runs left
            lightweight_initialize=True,  # else a damaged one would keep the others shut
            # in the background, by the first process, before the folder has its name
            async_options=ocp.AsyncOptions(post_finalization_callback=self._sums.write),
        )
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "data": ocp.JsonCheckpointHandler()}
        try:
            return ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        except OSError as error:
            raise UserError(f"{self.folder}: {error.strerror or error}; permit it") from error

    def latest_step(self) -> int | None:
        """The newest checkpoint's step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The checkpoints' steps, the first first."""
        return sorted(self._manager.all_steps())

    def proven_step(self, before: int | None = None) -> int | None:
        """The step of the last one that is proven, of those before a step; None without one."""
        proven = (s for s in self.steps() if s in self.record.proven)
        return max((s for s in proven if before is None or s < before), default=None)

    def follow(self, step: int, metrics: Callable[[], Mapping[str, float]]) -> None:
        """After every step that was not skipped: its metrics may prove the checkpoint before it."""
        awaited = self._unproven is not None and step > self._unproven
        if not awaited and self.record.begun:
            return
        self.record.judge(self._unproven if awaited else None, metrics())
        if self.folder.is_dir():  # else saving says what is wrong
            self.record.write(self.steps())
        if awaited:
            self._unproven = None

    def save(
        self, step: int, state: TrainState, data_state: dict, *, due: int | None = None
    ) -> None:
        """Begin to save the state and the data iterator's `get_state()`.

        Returns when the arrays are copied off the devices; the writing goes on behind.

        Args:
          step: the state's.
          state: all of it.
          data_state: where the data stand.
          due: the step at which it should have been saved, if that was another.

        Raises:
          UserError: the checkpoint before could not be written, or this one cannot.
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
        """Wait until everything is written.

        Raises:
          UserError: it could not be.
        """
        with self._writable(None):
            self._manager.wait_until_finished()
        self._sums.close()

    def restore(self, template: TrainState, step: int | None = None) -> tuple[TrainState, dict]:
        """The newest whole checkpoint's state and data state, or those of a step.

        A damaged one is reported and the one before it is taken. Unless this is read-only, it is
        set aside under the name damaged-<step>, so that the run can save at that step again.

        Args:
          template: of the same structure; arrays, or shapes with shardings. Networks under
            `frozen` that the checkpoint does not hold (an imported one has no teachers) are left
            out, and so is what the template lacks: with an empty `opt_state` no moments are read.
          step: take this one and no other.

        Raises:
          UserError: there is no checkpoint, or all are damaged or have another structure.
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
        """The newest whole checkpoint's state as nested dicts of numpy arrays.

        Raises:
          UserError: there is none.
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
        """Wait until everything is written, and close."""
        self.wait()
        self._manager.close()

    def _restore(self, step, template):
        args = self._ocp.args
        held = self._manager.item_metadata(step)["state"].tree
        names = names_of(held)
        held = names.present(held)
        frozen = {name: tree for name, tree in template.frozen.items() if name in held["frozen"]}
        optimizers = {k: as_held(s, held["opt_state"][k]) for k, s in template.opt_state.items()}
        wanted = _filled_fields(template.replace(frozen=frozen, opt_state=optimizers))
        _check_shapes(held, wanted)
        restore_args = self._ocp.checkpoint_utils.construct_restore_args(wanted)
        state = args.PyTreeRestore(
            names.stored(wanted), restore_args=names.stored(restore_args), partial_restore=True
        )
        restored = self._manager.restore(
            step, args=args.Composite(state=state, data=args.JsonRestore())
        )
        fields = names.present(restored["state"])
        _check_complete(fields)
        fields["opt_state"] = {
            name: as_wanted(fields["opt_state"][name], wanted)
            for name, wanted in template.opt_state.items()
        }
        empty = {name: {} for name in FIELDS}
        return TrainState(**{**empty, **fields}), restored["data"]

    def _newest(self, read):
        """What `read` gives of the newest step of which it gives anything."""
        group, damage = processes(), []
        if self.latest_step() is None:
            raise UserError(f"no checkpoint in {self.folder}: train first")
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
        count = len(damage)
        what = "it is the only one" if count == 1 else f"no other of {count} can be read"
        raise UserError(
            f"{damage[0]}; {what}: restore one from a copy, or begin anew, in this work directory "
            "by train --from-step 0 (an imported run: convert it once more)"
        ) from damage[0]

    def _set_aside(self, step, group):
        """Rename the checkpoints after `step`, which cannot be read."""
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
        """Orbax's errors while it reads as one line."""
        try:
            yield
        except (ValueError, KeyError, OSError, TypeError, json.JSONDecodeError) as error:
            raise UserError(
                f"checkpoint {self.folder / str(step)} cannot be read "
                f"({type(error).__name__}: {first_line(error)})"
            ) from error

    @contextlib.contextmanager
    def _writable(self, step):
        """Orbax's errors while it writes as one line; ArrayRecord's and TensorStore's, too."""
        try:
            yield
        except (ValueError, OSError, RuntimeError) as error:
            if isinstance(error, jax.errors.JaxRuntimeError):
                raise  # of the devices
            if isinstance(error, TimeoutError) and processes().count > 1:
                raise LostProcess(
                    f"another process did not finish its part of a checkpoint "
                    f"({first_line(error)}); start all processes again"
                ) from error
            what = "the checkpoint" if step is None else f"the checkpoint of step {step}"
            raise UserError(
                f"{self.folder}: {what} cannot be written ({first_line(error)}); make room or "
                "permit it there, and run the same command to go on from the last whole one"
            ) from error


def _filled_fields(state: TrainState) -> dict[str, Any]:
    """The fields that hold anything: Orbax takes an empty dict for a leaf."""
    fields = {name: getattr(state, name) for name in FIELDS}
    return {name: tree for name, tree in fields.items() if jax.tree.leaves(tree)}


def _check_shapes(held, wanted):
    """Raise ValueError for an array of another shape than wanted, before anything is allocated."""
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


def _check_complete(tree):
    """Orbax leaves what a checkpoint does not hold as it was in the template."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise KeyError(f"{jax.tree_util.keystr(path)} is missing")


def saved_steps(workdir: str | pathlib.Path) -> list[int]:
    """The steps of a work directory's checkpoints, the first first; none without any."""
    # One that is being written has another name.
    steps = map(as_whole, entries(pathlib.Path(workdir) / FOLDER))
    return sorted(step for step in steps if step is not None)


def restore_latest(workdir: str | pathlib.Path) -> dict[str, Any]:
    """The newest state in a work directory as nested dicts of numpy arrays.

    Raises:
      UserError: there is none, or it is damaged.
    """
    if not (pathlib.Path(workdir) / FOLDER).is_dir():
        raise UserError(f"{workdir} is no work directory of a run: it has no {FOLDER}/ folder")
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        return checkpoints.restore_as_saved()
    finally:
        checkpoints.close()
