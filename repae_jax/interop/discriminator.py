"""The discriminator under the original implementation's names (`main.{n}.weight`)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.interop import tables
from repae_jax.interop.extract import extract
from repae_jax.interop.tables import CONV, Rule
from repae_jax.models.discriminator import PatchDiscriminator

# a name that every file has, and a name that other networks with a "main.0" lack
SIGN = r"^main\.0\.weight$|main\.3\.running_mean$"
# counters of the updates of the running statistics, which nothing reads at a fixed momentum
_IGNORED = (r"main\.\d+\.num_batches_tracked",)


def discriminator_table(num_layers: int) -> list[Rule]:
    """Rules for a PatchGAN of `num_layers` layers; our paths start with the collection's name.

    The original numbers all layers in sequence: convolution, LeakyReLU, then (convolution,
    BatchNorm, LeakyReLU) `num_layers` times, then a convolution.
    """
    rules = tables.layer("main.0", "params/conv_0", CONV)
    for i in range(1, num_layers + 1):
        conv, norm = f"main.{3 * i - 1}", f"main.{3 * i}"
        rules += tables.layer(conv, f"params/conv_{i}", CONV, bias=False)
        rules += tables.norm(norm, f"params/norm_{i}")
        rules += [
            Rule(f"{norm}.running_mean", f"batch_stats/norm_{i}/mean"),
            Rule(f"{norm}.running_var", f"batch_stats/norm_{i}/var"),
        ]
    last = num_layers + 1
    return rules + tables.layer(f"main.{3 * last - 1}", f"params/conv_{last}", CONV)


def load_discriminator(
    tensors: Mapping[str, np.ndarray],
    model: PatchDiscriminator,
    *,
    source: str = "discriminator checkpoint",
) -> dict:
    """{"params": ..., "batch_stats": ...} for `model` from the original's state dict.

    Args:
      tensors: `main.{n}.weight` and so on -> arrays; names may be wrapped, as in the checkpoint of
        a VAE's training, and `num_batches_tracked` is ignored.
      model: the discriminator that takes the variables.
      source: the name of the tensors in an error, such as the file's name.

    Raises:
      UserError: a tensor is missing, unexpected, misshapen or not finite.
    """
    found = extract(tensors, SIGN, source=source)
    tensors = found.tensors if found else tensors
    table = discriminator_table(model.num_layers)
    shapes = discriminator_shapes(model)
    return tables.load(table, tensors, shapes, source=source, ignore=_IGNORED)


def discriminator_shapes(model: PatchDiscriminator) -> dict:
    """Shapes and types of the result of `load_discriminator`; allocates nothing."""
    size = 3 * 2**model.num_layers  # the smallest image it takes
    images = jnp.zeros((1, size, size, 3))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


def batch_counts(model: PatchDiscriminator) -> list[str]:
    """The names of PyTorch's counters of updates, one per BatchNorm."""
    return [f"main.{3 * i}.num_batches_tracked" for i in range(1, model.num_layers + 1)]
