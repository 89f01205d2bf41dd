"""Backbones as the transformers of a pipeline's folder: their class, config and tensors' names.

The names are those of the backbones' authors; a layer that no original has gets a name of the same
kind. `bn` holds the latents' statistics, as in the original REPA-E.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import ddt, fuse_dit, jit, lightningdit, mmdit, sit, tables
from repae_jax.interop.latent_statistics import Statistics
from repae_jax.interop.tables import LINEAR, Rule, layer, norm
from repae_jax.models.backbones.base import Backbone, headless_shapes
from repae_jax.models.backbones.ddt import DDT, DiTDH
from repae_jax.models.backbones.dit import DiT
from repae_jax.models.backbones.fuse_dit import FuseDiT
from repae_jax.models.backbones.jit import JiT
from repae_jax.models.backbones.lightningdit import LightningDiT
from repae_jax.models.backbones.mmdit import MMDiT
from repae_jax.models.backbones.sit import SiT
from repae_jax.models.conditioning.class_label import ClassLabel
from repae_jax.models.conditioning.text import Text

MEAN, VAR = "bn.running_mean", "bn.running_var"
# the ends of names of tensors that stay float32 in a folder of any type
WIDE = (MEAN, VAR, "pos_embed", "t_embedder.W")
_SIZES = (
    "latent_size", "latent_channels", "patch_size", "hidden_size", "depth", "num_heads",
)  # fmt: skip
_HEAD = ("head_size", "head_depth", "head_heads")

_CLASS_TOKEN = [
    *layer("final_layer.linear_cls", "params/final_layer/class_token", LINEAR),
    *layer("cls_projectors2", "params/class_token_embed/linear", LINEAR),
    *norm("wg_norm", "params/class_token_embed/norm"),
]
_TEXT_NORM = Rule("context_norm.weight", "params/text_embed/norm/scale")


@dataclasses.dataclass(frozen=True)
class Transformer:
    """A kind of transformer.

    Attributes:
      code: the file of its class in torch_pipeline, without ".py".
      class_name: the class in it.
      rules: backbone -> the rules of its tensors' names.
      options: the fields of the backbone in its config, beside the sizes.
      fused: layers that are one here, see `tables.fuse`.
    """

    code: str
    class_name: str
    rules: Callable[[Any], Sequence[Rule]]
    options: tuple[str, ...] = ()
    fused: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def config(self, backbone: Backbone, *, by_position: bool) -> dict[str, Any]:
        """The content of config.json: what its class takes.

        Args:
          backbone: the backbone.
          by_position: whether the statistics are those of each position.

        Raises:
          UserError: it has a condition of another kind than classes or captions.
        """
        conditioner = backbone.conditioner
        if isinstance(conditioner, ClassLabel):
            of = {"num_classes": conditioner.num_classes, "null_class": conditioner.null_class}
        elif isinstance(conditioner, Text):
            of = {"text_width": conditioner.width, "text_embedding": conditioner.embedding}
        else:
            raise UserError(
                f"the condition is a {type(conditioner).__name__}, and a pipeline has code for "
                "class labels and captions: keep the run's work directory"
            )
        own = {name: getattr(backbone, name) for name in (*_SIZES, *self.options)}
        return {
            "_class_name": self.class_name, **own, **of, "statistics_by_position": by_position,
        }  # fmt: skip

    def export(
        self, backbone: Backbone, variables: Mapping[str, Any], statistics: Statistics
    ) -> dict[str, np.ndarray]:
        """The tensors, in the order of the rules.

        Args:
          backbone: the backbone.
          variables: its variables without projection heads.
          statistics: {"mean", "var"}, (c,) or (h, w, c) each.
        """
        rules = self.rules(backbone)
        flat = tables.split(tables.flatten(variables), self.fused)
        tensors = tables.in_order(rules, tables.to_theirs(rules, flat, source="the backbone"))
        return {
            **tensors,
            MEAN: _channels_first(statistics["mean"]),
            VAR: _channels_first(statistics["var"]),
        }

    def load(
        self, backbone: Backbone, tensors: Mapping[str, np.ndarray], by_position: bool, source: str
    ) -> tuple[dict[str, Any], Statistics]:
        """The inverse of `export`, in float32.

        Raises:
          UserError: a tensor is missing, unexpected, misshapen or not finite, or a variance is not
            positive.
        """
        rules, side, channels = (
            self.rules(backbone), backbone.latent_size, backbone.latent_channels
        )  # fmt: skip

        def theirs(variables):
            flat = tables.split(tables.flatten(variables), self.fused)
            return tables.to_theirs(rules, flat)

        shape = (channels, side, side) if by_position else (channels,)
        expected = tables.exported_shapes(theirs, headless_shapes(backbone))
        tables.check(tensors, {**expected, MEAN: shape, VAR: shape}, source=source)
        wide = {name: np.asarray(array, np.float32) for name, array in tensors.items()}
        statistics = {
            "mean": np.moveaxis(wide.pop(MEAN), 0, -1),
            "var": np.moveaxis(wide.pop(VAR), 0, -1),
        }
        if not (statistics["var"] > 0).all():
            raise UserError(f"{source}: {VAR!r} has a value that is not positive")
        if self.class_name == "RepaeSiT" and backbone.class_token_dim:
            sit.check_class_position(wide, source)
        ours = tables.fuse(tables.to_ours(rules, wide, source=source), self.fused)
        return tables.unflatten(ours), statistics


def _channels_first(values):
    return np.ascontiguousarray(np.moveaxis(np.asarray(values, np.float32), -1, 0))


TRANSFORMERS: dict[type, Transformer] = {
    SiT: Transformer(
        "sit",
        "RepaeSiT",
        lambda model: sit.sit_rules(model.patch_size, class_token=model.class_token_dim > 0),
        ("mlp_ratio", "qk_norm", "class_token_dim"),
    ),
    LightningDiT: Transformer(
        "lightningdit",
        "RepaeLightningDiT",
        lambda model: [*lightningdit.lightningdit_rules(model.patch_size), *_CLASS_TOKEN],
        ("mlp_ratio", "qk_norm", "rotary", "swiglu", "rms_norm", "shift", "class_token_dim"),
    ),
    DiT: Transformer(
        "dit",
        "RepaeDiT",
        lambda model: sit.sit_rules(model.patch_size),
        ("mlp_ratio", "qk_norm", "learn_sigma"),
    ),
    DiTDH: Transformer(
        "ditdh",
        "RepaeDiTDH",
        lambda model: ddt.ditdh_rules(model.patch_size),
        (*_HEAD, "mlp_ratio", "qk_norm", "rotary", "swiglu", "rms_norm", "shift"),
    ),
    DDT: Transformer(
        "ddt",
        "RepaeDDT",
        lambda model: ddt.ddt_rules(model.patch_size),
        (
            *_HEAD, "mlp_ratio", "time_tokens", "class_tokens", "predicts_data", "least_time",
            "class_token_dim",
        ),
        ddt.FUSED,
    ),
    JiT: Transformer(
        "jit",
        "RepaeJiT",
        lambda model: jit.jit_rules(model.patch_size),
        ("mlp_ratio", "bottleneck", "context_tokens", "context_start", "least_time"),
    ),
    FuseDiT: Transformer(
        "fuse_dit",
        "RepaeFuseDiT",
        lambda model: fuse_dit.fuse_dit_rules(model.patch_size),
        ("kv_heads", "head_width", "mlp_width"),
    ),
    MMDiT: Transformer(
        "mmdit",
        "RepaeMMDiT",
        lambda model: [*mmdit.mmdit_rules(model.patch_size), _TEXT_NORM],
        ("mlp_ratio",),
    ),
}  # fmt: skip


def transformer_of(backbone: Backbone) -> Transformer:
    """The kind of a backbone.

    Raises:
      UserError: a pipeline has no code for it.
    """
    if type(backbone) not in TRANSFORMERS:
        names = ", ".join(kind.__name__ for kind in TRANSFORMERS)
        raise UserError(
            f"the backbone is a {type(backbone).__name__}, and a pipeline has code for {names}: "
            "keep the run's work directory"
        )
    return TRANSFORMERS[type(backbone)]
