"""Metrics out: TensorBoard events through clu, and back in for the report."""

import pathlib
from collections.abc import Mapping

import numpy as np

FOLDER = "tensorboard"


class MetricWriter:
    """Writes scalars and images into a work directory's TensorBoard folder, in the background."""

    def __init__(self, workdir: pathlib.Path):
        quiet_tensorflow()
        from clu import metric_writers

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

    A run that was killed and continued has written some steps twice; the later values count.
    """
    quiet_tensorflow()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    if not (workdir / FOLDER).is_dir():
        return {}
    events = EventAccumulator(
        str(workdir / FOLDER), size_guidance={"tensors": 0}, purge_orphaned_data=False
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


def quiet_tensorflow() -> None:
    """Keep TensorFlow, which clu writes through, from chatting and from taking the GPU."""
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
