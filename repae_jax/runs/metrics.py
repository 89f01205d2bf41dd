"""Metrics as TensorBoard events: written through clu, read back for the report.

Other writers may stand beside TensorBoard's.
"""

import logging
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FOLDER = "tensorboard"


class MetricWriter:
    """Writes scalars and images into a work directory's TensorBoard folder, in the background."""

    def __init__(self, workdir: pathlib.Path, step: int = 0, *, others: Sequence[Any] = ()):
        """Open the writer for steps after `step`; existing events of later steps become void.

        Args:
          workdir: the run's folder.
          step: the number of completed steps.
          others: writers with the interface of `clu.metric_writers.MetricWriter` that get the same.
        """
        quiet_tensorflow()
        from clu import metric_writers

        _void(workdir / FOLDER, step)
        writer = metric_writers.SummaryWriter(str(workdir / FOLDER))
        self._writer = metric_writers.AsyncMultiWriter([writer, *others])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write the scalars of one step."""
        self._writer.write_scalars(step, values)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Write one image, uint8 (H, W, 3)."""
        self._writer.write_images(step, {name: image[None]})

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def read_history(workdir: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read {metric: (steps (N,), values (N,))} from the events of a work directory.

    The result is empty without events. A run that went back to an earlier step has written some
    steps twice: the later values count, and void steps are left out until the run reaches them
    again.
    """
    quiet_tensorflow()
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    if not (workdir / FOLDER).is_dir():
        return {}
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it would log void events
    events = EventAccumulator(
        str(workdir / FOLDER), size_guidance={"tensors": 0}, purge_orphaned_data=True
    )
    events.Reload()
    history = {}
    for name in events.Tags()["tensors"]:
        series = events.Tensors(name)
        arrays = {e.step: tensor_util.make_ndarray(e.tensor_proto) for e in series}
        if all(np.ndim(value) == 0 and value.dtype.kind == "f" for value in arrays.values()):
            steps = np.array(sorted(arrays))
            history[name] = (steps, np.array([float(arrays[step]) for step in steps]))
    return history


def _void(folder, step):
    """Write a session start after `step` if earlier events exist; readers then drop later steps.

    The start goes into a file of its own that sorts after all others by name. Names begin with the
    time in seconds, and their order within one second is arbitrary.
    """
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    before = sorted(folder.glob("*tfevents*"))
    if not before:
        return
    while f".{int(time.time())}." in before[-1].name:
        time.sleep(0.05)
    log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    start = event_pb2.Event(wall_time=time.time(), step=step + 1, session_log=log)
    version = event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2")
    with open(f"{before[-1]}.restart", "wb") as file:
        writer = RecordWriter(file)
        for event in (version, start, start):  # readers ignore the very first start
            writer.write(event.SerializeToString())
        writer.flush()


def quiet_tensorflow() -> None:
    """Silence TensorFlow's log messages; clu imports TensorFlow. Call it before the import."""
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
