"""The classes that a PyTorch file may name, beside those that torch reads without being told.

argparse.Namespace holds the originals' arguments. Files of DeepSpeed may hold objects of its own
beside the weights; each becomes an empty stand-in, so that neither its code nor its state is read.
"""

import argparse
import contextlib


class LeftOut:
    """Stands for an object that is not read. It accepts the object's state and keeps nothing."""

    def __init__(self, *args):
        del args

    def __setstate__(self, state):
        del state


def _stand_in(path):
    module, _, name = path.rpartition(".")
    return type(name, (LeftOut,), {"__module__": module, "__qualname__": name})


_DEEPSPEED = tuple(
    _stand_in(f"deepspeed.{path}")
    for path in (
        "runtime.fp16.loss_scaler.LossScaler",
        "runtime.fp16.loss_scaler.DynamicLossScaler",
        "runtime.zero.config.ZeroStageEnum",
        "utils.tensor_fragment.fragment_address",
    )
)


def only_allowed() -> contextlib.AbstractContextManager:
    """Within the block, torch's weights-only reader accepts these classes and no others."""
    import torch

    return torch.serialization.safe_globals([argparse.Namespace, *_DEEPSPEED])
