"""InceptionV3 (arXiv 1512.00567) for FID, sFID and the Inception Score.

The network is the frozen TensorFlow graph of 2015-12-05 that the FID paper (arXiv 1706.08500) and
the ADM evaluator (openai/guided-diffusion, evaluations/evaluator.py) run. It differs from
torchvision's InceptionV3: average pooling leaves the padding out of its mean, the pooling branch
of the last block takes maxima, and there are 1008 classes. Modules have the names of torchvision
and of pytorch-fid; a layer's suffix is its position in the branch.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from repae_jax.models.batch_norm import BatchNorm
from repae_jax.models.resize import resize_bilinear_tf1

SIZE = 299
CLASSES = 1008
# sFID keeps this many channels of a 17 x 17 map, to have about as many features as FID
SPATIAL_CHANNELS = 7
SPATIAL_DIM = 17 * 17 * SPATIAL_CHANNELS

# default precision would round to bfloat16 on TPUs and to TF32 on GPUs, and move the metrics
_EXACT = jax.lax.Precision.HIGHEST


def preprocess(images: jax.Array) -> jax.Array:
    """uint8 RGB images (B, H, W, 3) -> float32 (B, 299, 299, 3), (x - 128) / 128, in [-1, 1).

    Images are resized as TensorFlow 1 does by default (`resize_bilinear_tf1`), like in the graph.

    Raises:
      TypeError: the images are not uint8.
      ValueError: the images are not (B, H, W, 3).
    """
    if images.dtype != jnp.uint8:
        raise TypeError(f"InceptionV3 takes uint8 images, got {images.dtype}")
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"InceptionV3 takes RGB images (B, H, W, 3), got {images.shape}")
    return normalize(resize_bilinear_tf1(images, SIZE, SIZE))


def normalize(images: jax.Array) -> jax.Array:
    """Resized RGB images (B, 299, 299, 3), in [0, 255] -> float32 (x - 128) / 128."""
    return (images.astype(jnp.float32) - 128.0) / 128.0


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm by running statistics (eps 1e-3), ReLU."""

    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, h, w, C) -> (B, h', w', features)."""
        x = nn.Conv(
            self.features,
            self.kernel,
            self.stride,
            self.padding,
            use_bias=False,
            precision=_EXACT,
            kernel_init=initializers.he_uniform(),
            name="conv",
        )(x)
        return nn.relu(BatchNorm(epsilon=1e-3, name="bn")(x, train=False))


class InceptionA(nn.Module):
    """At 35 x 35: 1x1 | 5x5 | two 3x3 | average pool (the paper's figure 5 has 3x3 for 5x5)."""

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, 35, 35, C) -> (B, 35, 35, 224 + pool_features)."""
        branches = [
            _chain(x, "branch1x1", (64, (1, 1))),
            _chain(x, "branch5x5", (48, (1, 1)), (64, (5, 5))),
            _chain(x, "branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
            _chain(_average_pool(x), "branch_pool", (self.pool_features, (1, 1))),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionB(nn.Module):
    """Reduction from 35 x 35 to 17 x 17: 3x3 | two 3x3 | max pool."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, 35, 35, C) -> (B, 17, 17, 480 + C)."""
        double = _chain(x, "branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3)), reduce=True)
        branches = [_chain(x, "branch3x3", (384, (3, 3)), reduce=True), double, _max_pool(x)]
        return jnp.concatenate(branches, axis=-1)


class InceptionC(nn.Module):
    """At 17 x 17: 1x1 | 1x7 7x1 | twice 7x1 1x7 | average pool (the paper's figure 6, n = 7)."""

    inner: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, 17, 17, C) -> (B, 17, 17, 768), the 1x1 branch first."""
        n, row, column = self.inner, (1, 7), (7, 1)
        double = ((n, (1, 1)), (n, column), (n, row), (n, column), (192, row))
        branches = [
            _chain(x, "branch1x1", (192, (1, 1))),
            _chain(x, "branch7x7", (n, (1, 1)), (n, row), (192, column)),
            _chain(x, "branch7x7dbl", *double),
            _chain(_average_pool(x), "branch_pool", (192, (1, 1))),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionD(nn.Module):
    """Reduction from 17 x 17 to 8 x 8: 3x3 | 1x7 7x1 3x3 | max pool."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, 17, 17, C) -> (B, 8, 8, 512 + C)."""
        long = ((192, (1, 1)), (192, (1, 7)), (192, (7, 1)), (192, (3, 3)))
        branches = [
            _chain(x, "branch3x3", (192, (1, 1)), (320, (3, 3)), reduce=True),
            _chain(x, "branch7x7x3", *long, reduce=True),
            _max_pool(x),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionE(nn.Module):
    """At 8 x 8: 1x1 | 3x3 fanned out | two 3x3 fanned out | pool (the paper's figure 7).

    Attributes:
      max_pool: the pooling branch takes maxima instead of averages, as the graph does in its last
        block, unlike the paper.
    """

    max_pool: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, 8, 8, C) -> (B, 8, 8, 2048)."""
        single = ConvNorm(384, (1, 1), name="branch3x3_1")(x)
        double = _chain(x, "branch3x3dbl", (448, (1, 1)), (384, (3, 3)))
        pooled = nn.max_pool(x, (3, 3), padding="SAME") if self.max_pool else _average_pool(x)
        branches = [
            _chain(x, "branch1x1", (320, (1, 1))),
            *_fan(single, "branch3x3_2"),
            *_fan(double, "branch3x3dbl_3"),
            _chain(pooled, "branch_pool", (192, (1, 1))),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionV3(nn.Module):
    """The features of FID, sFID and the Inception Score; in float32, for inference only."""

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Images (B, 299, 299, 3) from `normalize` -> the three features of each, float32.

        Returns:
          pool: (B, 2048), the mean over the last map; for FID, precision and recall.
          spatial: (B, 2023), for sFID (arXiv 2103.03841). The ADM evaluator takes the first seven
            channels of the graph's tensor `mixed_6/conv:0`, row by row. This tensor is the output,
            after BatchNorm and ReLU, of the 1x1 branch of `Mixed_6d`, whose channels come first in
            the block's concatenation. (torch-fidelity's utils/util_convert_inception_weights.py
            pairs the names; in the graph a scope's own name is its ReLU, after `conv/Conv2D` and
            `conv/batchnorm`.)
          logits: (B, 1008), pool @ w without the bias; the ADM evaluator computes the Inception
            Score from their softmax (torch-fidelity's `logits_unbiased`).

        Raises:
          ValueError: the images have another shape.
        """
        if x.shape[1:] != (SIZE, SIZE, 3):
            raise ValueError(f"expected images (B, {SIZE}, {SIZE}, 3), got {x.shape}")
        x = self._stem(x.astype(jnp.float32))
        for letter, pool_features in zip("bcd", (32, 64, 64), strict=True):
            x = InceptionA(pool_features, name=f"Mixed_5{letter}")(x)
        x = InceptionB(name="Mixed_6a")(x)
        for letter, inner in zip("bcde", (128, 160, 160, 192), strict=True):
            x = InceptionC(inner, name=f"Mixed_6{letter}")(x)
            if letter == "d":
                spatial = x[..., :SPATIAL_CHANNELS].reshape(len(x), SPATIAL_DIM)
        x = InceptionD(name="Mixed_7a")(x)
        x = InceptionE(max_pool=False, name="Mixed_7b")(x)
        x = InceptionE(max_pool=True, name="Mixed_7c")(x)
        pool = x.mean((1, 2))
        head = nn.Dense(CLASSES, use_bias=False, precision=_EXACT, name="fc")
        return {"pool": pool, "spatial": spatial, "logits": head(pool)}

    def _stem(self, x):
        """(B, 299, 299, 3) -> (B, 35, 35, 192)."""
        x = ConvNorm(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = ConvNorm(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = _max_pool(ConvNorm(64, (3, 3), name="Conv2d_2b_3x3")(x))
        x = ConvNorm(80, (1, 1), name="Conv2d_3b_1x1")(x)
        return _max_pool(ConvNorm(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x))


def _chain(x, name, *layers, reduce=False):
    """A sequence of convolutions (features, kernel); with `reduce` the last halves the map."""
    for index, (features, kernel) in enumerate(layers, start=1):
        last = {"stride": 2, "padding": "VALID"} if reduce and index == len(layers) else {}
        suffix = f"_{index}" if len(layers) > 1 else ""
        x = ConvNorm(features, kernel, **last, name=f"{name}{suffix}")(x)
    return x


def _fan(x, name):
    """A 1x3 and a 3x1 convolution of the same map."""
    kernels = {"a": (1, 3), "b": (3, 1)}
    return [ConvNorm(384, kernel, name=name + which)(x) for which, kernel in kernels.items()]


def _average_pool(x):
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _max_pool(x):
    return nn.max_pool(x, (3, 3), (2, 2))
