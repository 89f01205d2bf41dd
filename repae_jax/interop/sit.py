"""The SiT under the names of the original REPA-E, of REPA and of REG."""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.tables import LINEAR, SAME, Layout, Rule, layer, norm, patch_layout
from repae_jax.models.backbones.base import blank_inputs
from repae_jax.models.backbones.sit import SIT_CONFIGS, SiT, describe
from repae_jax.utils.schema import as_whole

SIGN = r"x_embedder\.proj\.weight$"  # a name that every file has
CLASS_TOKEN = "cls_projectors2.weight"  # a name that REG's files have
# the counter of updates of the running statistics, which nothing reads at a fixed momentum
BATCH_COUNT = "bn.num_batches_tracked"


# The layers of a block, in the order of PyTorch's parameters.
_BLOCK = ("attn.qkv", "attn.q_norm", "attn.k_norm", "attn.proj", "mlp.fc1", "mlp.fc2")


# REG's table has a row in front for the class token, which is zero.
_REG_POSITIONS = Layout(
    lambda table: table[:, 1:], lambda table: np.pad(table, ((0, 0), (1, 0), (0, 0)))
)


def check_class_position(tensors: Mapping[str, np.ndarray], source: str) -> None:
    """Raise UserError unless the class token of REG's SiT has a position of zeros."""
    if tensors["pos_embed"][:, 0].any():
        raise UserError(
            f"{source}: the first row of 'pos_embed', the class token's position, is not zero as "
            "in REG's code: no backbone here has such a position"
        )


def sit_rules(patch_size: int, *, class_token: bool = False) -> list[Rule]:
    """Rules for parameters, position table and latent statistics (`bn`), in module order.

    REPA's own SiT has the same tensors, but no `bn`. With `class_token` it is REG's, whose position
    table has a row more.
    """
    of_class = layer("final_layer.linear_cls", "params/final_layer/class_token", LINEAR)
    return [
        Rule("pos_embed", "constants/position_table", _REG_POSITIONS if class_token else SAME),
        *layer("x_embedder.proj", "params/patch_embed", patch_layout(patch_size)),
        *layer("t_embedder.mlp.0", "params/time_embed/fc1", LINEAR),
        *layer("t_embedder.mlp.2", "params/time_embed/fc2", LINEAR),
        Rule("y_embedder.embedding_table.weight", "params/label_embed/embedding"),
        *block_rules(_BLOCK),
        *head_rules(),
        *final_rules(after_linear=of_class),
        *layer("cls_projectors2", "params/class_token_embed/linear", LINEAR),
        *norm("wg_norm", "params/class_token_embed/norm"),
        Rule("bn.running_mean", "batch_stats/mean"),
        Rule("bn.running_var", "batch_stats/var"),
    ]


def block_rules(layers: Sequence[str], modulation: str = "adaLN_modulation") -> list[Rule]:
    """Rules of all blocks: of layers that have the same name here, and of the modulation.

    Args:
      layers: their names in a block, in the order of PyTorch's parameters.
      modulation: the name of the block's modulation.
    """
    block = ("blocks.{i}", "params/blocks_{i}")
    names = ((f"{block[0]}.{name}", f"{block[1]}/{name.replace('.', '/')}") for name in layers)
    rules = (norm(*pair) if "norm" in pair[0] else layer(*pair, LINEAR) for pair in names)
    own = [rule for found in rules for rule in found]
    return [*own, *layer(f"{block[0]}.{modulation}.1", f"{block[1]}/modulation", LINEAR)]


def head_rules() -> list[Rule]:
    """Rules of REPA's projection heads, which are MLPs."""
    theirs, ours = "projectors.{k}", "params/projectors_{k}"
    return [
        *layer(f"{theirs}.0", f"{ours}/fc1", LINEAR),
        *layer(f"{theirs}.2", f"{ours}/fc2", LINEAR),
        *layer(f"{theirs}.4", f"{ours}/fc3", LINEAR),
    ]


def final_rules(
    norm_name: str = "norm_final",
    modulation: str = "adaLN_modulation",
    after_linear: Sequence[Rule] = (),
) -> list[Rule]:
    """Rules of the last layer: its norm's scale, where it has one, the layer, its modulation.

    `after_linear` are rules between the two latter.
    """
    theirs, ours = "final_layer", "params/final_layer"
    return [
        Rule(f"{theirs}.{norm_name}.weight", f"{ours}/norm/scale"),
        *layer(f"{theirs}.linear", f"{ours}/linear", LINEAR),
        *after_linear,
        *layer(f"{theirs}.{modulation}.1", f"{ours}/modulation", LINEAR),
    ]


def sit_shapes(sit: SiT, *, statistics: bool = True) -> dict:
    """Shapes and types of a SiT's `params`, `constants` and `batch_stats`; allocates nothing.

    `batch_stats` holds LatentNorm's mean (c,) and var (c,); `statistics=False` leaves it out, as
    REPA's checkpoints do.
    """
    shapes = jax.eval_shape(sit.init, jax.random.key(0), *blank_inputs(sit))
    if not statistics:
        return shapes
    channels = jax.ShapeDtypeStruct((sit.latent_channels,), jnp.float32)
    return {**shapes, "batch_stats": {"mean": channels, "var": channels}}


