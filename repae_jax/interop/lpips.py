"""LPIPS weights: torchvision's VGG16 with the published heads, or a complete LPIPS module."""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.extract import extract
from repae_jax.interop.files import read_tensors
from repae_jax.interop.tables import CONV, CONV1X1, Rule
from repae_jax.models.lpips import BLOCKS, LPIPS

Naming = Literal["torchvision", "module"]

# the beginning of a name that every file has: an LPIPS module's, torchvision's VGG16, the heads
SIGN = r"(net\.slice1\.0|features\.28|lin0\.model\.1)\."
# the positions of VGG16's convolutions in its sequence of layers, ReLUs and poolings included
_VGG16 = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))

# VGG16's classifier, which LPIPS does not use; constants that our module has in its code
_IGNORED = {
    "torchvision": (r"classifier\..*",),
    "module": (r"scaling_layer\.(shift|scale)",),
}


def lpips_table(naming: Naming) -> list[Rule]:
    """Rules for the convolutions and the heads.

    Args:
      naming: "torchvision" for torchvision's VGG16 (`features.{n}`) merged with LPIPS's `vgg.pth`
        (`lin{k}.model.1`); "module" for the state dict of a complete LPIPS module
        (`net.slice{j}.{n}`, `lin{k}.model.1`), as in the original implementation.
    """
    rules = [Rule("lin{k}.model.1.weight", "lin{k}/kernel", CONV1X1)]
    for block, positions in enumerate(_VGG16, start=1):
        for index, n in enumerate(positions, start=1):
            theirs = f"features.{n}" if naming == "torchvision" else f"net.slice{block}.{n}"
            rules += tables.layer(theirs, f"conv{block}_{index}", CONV)
    return rules


def read_lpips(heads: str, vgg: str) -> dict[str, np.ndarray]:
    """The tensors for `load_lpips`.

    Args:
      heads: the path of LPIPS's `vgg.pth`, or of a complete LPIPS module.
      vgg: the path of torchvision's VGG16, or again of the complete module.

    Raises:
      UserError: a file is missing, damaged, or of another network.
    """
    tensors = {}
    for path in dict.fromkeys((vgg, heads)):
        content = read_tensors(path)
        found = extract(content, SIGN, source=str(path))
        tensors |= found.tensors if found else content
    return tensors


def load_lpips(
    tensors: Mapping[str, np.ndarray], model: LPIPS, *, source: str = "LPIPS weights"
) -> dict:
    """{"params": ...} for `model`; the first tensor identifies the naming.

    Args:
      tensors: the tensors of a complete LPIPS module, or of torchvision's VGG16 and `vgg.pth` in
        one dict: `read_lpips("vgg.pth", "vgg16-397923af.pth")`.
      model: the LPIPS that takes the parameters.
      source: the name of the tensors in an error, such as the file's name.

    Raises:
      UserError: the naming is unknown, or a tensor is missing, unexpected or of another shape.
    """
    naming = _naming(tensors, source)
    images = jnp.zeros((1, 2 ** len(BLOCKS), 2 ** len(BLOCKS), 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, images))
    tensors = tables.without(tensors, _IGNORED[naming])
    expected = tables.exported_shapes(lambda v: _export(v, naming), shapes)
    tables.check(tensors, expected, source=source)
    params = tables.to_ours(lpips_table(naming), tensors, source=source)
    return {"params": tables.unflatten(params)}


def _export(variables, naming):
    return tables.to_theirs(lpips_table(naming), tables.flatten(variables["params"]))


def _naming(tensors, source) -> Naming:
    if "features.0.weight" in tensors:
        return "torchvision"
    if "net.slice1.0.weight" in tensors:
        return "module"
    raise UserError(
        f"{source}: not the weights of LPIPS: has neither 'features.0.weight' (torchvision's "
        "VGG16, to be merged with vgg.pth) nor 'net.slice1.0.weight' (an LPIPS module)"
    )
