"""Checkpoints: the whole state and the data iterator's place, through Orbax."""

import contextlib
import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np

from repae_jax.errors import UserError
from repae_jax.training.state import TrainState

FOLDER = "checkpoints"
FIELDS = tuple(field.name for field in dataclasses.fields(TrainState))


class Checkpoints:
    """The checkpoints of one work directory.

    Saving runs in the background, under a temporary name that is renamed when all is written,
    so a killed run leaves no half checkpoint that could be mistaken for a whole one.
    """

    def __init__(self, workdir: str | pathlib.Path, *, keep: int = 3, read_only: bool = False):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self.folder = pathlib.Path(workdir).absolute() / FOLDER
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=not read_only, read_only=read_only
        )
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "data": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def latest_step(self) -> int | None:
        """The newest whole checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data_state: dict) -> None:
        """Begin to save the state and the data iterator's `get_state()` at `state.step`.

        Returns when the arrays are copied off the devices; the writing goes on behind.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        args = self._ocp.args
        self._manager.save(
            step,
            args=args.Composite(state=args.PyTreeSave(state), data=args.JsonSave(data_state)),
        )

    def restore(self, template: TrainState) -> tuple[TrainState, dict]:
        """The newest checkpoint's state and data state.

        Args:
          template: of the same structure; arrays, or shapes with shardings. Networks under
            `frozen` that the checkpoint does not hold (an imported one has no teachers) are left
            out, and so is what the template lacks: with an empty `opt_state` no moments are read.

        Raises:
          UserError: the checkpoint is damaged or has another structure.
        """
        args, step = self._ocp.args, self._newest()
        with self._readable(step):
            held = self._manager.item_metadata(step)["state"]["frozen"]
            frozen = {name: tree for name, tree in template.frozen.items() if name in held}
            wanted = _filled_fields(template.replace(frozen=frozen))
            restore_args = self._ocp.checkpoint_utils.construct_restore_args(wanted)
            state = args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True)
            restored = self._manager.restore(
                step, args=args.Composite(state=state, data=args.JsonRestore())
            )
            _check_complete(restored["state"])
        empty = {name: {} for name in FIELDS}
        return TrainState(**{**empty, **restored["state"]}), restored["data"]

    def restore_as_saved(self) -> dict[str, Any]:
        """The newest checkpoint's state as nested dicts of numpy arrays, whatever it holds."""
        args, step = self._ocp.args, self._newest()
        with self._readable(step):
            held = self._manager.item_metadata(step)["state"].tree
            numpy = self._ocp.RestoreArgs(restore_type=np.ndarray)
            state = args.PyTreeRestore(restore_args=jax.tree.map(lambda _: numpy, held))
            return self._manager.restore(step, args=args.Composite(state=state))["state"]

    def close(self) -> None:
        """Wait until everything is written."""
        self._manager.close()

    def _newest(self):
        step = self.latest_step()
        if step is None:
            raise UserError(f"no checkpoint in {self.folder}: train first")
        return step

    @contextlib.contextmanager
    def _readable(self, step):
        """Orbax's errors while it reads as one line."""
        try:
            yield
        except (ValueError, KeyError, OSError, TypeError, json.JSONDecodeError) as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
            raise UserError(
                f"checkpoint {self.folder / str(step)} cannot be read "
                f"({type(error).__name__}: {reason}); delete that folder to go on from the one "
                "before it"
            ) from error


def _filled_fields(state: TrainState) -> dict[str, Any]:
    """The fields that hold anything: Orbax takes an empty dict for a leaf."""
    fields = {name: getattr(state, name) for name in FIELDS}
    return {name: tree for name, tree in fields.items() if jax.tree.leaves(tree)}


def _check_complete(tree):
    """Orbax leaves what a checkpoint does not hold as it was in the template."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise KeyError(f"{jax.tree_util.keystr(path)} is missing")


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
