"""JiT's code from a checkout of iREPA: the model, and the denoiser with loss and samplers."""

import contextlib
import importlib
import os
import pathlib
import sys
import warnings

import torch

ORIGINAL = os.environ.get("IREPA_ORIGINAL")
REASON = "set IREPA_ORIGINAL to a checkout of End2End-Diffusion/iREPA (it needs einops)"


def original_jit(**config):
    """Their model with the prediction as its only output, on the CPU."""
    return _on_the_cpu(_module("model_jit").JiT, config, lambda outputs: outputs[0])


def original_jit_with_heads(**config):
    """Their model with its three outputs: the prediction, projections, and aligned tokens."""
    return _on_the_cpu(_module("model_jit").JiT, config, lambda outputs: outputs)


def original_preset(arch, side):
    """Their model of a published size, without memory."""
    with _patched(), torch.device("meta"):
        return _module("model_jit").JiT_models[arch](input_size=side)


def original_denoiser(**arguments):
    """Their denoiser of a model of `JiT_models`, replaced by the small one of `net`."""
    import argparse

    module, net = _module("denoiser"), arguments.pop("net")
    module.JiT_models["own"] = lambda **_: net
    return module.Denoiser(argparse.Namespace(model="own", **arguments))


def _on_the_cpu(make, config, chosen):
    with _patched():
        model = make(**config).eval()
    forward = model.forward

    def without_cuda(*inputs):
        with _patched():
            return chosen(forward(*inputs))

    model.forward = without_cuda
    return model


def _module(name):
    """A module of the checkout, imported apart from others of the same names."""
    with _patched():
        return importlib.import_module(name)


@contextlib.contextmanager
def _patched():
    before, path = dict(sys.modules), list(sys.path)
    compiled, cuda = torch.compile, torch.Tensor.cuda
    sys.path.insert(0, str(pathlib.Path(ORIGINAL) / "jit"))
    torch.compile, torch.Tensor.cuda = lambda function: function, lambda tensor: tensor
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch.cuda.amp
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        torch.compile, torch.Tensor.cuda, sys.path[:] = compiled, cuda, path
        for name in sys.modules.keys() - before.keys():
            if name.partition(".")[0] in (
                "denoiser", "model_jit", "projection_loss", "projectors", "util"
            ):  # fmt: skip
                del sys.modules[name]
        sys.modules.update(before)
