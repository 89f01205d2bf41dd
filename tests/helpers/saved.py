"""What torch saved: read without running code, and compared."""

import argparse
import pathlib
from collections.abc import Mapping

import torch


def saved_content(path: pathlib.Path) -> dict:
    """What torch finds in a checkpoint."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def assert_same_content(actual, expected, at: str = "") -> None:
    """Nested dicts, lists and values equal in order and type, tensors bit for bit."""
    if isinstance(expected, Mapping):
        assert list(actual) == list(expected), at
        for key, value in expected.items():
            assert_same_content(actual[key], value, f"{at}/{key}")
    elif isinstance(expected, torch.Tensor):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), at
        assert actual.numpy().tobytes() == expected.numpy().tobytes(), at
    elif isinstance(expected, list):
        assert len(actual) == len(expected), at
        for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_same_content(one, other, f"{at}/{number}")
    else:
        assert (type(actual), actual) == (type(expected), expected), at
