"""Causal language models as text encoders: Gemma and Qwen3, by options of one module."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from repae_jax.errors import UserError
from repae_jax.models.family import Family, Section
from repae_jax.models.layers import Dense, GatedMLP, OffsetRMSNorm, attend, tanh_gelu
from repae_jax.models.rotary import rotate_halves
from repae_jax.models.scan_layers import scan_blocks
from repae_jax.utils.schema import each, whole

ACTIVATIONS = {"silu": nn.silu, "tanh_gelu": tanh_gelu}

# The architectures of the published models, beyond their sizes.
GEMMA = {
    "norm_offset": 1.0,
    "scale_embedding": True,
    "qk_norm": False,
    "activation": "tanh_gelu",
    "rope_base": 1e4,
}
QWEN3 = {
    "norm_offset": 0.0,
    "scale_embedding": False,
    "qk_norm": True,
    "activation": "silu",
    "rope_base": 1e6,
}

PRESETS: dict[str, dict] = {
    "gemma-2b": {
        **GEMMA,
        "vocabulary": 256_000,
        "dim": 2048,
        "depth": 18,
        "num_heads": 8,
        "num_kv_heads": 1,
        "head_dim": 256,
        "mlp_hidden": 16_384,
        "pad_id": 0,
        "null_ids": (2,),  # <bos>
    },
    "qwen3-0.6b": {
        **QWEN3,
        "vocabulary": 151_936,
        "dim": 1024,
        "depth": 28,
        "num_heads": 16,
        "num_kv_heads": 8,
        "head_dim": 128,
        "mlp_hidden": 3072,
        "pad_id": 151_643,  # <|endoftext|>
        "null_ids": (),  # Qwen3 has no token before a text
    },
    "grammar-lm": {  # of the captions of described images, trained by `pretrain-text-encoder`
        **QWEN3,
        "vocabulary": 303,  # <bos>, the bytes and the words of `data.tokens.grammar_tokenizer`
        "dim": 128,
        "depth": 4,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 32,
        "mlp_hidden": 384,
        "length": 32,
        "pad_id": 0,
        "null_ids": (0,),  # <bos>
        "rope_base": 1e4,
        "whitened": True,
    },
}

_ID = whole(0, 2**24)
_INIT = initializers.normal(0.02)


class CausalBlock(nn.Module):
    """Pre-norm block of causal attention and a gated MLP (arXiv 2002.05202), without biases.

    The fields are those of `CausalLM`.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_hidden: int
    norm_offset: float
    qk_norm: bool
    activation: str
    rope_base: float
    norm_epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Residual stream (B, L, D) and the mask of `layers.attend` -> (B, L, D)."""
        x = x + self._attention(self._norm("norm1")(x), mask)
        mlp = GatedMLP(self.mlp_hidden, ACTIVATIONS[self.activation], self.dtype, _INIT, name="mlp")
        return x + mlp(self._norm("norm2")(x))

    def _attention(self, x, mask):
        batch, length, dim = x.shape

        def heads(name, count):
            features = self._dense(count * self.head_dim, name)(x)
            return features.reshape(batch, length, count, self.head_dim)

        q, k = heads("q", self.num_heads), heads("k", self.num_kv_heads)
        if self.qk_norm:
            q, k = self._norm("q_norm")(q), self._norm("k_norm")(k)
        q, k = (rotate_halves(part, self.rope_base).astype(self.dtype) for part in (q, k))
        attended = attend(q, k, heads("v", self.num_kv_heads), mask)
        return self._dense(dim, "o")(attended.reshape(batch, length, -1))

    def _dense(self, features, name):
        return Dense(features, biased=False, dtype=self.dtype, kernel_init=_INIT, name=name)

    def _norm(self, name):
        return OffsetRMSNorm(self.norm_offset, self.norm_epsilon, name=name)


class Whitening(nn.Module):
    """An affine map that gives all directions of states about the same variance.

    The last states of a language model serve to predict the next word. Words that the same words
    follow, such as "red" and "blue", have states that differ in directions of tiny variance alone.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, L, D) -> (B, L, D) float32."""
        mean = self.param("mean", initializers.zeros, x.shape[-1:])
        matrix = self.param("matrix", lambda _, size: jnp.eye(size), x.shape[-1])
        return jnp.matmul(x - mean, matrix, precision="float32")


def whitening_of(states: np.ndarray) -> dict[str, np.ndarray]:
    """The parameters of `Whitening` for states (N, D): their mean, and a matrix (D, D).

    The matrix is symmetric, so each feature stays close to itself. Directions whose variance is
    below 1e-5 of the largest one's are not raised to 1.
    """
    mean = states.mean(0, dtype=np.float64)
    variances, axes = np.linalg.eigh(np.cov((states - mean).T))
    matrix = axes / np.sqrt(variances + 1e-5 * variances[-1]) @ axes.T
    return {"mean": mean.astype(np.float32), "matrix": matrix.astype(np.float32)}


class CausalLM(nn.Module):
    """A causal language model without its head: the states of tokens after the final norm.

    The defaults are those of Qwen3 (arXiv 2505.09388); `GEMMA` has those of Gemma (2403.08295),
    whose second and third generations have further norms. Norms, softmax, the residual stream and
    the returned states are float32; the matrix products run in `dtype`.

    Attributes:
      vocabulary: rows of the embedding table.
      dim: width D of the residual stream.
      depth: blocks; without one, a state depends on its own token alone.
      num_heads: query heads.
      num_kv_heads: heads of keys and values, which divide the query heads.
      head_dim: width of a head, independent of D.
      mlp_hidden: width inside the gated MLP.
      length: the most tokens of a caption.
      pad_id: the id of a padded position; no state depends on it.
      null_ids: the ids of the empty caption.
      norm_offset: the summand of the norms' weights, 0 or 1.
      scale_embedding: multiply embeddings by sqrt(D), in float32.
      qk_norm: an RMSNorm on queries and keys per head, before their rotation.
      activation: of the MLP's gate, a key of `ACTIVATIONS`.
      rope_base: the base of the rotary frequencies.
      norm_epsilon: the epsilon of every norm.
      whitened: the states are those of `Whitening`, after the final norm.
      crops: whether a batch may be cropped to its longest caption, see `TextEncoder`.
      dtype: the type of the matrix products.
      scan: runs the blocks as one loop, which compiles faster; parameters and results are the same.
    """

    vocabulary: int
    dim: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_hidden: int
    length: int = 256
    pad_id: int = 0
    null_ids: tuple[int, ...] = ()
    norm_offset: float = QWEN3["norm_offset"]
    scale_embedding: bool = QWEN3["scale_embedding"]
    qk_norm: bool = QWEN3["qk_norm"]
    activation: str = QWEN3["activation"]
    rope_base: float = QWEN3["rope_base"]
    norm_epsilon: float = 1e-6
    whitened: bool = False
    crops: bool = True
    dtype: jnp.dtype = jnp.float32
    scan: bool = False

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Token ids (B, L) int32 and mask (B, L) bool -> states (B, L, D) float32, 0 at padding.

        A token sees the tokens of its caption up to itself.
        """
        table = self.param("embedding", _INIT, (self.vocabulary, self.dim))
        # padded ids may lie outside of the vocabulary
        x = jnp.take(table, jnp.where(mask, ids, 0), axis=0).astype(jnp.float32)
        if self.scale_embedding:
            x = x * np.float32(self.dim**0.5)
        seen = jnp.tri(ids.shape[1], dtype=bool) & mask[:, None, None]  # (B, 1, L, L)
        blocks = [self._block(f"blocks_{i}") for i in range(self.depth)]
        if self.scan and not self.is_initializing():
            x = scan_blocks(blocks, x, seen, dtype=self.dtype)
        else:
            for block in blocks:
                x = block(x, seen)
        x = OffsetRMSNorm(self.norm_offset, self.norm_epsilon, name="norm")(x)
        if self.whitened:
            x = Whitening(name="whitening")(x)
        return jnp.where(mask[..., None], x, 0.0)

    def _block(self, name):
        return CausalBlock(
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            self.mlp_hidden,
            self.norm_offset,
            self.qk_norm,
            self.activation,
            self.rope_base,
            self.norm_epsilon,
            self.dtype,
            name=name,
        )


def _check(lm: CausalLM, section: Section, path: str) -> None:
    if lm.num_heads % lm.num_kv_heads:
        raise UserError(
            f"{path}.num_kv_heads is {lm.num_kv_heads}, which does not divide the {lm.num_heads} "
            f"heads of {path}.num_heads"
        )
    if lm.head_dim % 2:
        raise UserError(
            f"{path}.head_dim is {lm.head_dim}: rotary positions need an even width of a head"
        )


FAMILY = Family(
    CausalLM,
    options=dict(
        vocabulary=int,
        hidden_size=int,
        depth=whole(0, 256),  # 0: a state depends on its own word alone
        num_heads=int,
        num_kv_heads=int,
        head_dim=int,
        mlp_hidden=int,
        length=int,  # the most tokens of a caption
        pad_id=_ID,
        null_ids=each(_ID, 0, 64),  # of the empty caption: <bos>, for example
        whitened=bool,
    ),
    fields={"hidden_size": "dim"},
    presets=PRESETS,
    check=_check,
)
