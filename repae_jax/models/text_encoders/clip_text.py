"""CLIP's text tower (arXiv 2103.00020) as a text encoder."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from repae_jax.errors import UserError
from repae_jax.models.encoders.vit import ViTBlock
from repae_jax.models.family import Family, Section
from repae_jax.models.layers import Dense, layer_norm
from repae_jax.models.scan_layers import scan_blocks

PRESETS: dict[str, dict] = {
    "clip-l-text": {
        "vocabulary": 49_408,
        "dim": 768,
        "depth": 12,
        "num_heads": 12,
        "mlp_hidden": 3072,
        "projection": 768,
    },
}

_INIT = initializers.normal(0.02)


class CLIPText(nn.Module):
    """CLIP's causal text transformer: states of all positions after the final LayerNorm.

    Padding takes part: a padded position is a token like any other, which sees the caption before
    it. The states of the caption's own tokens depend on no padding, as attention is causal. Norms,
    softmax, the residual stream and the returned states are float32; the matrix products run in
    `dtype`.

    Attributes:
      vocabulary: rows of the embedding table.
      dim: width D.
      depth: blocks.
      num_heads: attention heads.
      mlp_hidden: width inside the MLP.
      length: rows of the position table, the most tokens of a caption.
      projection: width P of the text embedding; 0 for none.
      quick_gelu: x * sigmoid(1.702 x) in the MLP instead of GELU.
      pad_id: the id of a padded position.
      null_ids: the ids of the empty caption: begin and end of text.
      eos_id: the id of the end of text, whose first position is pooled. None pools the first
        position of the row's highest id, the rule of transformers for `"eos_token_id": 2` in
        config.json. Both are the same where the end of text is the highest id of the vocabulary.
      norm_epsilon: the epsilon of every LayerNorm.
      crops: whether a batch may be cropped to its longest caption, see `TextEncoder`.
      dtype: the type of the matrix products.
      scan: runs the blocks as one loop, which compiles faster; parameters and results are the same.
    """

    vocabulary: int
    dim: int
    depth: int
    num_heads: int
    mlp_hidden: int
    length: int = 77
    projection: int = 0
    quick_gelu: bool = True
    pad_id: int = 49_407
    null_ids: tuple[int, ...] = (49_406, 49_407)
    eos_id: int | None = 49_407
    norm_epsilon: float = 1e-5
    crops: bool = False
    dtype: jnp.dtype = jnp.float32
    scan: bool = False

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Token ids (B, L) int32 -> states (B, L, D) float32 of all positions.

        Args:
          ids: the caption's tokens, and `pad_id` behind them.
          mask: (B, L) bool; the tower reads none, see above.

        Raises:
          UserError: L exceeds `length`.
        """
        return self._states_and_embedding(ids)[0]

    def text_embedding(self, ids: jax.Array) -> jax.Array:
        """Token ids (B, L) int32 -> the caption's embedding (B, P) float32, not normalized.

        It is the projected state of the end of text, without `projection` (B, D) unprojected. The
        CLIP score is the cosine between it and the embedding of an image.

        Raises:
          UserError: L exceeds `length`.
        """
        return self._states_and_embedding(ids)[1]

    @nn.compact
    def _states_and_embedding(self, ids):
        positions = ids.shape[1]
        if positions > self.length:
            raise UserError(
                f"captions of {positions} tokens, but the text tower has {self.length} positions: "
                "truncate them"
            )
        tokens = self.param("token_table", _INIT, (self.vocabulary, self.dim))
        table = self.param("position_table", _INIT, (self.length, self.dim))
        x = jnp.take(tokens, ids, axis=0).astype(jnp.float32) + table[:positions]
        x = self._transform(x, jnp.tri(positions, dtype=bool)[None, None])
        pooled = jnp.take_along_axis(x, self._end(ids)[:, None, None], axis=1)[:, 0]
        if self.projection:
            project = Dense(self.projection, biased=False, kernel_init=_INIT, name="projection")
            pooled = project(pooled)
        return x, pooled

    def _transform(self, x, mask):
        blocks = [
            ViTBlock(
                self.num_heads,
                self.mlp_hidden,
                swiglu=False,
                activation="quick_gelu" if self.quick_gelu else "gelu",
                layer_scale=None,
                norm_epsilon=self.norm_epsilon,
                dtype=self.dtype,
                name=f"blocks_{i}",
            )
            for i in range(self.depth)
        ]
        if self.scan and not self.is_initializing():
            x = scan_blocks(blocks, x, mask, dtype=self.dtype)
        else:
            for block in blocks:
                x = block(x, mask)
        return layer_norm(self.norm_epsilon, affine=True, name="norm")(x)

    def _end(self, ids):
        """The position (B,) of the end of text."""
        return jnp.argmax(ids if self.eos_id is None else ids == self.eos_id, axis=1)


def _check(tower: CLIPText, section: Section, path: str) -> None:
    if tower.dim % tower.num_heads:
        raise UserError(
            f"{path}.hidden_size is {tower.dim}: it must be divisible by the {tower.num_heads} "
            f"heads of {path}.num_heads"
        )


FAMILY = Family(
    CLIPText,
    options=dict(
        vocabulary=int,
        hidden_size=int,
        depth=int,
        num_heads=int,
        mlp_hidden=int,
        projection=int,
        length=int,  # the most tokens of a caption
    ),
    fields={"hidden_size": "dim"},
    presets=PRESETS,
    check=_check,
)