def unify_names(tensors: Mapping[str, np.ndarray], encoder_depth: int) -> dict[str, np.ndarray]:
    """Rename `decoder_blocks`, as REPA's first checkpoints call the blocks after the encoder.

    `decoder_blocks.K` becomes `blocks.{K + encoder_depth}`.
    """
    renamed = {}
    for name, array in tensors.items():
        head, _, rest = name.partition(".")
        if head == "decoder_blocks":
            index, _, inner = rest.partition(".")
            if (number := as_whole(index)) is not None:
                name = f"blocks.{number + encoder_depth}.{inner}"
        renamed[name] = array
    return renamed


def has_second_half(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the last layer has twice the latent's channels, as in SiT's and DiT's own files."""
    patch = tensors.get("x_embedder.proj.weight", np.zeros(()))
    last = tensors.get("final_layer.linear.weight", np.zeros(()))
    return patch.ndim == 4 and last.ndim == 2 and len(last) == 2 * math.prod(patch.shape[1:])


def from_published_sit(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert weights of the SiT's authors (arXiv 2401.08740; `has_second_half`) to REPA's form.

    The authors' SiT returns a velocity, followed by a variance that nothing trains and that is left
    out. Its time runs from noise at 0 to the image at 1, so our velocity at 1 - t is minus its
    velocity at t. The sign goes into the last layer. The change of time goes into the first layer
    of the time embedding, which is linear in cos(t f) and sin(t f) for its frequencies f.
    """
    channels = tensors["x_embedder.proj.weight"].shape[1]
    changed = dict(tensors)
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        features = tensors[name].reshape(-1, 2 * channels, *tensors[name].shape[1:])
        velocity = np.ascontiguousarray(features[:, :channels])
        changed[name] = -velocity.reshape(-1, *tensors[name].shape[1:])
    name = "t_embedder.mlp.0.weight"
    cosine, sine = np.split(tensors[name].astype(np.float64), 2, axis=1)
    count = cosine.shape[1]
    frequency = np.exp(-np.log(1e4) * np.arange(count) / count)
    c, s = np.cos(frequency), np.sin(frequency)
    turned = np.concatenate([cosine * c + sine * s, cosine * s - sine * c], axis=1)
    changed[name] = turned.astype(tensors[name].dtype)
    return changed


def infer_dimensions(
    tensors: Mapping[str, np.ndarray], *, source: str, num_heads: int | None = None
) -> dict[str, Any]:
    """The fields of SiT that follow from its tensors: all but `encoder_depth` and `null_class`.

    `num_classes` counts every row of the label table, also the null class. `num_heads` follows
    from the width of the qk-norm, or else from the published size of this hidden width.

    Args:
      tensors: the names of REPA -> arrays.
      source: the name of the tensors, for errors.
      num_heads: the heads, where they are known.

    Raises:
      UserError: a tensor that determines a dimension is missing, or the number of heads is
        unknown.
    """
    tables.check_filled(tensors, source=source)

    shape = functools.partial(tables.shape_of, tensors, what="a SiT", source=source)

    def count(prefix):
        return len({n.split(".")[1] for n in tensors if n.startswith(f"{prefix}.")})

    hidden, channels, patch, _ = shape("x_embedder.proj.weight", 4)
    of_class = CLASS_TOKEN in tensors
    grid = round((shape("pos_embed", 3)[1] - of_class) ** 0.5)
    qk_norm = "blocks.0.attn.q_norm.weight" in tensors
    if qk_norm:
        heads = hidden // shape("blocks.0.attn.q_norm.weight", 1)[0]
    elif num_heads is not None:
        heads = num_heads
    else:
        published = {c["hidden_size"]: c["num_heads"] for c in SIT_CONFIGS.values()}
        if hidden not in published:
            raise UserError(
                f"{source}: a SiT of width {hidden} is none of the published sizes, and its "
                "weights do not determine its number of heads: give a configuration"
            )
        heads = published[hidden]
    projectors = range(count("projectors"))
    return {
        "latent_size": grid * patch,
        "latent_channels": channels,
        "patch_size": patch,
        "hidden_size": hidden,
        "depth": count("blocks"),
        "num_heads": heads,
        "num_classes": shape("y_embedder.embedding_table.weight", 2)[0],
        "teacher_dims": tuple(shape(f"projectors.{k}.4.weight", 2)[0] for k in projectors),
        "mlp_ratio": shape("blocks.0.mlp.fc1.weight", 2)[0] / hidden,
        "qk_norm": qk_norm,
        "class_token_dim": shape(CLASS_TOKEN, 2)[1] if of_class else 0,
    }


def text_of(tensors: Mapping[str, np.ndarray]) -> str:
    """A SiT's dimensions in words, or the reason why its tensors have none."""
    try:
        # REPA's first checkpoints use another name for the blocks after the encoder
        tensors = unify_names(tensors, _depth(tensors))
        known = {preset["hidden_size"] for preset in SIT_CONFIGS.values()}
        width, norm = tensors["pos_embed"].shape[-1], "blocks.0.attn.q_norm.weight"
        if width in known or norm in tensors:
            return describe(infer_dimensions(tensors, source="SiT"))
        # The number of heads is unknown: a qk-norm over the full width makes it 1.
        one_head = {**tensors, norm: np.broadcast_to(np.float32(1), (width,))}
        return describe(infer_dimensions(one_head, source="SiT") | {"num_heads": None})
    except UserError as error:
        return str(error).removeprefix("SiT: ")
    except (KeyError, IndexError, ValueError, AttributeError):
        return "damaged: its tensors have not the shapes of a SiT's"


def _depth(tensors):
    return len({match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))})
