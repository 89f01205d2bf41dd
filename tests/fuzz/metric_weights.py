"""Targets: the networks of measures. Their files are large: a few tensors are in the one that is
changed, and zeros in memory stand for the others.
"""

import functools

import numpy as np

from fuzz.saving import torch_save
from fuzz.target import Target
from repae_jax.interop import inception, lpips, tables
from repae_jax.interop.files import read_tensors
from repae_jax.models.lpips import LPIPS

_LPIPS = LPIPS(rescale_inputs=True)


def _filled(shapes):
    rng = np.random.default_rng(0)
    return {n: (rng.integers(1, 9, s) / 8).astype(np.float32) for n, s in shapes.items()}


def _blank(shapes):
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def _split(shapes, few):
    """Those whose names begin so, and the others."""
    kept = {name: shape for name, shape in shapes.items() if name.startswith(few)}
    return kept, {name: shape for name, shape in shapes.items() if name not in kept}


@functools.cache
def _lpips_shapes():
    """Of torchvision's VGG16, and of the heads."""
    import jax

    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(_LPIPS.init, jax.random.key(0), images, images)
    return _split(tables.exported_shapes(lambda v: lpips._export(v, "torchvision"), shapes), "lin")


def _write_heads(folder):
    torch_save(folder / "vgg.pth", _filled(_lpips_shapes()[0]))


def _read_heads(folder):
    path = str(folder / "vgg.pth")
    tensors = {**_blank(_lpips_shapes()[1]), **lpips.read_lpips(path, path)}
    params = lpips.load_lpips(tensors, _LPIPS)["params"]
    return {name: params[name] for name in params if name.startswith("lin")}


_FEW = ("Conv2d_1a_3x3.", "Mixed_5b.branch_pool.")


@functools.cache
def _inception_shapes():
    shapes = inception.inception_shapes()
    table = inception._table(shapes)
    theirs = tables.exported_shapes(lambda v: tables.to_theirs(table, tables.flatten(v)), shapes)
    return _split(theirs, _FEW)


def _write_inception(folder):
    ignored = {f"{_FEW[0]}bn.num_batches_tracked": np.int64([0]), "fc.bias": np.zeros(1008)}
    torch_save(folder / "inception.pth", {**_filled(_inception_shapes()[0]), **ignored})


def _read_inception(folder):
    tensors = {**_blank(_inception_shapes()[1]), **read_tensors(folder / "inception.pth")}
    loaded = inception.load_inception(tensors)
    return {kind: [part["Conv2d_1a_3x3"], part["Mixed_5b"]] for kind, part in loaded.items()}


TARGETS = (
    Target("LPIPS' heads, .pth", _write_heads, _read_heads),
    Target("InceptionV3, .pth", _write_inception, _read_inception),
)
