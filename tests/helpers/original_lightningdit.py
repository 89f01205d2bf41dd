"""The LightningDiT's authors' code from a checkout: the model, its loss and its sampler."""

import contextlib
import importlib
import itertools
import os
import pathlib
import sys
import types

import torch

ORIGINAL = os.environ.get("LIGHTNINGDIT_ORIGINAL")
REASON = "set LIGHTNINGDIT_ORIGINAL to a checkout of hustvl/LightningDiT (it needs timm)"
# What they import and the functions used here do without: a module -> its names.
_UNUSED = {
    "fairscale": [],
    "fairscale.nn": [],
    "fairscale.nn.model_parallel": [],
    "fairscale.nn.model_parallel.initialize": [],
    "fairscale.nn.model_parallel.layers": [
        "ColumnParallelLinear", "ParallelEmbedding", "RowParallelLinear"
    ],
}  # fmt: skip


def original_lightningdit(*, compiled: bool = False, **config):
    """Their model with the published options; `compiled` keeps its functions' torch.compile."""
    options = dict(use_rope=True, use_swiglu=True, use_rmsnorm=True) | config
    return _module("models.lightningdit", compiled).LightningDiT(**options).eval()


def original_transport():
    """Their package of losses and samplers, whose ODE solver is Euler's method here."""
    return _module("transport")


def euler(f, y, t, **_):
    """torchdiffeq's `odeint` for the method "euler"."""
    states = [y]
    for start, end in itertools.pairwise(t):
        states.append(states[-1] + (end - start) * f(start, states[-1]))
    return torch.stack(states)


def _module(name, compiled=False):
    """A module of the checkout, imported apart from the packages of the same names."""
    stubs = {key: types.ModuleType(key) for key in (*_UNUSED, "torchdiffeq")}
    for key, names in _UNUSED.items():
        for attribute in names:
            setattr(stubs[key], attribute, object)
    stubs["torchdiffeq"].odeint = euler
    with _patched(stubs, compiled):
        return importlib.import_module(name)


@contextlib.contextmanager
def _patched(stubs, compiled):
    before, path, decorator = dict(sys.modules), list(sys.path), torch.compile
    sys.modules.update(stubs)
    sys.path.insert(0, str(pathlib.Path(ORIGINAL)))
    if not compiled:
        torch.compile = lambda function: function
    try:
        yield
    finally:
        torch.compile = decorator
        if not compiled:  # torch's compiler looks up modules by name when a function is called
            sys.path[:] = path
            for name in sys.modules.keys() - before.keys():
                if name.partition(".")[0] in ("models", "transport", "fairscale", "torchdiffeq"):
                    del sys.modules[name]
            sys.modules.update(before)
