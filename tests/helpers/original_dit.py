"""The DiT's authors' code from a checkout: the model, its loss and its samplers."""

import contextlib
import importlib
import os
import pathlib
import sys

ORIGINAL = os.environ.get("DIT_ORIGINAL")
REASON = "set DIT_ORIGINAL to a checkout of facebookresearch/DiT (it needs timm)"


def original_dit(**config):
    """Their model."""
    return _module("models").DiT(**config).eval()


def create_diffusion(respacing: str, **options):
    """Their diffusion, of all steps for ""."""
    return _module("diffusion").create_diffusion(respacing, **options)


def _module(name):
    """A module of the checkout, imported apart from packages of the same name."""
    with _patched():
        return importlib.import_module(name)


@contextlib.contextmanager
def _patched():
    before, path = dict(sys.modules), list(sys.path)
    sys.path.insert(0, str(pathlib.Path(ORIGINAL)))
    try:
        yield
    finally:
        sys.path[:] = path
        for name in sys.modules.keys() - before.keys():
            if name.partition(".")[0] in ("models", "diffusion"):
                del sys.modules[name]
        sys.modules.update(before)
