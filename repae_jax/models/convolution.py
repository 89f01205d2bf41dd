"""Convolutions over images (B, H, W, C), initialized as in PyTorch."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from repae_jax.models.stripes import add_rows


def torch_uniform(fan_in: int):
    """PyTorch's default initializer of weights and biases: U(-b, b) with b = 1 / sqrt(fan_in)."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv(
    in_features: int,
    features: int,
    kernel: int,
    *,
    stride: int = 1,
    padding=None,
    bias: bool = True,
    dtype=jnp.float32,
    kernel_init=None,
    stripes: int = 1,
    groups: int = 1,
    name: str | None = None,
) -> "Conv":
    """A square 2-D convolution over (B, H, W, C), initialized as in PyTorch.

    Args:
      in_features: C.
      features: output channels.
      kernel: the kernel's side.
      stride: the stride along both axes.
      padding: ((top, bottom), (left, right)); None: symmetric "same" padding of an odd kernel.
      bias: whether there is a bias.
      dtype: the type of the convolution.
      kernel_init: overrides the initializer of the weights; the bias keeps PyTorch's.
      stripes: the stripes per image of the input, see models/stripes.py.
      groups: groups of channels that are convolved apart; they divide C and `features`.
      name: the module's name.
    """
    init = torch_uniform(in_features // groups * kernel * kernel)
    pad = (kernel - 1) // 2
    return Conv(
        features,
        kernel,
        stride,
        padding=((pad, pad), (pad, pad)) if padding is None else padding,
        biased=bias,
        dtype=dtype,
        kernel_init=init if kernel_init is None else kernel_init,
        bias_init=init,
        stripes=stripes,
        groups=groups,
        name=name,
    )


class Conv(nn.Module):
    """A square 2-D convolution over (B, H, W, C); `add_bias` adds the bias, if `biased`.

    Attributes:
      features: output channels.
      kernel: the kernel's side.
      stride: the stride along both axes.
      padding: ((top, bottom), (left, right)), zeros beyond an image's border.
      biased: whether there is a bias.
      dtype: the type of the convolution; parameters are float32.
      kernel_init, bias_init: initializers.
      stripes: the stripes per image of the input, see models/stripes.py.
      groups: groups of channels that are convolved apart.
    """

    features: int
    kernel: int
    stride: int = 1
    padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1))
    biased: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = initializers.lecun_normal()
    bias_init: Callable = initializers.zeros
    stripes: int = 1
    groups: int = 1

    @nn.compact
    def __call__(self, inputs: jax.Array, stripes: int | None = None) -> jax.Array:
        """(B, H, W, C) -> (B, H', W', features); `stripes` overrides the field."""
        shape = (self.kernel, self.kernel, inputs.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = convolve(
            inputs.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding,
            self.stripes if stripes is None else stripes, self.groups,
        )  # fmt: skip
        if not self.biased:
            return y
        return add_bias(y, self.param("bias", self.bias_init, (self.features,), jnp.float32))


def convolve(
    x: jax.Array, kernel: jax.Array, stride: int, padding, stripes: int = 1, groups: int = 1
) -> jax.Array:
    """Convolve images (B, H, W, C) in `stripes` stripes with a kernel (k, k, C / groups, features).

    Args:
      x: images.
      kernel: weights, of the same type.
      stride: the stride along both axes.
      padding: ((top, bottom), (left, right)), zeros beyond an image's border.
      stripes: the stripes per image, see models/stripes.py. More than one take a stride that
        divides the rows of a stripe, and an output of 1 / stride of the image's rows.
      groups: groups of channels that are convolved apart.

    Raises:
      ValueError: the convolution does not fit the stripes.
    """
    rows, columns = padding
    if stripes > 1:
        height, size = x.shape[1], kernel.shape[0]
        out = (stripes * height + sum(rows) - size) // stride + 1
        if height % stride or max(rows) > height or out * stride != stripes * height:
            raise ValueError(
                f"a kernel of {size} with stride {stride} and padding {tuple(rows)} does not fit "
                f"{stripes} stripes of {height} rows: convolve whole images"
            )
        x, rows = add_rows(x, stripes, *rows), (0, 0)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (rows, columns), feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


@jax.custom_vjp
def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y (..., D) + bias (D,), in y's type; the bias's gradient is summed in float32.

    The automatic gradient would be summed in y's type. In bfloat16 such a sum stops growing as soon
    as the next term is less than half of its last digit.
    """
    return y + bias.astype(y.dtype)


def _bias_gradient(_, gradient):
    summed = gradient.astype(jnp.float32).sum(axis=tuple(range(gradient.ndim - 1)))
    return gradient, summed


add_bias.defvjp(lambda y, bias: (add_bias(y, bias), None), _bias_gradient)


def conv_of(module: nn.Module) -> Callable[..., "Conv"]:
    """`conv` with the `dtype` of `module`, and its `stripes` if it has the field."""
    return functools.partial(conv, dtype=module.dtype, stripes=getattr(module, "stripes", 1))
