"""The heads of the DINO discriminator under RAE's names (`heads.{i}.0.0.weight_orig`)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.interop import tables
from repae_jax.interop.extract import extract
from repae_jax.interop.tables import Layout, Rule
from repae_jax.models.dino_discriminator import DinoDiscriminator

SIGN = r"^heads\.0\.0\.0\.weight_orig$"  # a name that every file has
# our layer -> theirs, below a head
_CONVOLUTIONS = {"conv_1": "0.0", "conv_2": "1.fn.0", "conv_3": "2"}
_NORMS = {"norm_1": "0.1", "norm_2": "1.fn.1"}
_KERNEL = Layout(  # (out, in, k) <-> (k, in, out)
    lambda a: a.transpose(2, 1, 0), lambda a: a.transpose(2, 1, 0)
)


def discriminator_table(kernel: int) -> list[Rule]:
    """Rules for heads with a convolution of `kernel` tokens; our paths start with the collection.

    The file has the kernels before the spectral normalization, and u and v of their power
    iterations.
    """
    rules = []
    for ours, theirs in _CONVOLUTIONS.items():
        layer, head = f"heads_{{i}}/{ours}", f"heads.{{i}}.{theirs}"
        rules += [
            Rule(f"{head}.weight_orig", f"params/{layer}/kernel", _KERNEL),
            Rule(f"{head}.bias", f"params/{layer}/bias"),
            Rule(f"{head}.weight_u", f"batch_stats/{layer}/u"),
            Rule(
                f"{head}.weight_v",
                f"batch_stats/{layer}/v",
                _right_vector(kernel if ours == "conv_2" else 1),
            ),
        ]
    for ours, theirs in _NORMS.items():
        rules += tables.norm(f"heads.{{i}}.{theirs}", f"params/heads_{{i}}/{ours}")
    return rules


def load_discriminator(
    tensors: Mapping[str, np.ndarray],
    model: DinoDiscriminator,
    *,
    source: str = "discriminator checkpoint",
) -> dict:
    """{"params": ..., "batch_stats": ...} for `model` from the state dict of RAE's discriminator.

    The frozen DINO is in a file of its own.

    Args:
      tensors: `heads.{i}.0.0.weight_orig` and so on -> arrays; they may lie in an entry, as "disc"
        of RAE's training checkpoint.
      model: the discriminator that takes the variables.
      source: the name of the tensors in an error, such as the file's name.

    Raises:
      UserError: a tensor is missing, unexpected, misshapen or not finite.
    """
    found = extract(tensors, SIGN, source=source)
    tensors = found.tensors if found else tensors
    shapes = discriminator_shapes(model)
    return tables.load(discriminator_table(model.kernel), tensors, shapes, source=source)


def export_discriminator(variables: Mapping, model: DinoDiscriminator) -> dict[str, np.ndarray]:
    """The inverse of `load_discriminator`; other collections are left out."""
    heads = {name: variables[name] for name in ("params", "batch_stats")}
    return tables.to_theirs(discriminator_table(model.kernel), tables.flatten(heads))


def discriminator_shapes(model: DinoDiscriminator) -> dict:
    """Shapes and types of the result of `load_discriminator`; allocates nothing."""
    images = jnp.zeros((1, model.side, model.side, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    return {name: shapes[name] for name in ("params", "batch_stats")}


def _right_vector(kernel):
    """v of a power iteration: (in * k,) <-> (k, in)."""
    return Layout(lambda a: a.reshape(-1, kernel).T, lambda a: a.T.reshape(-1))
