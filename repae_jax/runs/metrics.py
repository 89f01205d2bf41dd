"""Metrics out: TensorBoard events through clu, and back in for the report."""

import logging
import pathlib
import time
from collections.abc import Mapping

import numpy as np

FOLDER = "tensorboard"


class MetricWriter:
    """Writes scalars and images into a work directory's TensorBoard folder, in the background."""

    def __init__(self, workdir: pathlib.Path, step: int = 0):
        """Write what comes behind `step`; what is there of later steps is void."""
        quiet_tensorflow()
        from clu import metric_writers

        _void(workdir / FOLDER, step)
        writer = metric_writers.SummaryWriter(str(workdir / FOLDER))
        self._writer = metric_writers.AsyncWriter(writer)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars of one step."""
        self._writer.write_scalars(step, values)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Write one picture, uint8 (H, W, 3)."""
        self._writer.write_images(step, {name: image[None]})

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def read_history(workdir: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{metric: (steps, values)} from the events of a work directory, empty if there are none.

    A run that was continued from an earlier step has written some steps twice; the later values
    count, and none of a step that it has not come to again.
    """
    quiet_tensorflow()
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    if not (workdir / FOLDER).is_dir():
        return {}
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it says what is void
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
    """Tell TensorBoard's readers that a session starts behind `step`, where there was one before.

    In a file of its own, behind the others in their order, which is that of their names: of the
    seconds, and within one of nothing that counts.
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
        for event in (version, start, start):  # the first start of all voids nothing
            writer.write(event.SerializeToString())
        writer.flush()


def quiet_tensorflow() -> None:
    """Keep TensorFlow, which clu writes through, from chatting and from taking the GPU."""
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
