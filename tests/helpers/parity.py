"""What the parity tests share: torch modules with random weights, and relative errors."""

import contextlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable, Mapping

import jax
import numpy as np
import torch
from checkouts import module_of
from torch import library

from repae_jax.interop.original import export_part, import_part

TOLERANCE = 1e-4
OWN_METRICS = ("latent_std", "skipped")  # of the step, which the original's log does not have

ORIGINAL = os.environ.get("REPAE_ORIGINAL")
SKIP_REASON = "set REPAE_ORIGINAL to a checkout of the original implementation (it needs timm)"


def quick_jit(function: Callable) -> Callable:
    """`jax.jit` for one small call: LLVM's optimisations would take longer than they save."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def relative_error(actual, expected) -> float:
    """max |actual - expected| / max |expected|; infinite for other shapes or NaN."""
    actual, expected = as_numpy(actual), as_numpy(expected)
    if actual.shape != expected.shape:
        return float("inf")
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    return float("inf") if np.isnan(error) else float(error)


def assert_close(actual, expected, what: str, tolerance: float = TOLERANCE) -> None:
    """Relative error of one tensor."""
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{what}: {error}"


def assert_tensors_close(
    actual: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    *,
    vanishing: Callable[[str], str | None] = lambda name: None,
    tolerance: float = TOLERANCE,
) -> None:
    """The same names, and each tensor close.

    `vanishing` gives, for a tensor that is zero but for rounding, the name of another that tells
    its scale: then both are compared with zero.
    """
    assert set(actual) == set(expected)
    for name, value in expected.items():
        other = vanishing(name)
        if other is None:
            assert_close(actual[name], value, name, tolerance)
        else:
            bound = tolerance * np.abs(as_numpy(expected[other])).max()
            assert np.abs(as_numpy(value)).max() <= bound, name
            assert np.abs(as_numpy(actual[name])).max() <= bound, name


def assert_backbones_equal(model, variables, x, time, labels, x_torch, expected):
    """The prediction, and the gradients of a random weighting of it by x and by torch's parameters.

    Args:
      model, variables: ours.
      x, time, labels: its inputs.
      x_torch: x as a leaf (B, C, h, w).
      expected: torch's prediction (B, C, h, w) from `x_torch`, toward the noise.

    Returns:
      Our gradients by the parameters, and our output; torch's parameters hold their gradients.
    """
    weight = normal(*x.shape, seed=2)
    (expected * torch.tensor(weight.transpose(0, 3, 1, 2))).sum().backward()

    def weighted(params, x):
        output = model.apply({**variables, "params": params}, x, time, {"label": labels})
        return (output.prediction * weight).sum(), output

    gradients = quick_jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))
    (by_params, by_x), output = gradients(variables["params"], x)
    assert_close(output.prediction, to_nhwc(expected), "velocity")
    assert_close(by_x, to_nhwc(x_torch.grad), "gradient by x")
    return by_params, output


def assert_outputs_equal(outputs_of, params, inputs, expected, leaves):
    """Several outputs, and the gradients of a random weighting of them by inputs and parameters.

    Args:
      outputs_of: (params, *inputs) -> our outputs.
      params: ours.
      inputs: x (B, h, w, c), and further arrays.
      expected: torch's outputs in our layout, from `leaves`.
      leaves: the same inputs as torch's leaves, x as (B, c, h, w).

    Returns:
      Our gradients by the parameters; torch's parameters hold theirs.
    """
    weights = [normal(*e.shape, seed=3 + i) for i, e in enumerate(expected)]
    sum((e * torch.tensor(w)).sum() for e, w in zip(expected, weights, strict=True)).backward()

    def weighted(params, *inputs):
        outputs = outputs_of(params, *inputs)
        return sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)), outputs

    argnums = tuple(range(1 + len(inputs)))
    gradient = quick_jit(jax.grad(weighted, argnums=argnums, has_aux=True))
    (by_params, by_x, *by_others), outputs = gradient(params, *inputs)
    for i, (ours, theirs) in enumerate(zip(outputs, expected, strict=True)):
        assert_close(ours, theirs, f"output {i}")
    assert_close(by_x, to_nhwc(leaves[0].grad), "gradient by x")
    for i, (ours, leaf) in enumerate(zip(by_others, leaves[1:], strict=True), start=2):
        assert_close(ours, leaf.grad, f"gradient by input {i}")
    return by_params


def assert_names_come_back(part, net: torch.nn.Module) -> None:
    """A state dict goes in and out bit by bit, and the part numbers the optimizer's parameters."""
    state = state_of(net)
    back = export_part(import_part(state, part, source="it"), part, {})
    # the numbers of an optimizer's state
    assert list(part.slots) == [name for name, _ in net.named_parameters()]
    assert set(back) == set(state)
    for name, array in state.items():
        if "rope" in name:  # their float32 angles differ from ours in the last digits
            np.testing.assert_allclose(back[name], array, atol=2e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(back[name], array, err_msg=name)


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """`module` with every parameter random: also norm scales and what is initialised as zero.

    Weights are N(0, 1 / fan_in), biases N(0, 0.1^2), norm scales N(1, 0.2^2).
    """
    generator = torch.Generator().manual_seed(seed)
    norms = (torch.nn.GroupNorm, torch.nn.LayerNorm, torch.nn.BatchNorm2d)
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if isinstance(part, norms) and name == "weight":
                parameter.data = 1.0 + 0.2 * noise
            elif parameter.dim() < 2:
                parameter.data = 0.1 * noise
            else:
                parameter.data = noise / parameter[0].numel() ** 0.5
    return module


def shrink(layer: torch.nn.Module, factor: float) -> None:
    """Scale a layer's parameters, so that the epsilon of the norm behind it shows in the values."""
    for parameter in layer.parameters():
        parameter.data *= factor


def state_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """The state dict as numpy arrays of its own."""
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


def gradients_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """name -> gradient of every parameter that trains."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    return {name: as_numpy(p.grad) for name, p in trained.items()}


def normal(*shape: int, seed: int) -> np.ndarray:
    """Standard normal float32 numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def to_nchw(x: np.ndarray) -> torch.Tensor:
    """(B, H, W, C) array -> (B, C, H, W) tensor, a leaf."""
    return torch.tensor(np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2)))


def to_nhwc(x: torch.Tensor) -> np.ndarray:
    """(B, C, H, W) tensor -> (B, H, W, C) array."""
    return as_numpy(x).transpose(0, 2, 3, 1)


def as_numpy(x) -> np.ndarray:
    """An array or a tensor, with or without gradient, as a numpy array."""
    return x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def original_module(path: str):
    """One file of the original implementation's checkout as a module."""
    file = pathlib.Path(ORIGINAL) / path
    return module_of(file, f"repae_original_{file.stem}")


def _import_torchvision():
    """Let diffusers and timm import torchvision, also where it was built for another torch."""
    if sys.modules.get("torchvision", "") is None:  # another test file has hidden a misfit
        del sys.modules["torchvision"]
    with contextlib.suppress(ImportError):  # where it is not installed, diffusers does without
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            # Its import only registers further properties of these two; nothing here calls them.
            for name in ("torchvision::nms", "torchvision::qnms"):
                library.define(name, "(Tensor dets, Tensor scores, float threshold) -> Tensor")
            importlib.import_module("torchvision")


_import_torchvision()
