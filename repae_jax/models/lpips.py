"""LPIPS, the learned perceptual distance (arXiv 1801.03924), on VGG16 features."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from repae_jax.models.convolution import Conv
from repae_jax.models.stripes import restripe, unfold

# VGG16 has this many convolutions in each block; LPIPS taps the last ReLU of each
BLOCKS = (2, 2, 3, 3, 3)
SMALLEST = 16  # pixels a side: the last block then sees one pixel
SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)


class LPIPS(nn.Module):
    """Distance between two images: weighted squared differences of unit-normalized features.

    The distance is the sum over taps k of the mean over pixels of w_k . (f_k(a) - f_k(b))^2, with
    f = x / (|x| + 1e-10) along channels (section 3 of the paper). Untrained heads weigh all
    channels equally, so that a random network is still a distance.

    Attributes:
      rescale_inputs: apply 2x - 1 to inputs that are already in [-1, 1]. The original REPA-E
        code does so by mistake, and its published results include the mistake.
      widths: channels of the five VGG blocks; tests use smaller ones.
      dtype: the type of the convolutions; the comparison is float32.
      stripes: the most stripes per image, see models/stripes.py; results are the same.
    """

    rescale_inputs: bool
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    dtype: jnp.dtype = jnp.float32
    stripes: int = 1

    def setup(self):
        """Convolutions conv1_1 to conv5_3, heads lin0 to lin4."""
        for block, (depth, width) in enumerate(zip(BLOCKS, self.widths, strict=True), start=1):
            for index in range(1, depth + 1):
                layer = Conv(width, 3, dtype=self.dtype, kernel_init=initializers.he_uniform())
                setattr(self, f"conv{block}_{index}", layer)
            head = nn.Dense(
                1,
                use_bias=False,
                precision=jax.lax.Precision.HIGHEST,
                kernel_init=initializers.constant(1.0 / width),
            )
            setattr(self, f"lin{block - 1}", head)

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Images (B, H, W, 3) in [-1, 1], sides at least 16 -> distances (B,), float32."""
        taps_a, stripes = self._taps(a)
        taps_b, _ = self._taps(b)
        return self._compare(taps_a, taps_b, stripes)

    def features(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Images (B, H, W, 3) in [-1, 1] -> five taps (B, H / 2^k, W / 2^k, widths[k]), `dtype`.

        Raises:
          TypeError: the images are not floating point.
        """
        return tuple(map(unfold, *self._taps(x)))

    def _taps(self, x):
        """The features of images, and the stripes per image of each."""
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"LPIPS takes float images in [-1, 1], got {x.dtype}")
        x = x.astype(jnp.float32)
        if self.rescale_inputs:
            x = 2.0 * x - 1.0
        x, stripes = restripe((x - SHIFT) / SCALE, 1, self.stripes)
        taps = []
        for block, depth in enumerate(BLOCKS, start=1):
            if block > 1:
                x, stripes = restripe(_max_pool(x), stripes, self.stripes)
            for index in range(1, depth + 1):
                x = nn.relu(getattr(self, f"conv{block}_{index}")(x, stripes))
            taps.append((x, stripes))
        return tuple(zip(*taps, strict=True))

    def compare(self, taps_a: tuple[jax.Array, ...], taps_b: tuple[jax.Array, ...]) -> jax.Array:
        """The distances (B,), float32, between two batches of images, from their `features`."""
        return self._compare(taps_a, taps_b, [1] * len(taps_a))

    def _compare(self, taps_a, taps_b, stripes):
        distance = 0.0
        for k, (a, b, parts) in enumerate(zip(taps_a, taps_b, stripes, strict=True)):
            difference = (_unit(a) - _unit(b)) ** 2
            # the mean over pixels first: the head is linear, and then sees (B, C) only
            mean = difference.mean((1, 2))
            mean = mean.reshape(-1, parts, mean.shape[-1]).mean(1) if parts > 1 else mean
            distance = distance + getattr(self, f"lin{k}")(mean)[:, 0]
        return distance


def _max_pool(x):
    """Max pooling over 2 x 2 pixels, (B, H, W, C) -> (B, H // 2, W // 2, C).

    Among equal values the first takes the gradient, as in torch. Comparisons replace a pooling
    window, whose gradient XLA would compile to a scatter.
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = x[:, :height, :width]
    x = x.reshape(x.shape[0], height // 2, 2, width // 2, 2, x.shape[3])
    x = jnp.where(x[:, :, :, :, 0] >= x[:, :, :, :, 1], x[:, :, :, :, 0], x[:, :, :, :, 1])
    return jnp.where(x[:, :, 0] >= x[:, :, 1], x[:, :, 0], x[:, :, 1])


def _unit(x):
    """x / (|x| + 1e-10) over channels; 0 with gradient 0 where x is zero.

    At x = 0 the plain formula would multiply zero by the infinite gradient of sqrt.
    """
    x = x.astype(jnp.float32)
    squared = jnp.sum(x**2, axis=-1, keepdims=True)
    nonzero = squared > 0.0
    length = jnp.sqrt(jnp.where(nonzero, squared, 1.0))
    return jnp.where(nonzero, x / (length + 1e-10), 0.0)
