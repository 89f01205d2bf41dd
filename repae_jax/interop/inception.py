"""InceptionV3's published weights, as pytorch-fid and torch-fidelity distribute them."""

import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.downloads import weights_named
from repae_jax.interop.files import read_tensors
from repae_jax.interop.tables import CONV, LINEAR, Rule
from repae_jax.models.inception import SIZE, InceptionV3

# counters that only training reads; the bias, which the Inception Score leaves out
_IGNORED = (r".*\.num_batches_tracked", r"fc\.bias")


def read_inception(path: str | pathlib.Path) -> dict:
    """The variables of `InceptionV3` from a file of published weights.

    Args:
      path: pytorch-fid's `pt_inception-2015-12-05-6726825d.pth` (interop/downloads.py) or
        torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`; both are PyTorch state dicts
        of the TensorFlow graph's tensors.

    Raises:
      UserError: the file is missing, damaged or of another network.
    """
    for missing in missing_inception(path):
        raise UserError(missing)
    return load_inception(read_tensors(path), source=str(path))


def missing_inception(path: str | pathlib.Path) -> list[str]:
    """[] if the file exists, else [a message with the URL to download it from]."""
    if pathlib.Path(path).is_file():
        return []
    place = weights_named("pretrained/inception/pt_inception-2015-12-05-6726825d.pth").place
    return [f"no InceptionV3 weights at {path}; download {place} to there"]


def load_inception(tensors: Mapping[str, np.ndarray], *, source: str = "Inception weights") -> dict:
    """{"params": ..., "batch_stats": ...} for `InceptionV3`.

    Args:
      tensors: `Mixed_5b.branch1x1.conv.weight` and so on -> arrays; the classes' bias `fc.bias`
        and `num_batches_tracked` are ignored.
      source: the name of the tensors in an error, such as the file's name.

    Raises:
      UserError: a tensor is missing, unexpected, misshapen or not finite.
    """
    shapes = inception_shapes()
    return tables.load(_table(shapes), tensors, shapes, source=source, ignore=_IGNORED)


def inception_shapes() -> dict:
    """Shapes and types of the result of `load_inception`; allocates nothing."""
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return jax.eval_shape(InceptionV3().init, jax.random.key(0), images)


def _table(shapes):
    """Rules for every convolution with its BatchNorm, and for the head."""
    rules = [Rule("fc.weight", "params/fc/kernel", LINEAR)]
    for path in tables.flatten(shapes["params"]):
        if path.endswith("conv/kernel"):
            rules += _conv_norm(path.removesuffix("/conv/kernel"))
    return rules


def _conv_norm(ours):
    theirs = ours.replace("/", ".")
    return [
        Rule(f"{theirs}.conv.weight", f"params/{ours}/conv/kernel", CONV),
        *tables.norm(f"{theirs}.bn", f"params/{ours}/bn"),
        Rule(f"{theirs}.bn.running_mean", f"batch_stats/{ours}/bn/mean"),
        Rule(f"{theirs}.bn.running_var", f"batch_stats/{ours}/bn/var"),
    ]
