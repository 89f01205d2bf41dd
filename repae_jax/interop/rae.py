"""RAE's tensors under diffusers' names and its authors'.

A folder of diffusers' class AutoencoderRAE holds encoder and decoder, the pixels' mean and standard
deviation, and the latents' per channel and position. The authors' file holds the decoder alone.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.tables import LINEAR, Rule, layer, norm
from repae_jax.interop.vit import export_vit, load_vit
from repae_jax.models.layers import sincos_position_table
from repae_jax.models.tokenizers.base import parameter_shapes
from repae_jax.models.tokenizers.rae import RAE

CLASS_NAME = "AutoencoderRAE"
SIGN = r"decoder\.trainable_cls_token$"  # a name that every folder's file has
DECODER_SIGN = r"trainable_cls_token$"  # of the authors' file
TABLE = "decoder_pos_embed"
MEAN, STD = "_latents_mean", "_latents_std"  # the latents' statistics (rae_config.py)
PIXELS = {"encoder_mean": "pixel_mean", "encoder_std": "pixel_std"}
BASE_GRID = 16  # that diffusers scales the positions of other grids to
_FUSED = {"attn/qkv": ("attn/q", "attn/k", "attn/v")}
# Of the modules of transformers 5, so that diffusers opens the folder.
_NAMING = {
    "dinov2": "transformers5",
    "siglip": "transformers",
    "mae": "transformers5",
    "dinov3": "transformers5",
}


def decoder_rules(*, original: bool) -> list[Rule]:
    """The table of the decoder's tensors: the authors' names, or diffusers' after "decoder."."""
    block, ours = "decoder_layers.{i}", "blocks_{i}"
    attention = (
        ("attention.attention.query", "attention.attention.key", "attention.attention.value",
         "attention.output.dense")
        if original
        else ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
    )  # fmt: skip
    rules = [Rule("trainable_cls_token", "class_token")]
    rules += layer("decoder_embed", "embed", LINEAR)
    for theirs, path in zip(attention, ("q", "k", "v", "proj"), strict=True):
        rules += layer(f"{block}.{theirs}", f"{ours}/attn/{path}", LINEAR)
    rules += layer(f"{block}.intermediate.dense", f"{ours}/mlp/fc1", LINEAR)
    rules += layer(f"{block}.output.dense", f"{ours}/mlp/fc2", LINEAR)
    rules += norm(f"{block}.layernorm_before", f"{ours}/norm1")
    rules += norm(f"{block}.layernorm_after", f"{ours}/norm2")
    return rules + norm("decoder_norm", "norm") + layer("decoder_pred", "pred", LINEAR)


def load_decoder(
    tensors: Mapping[str, np.ndarray], model: RAE, *, original: bool, source: str
) -> dict[str, Any]:
    """The decoder's tensors, named as in `decoder_rules`, as variables of `model`.

    A table of positions among them has to be that of `model`, or is its constant.

    Returns:
      {"params": {"decoder": ...}, "constants": {} or {"decoder": ...}}.

    Raises:
      UserError: a tensor is missing, unexpected, misshapen or not finite, or the table differs.
    """
    rules, tensors = decoder_rules(original=original), dict(tensors)
    table, constants = tensors.pop(TABLE, None), {}
    if model.table_grid:
        shape = (1, 1 + model.table_grid**2, model.decoder_width)
        found = {} if table is None else {TABLE: table}
        tables.check(found, {TABLE: shape}, source=source)
        constants = {"decoder": {"position_table": np.asarray(table, np.float32)}}
    elif table is not None:
        step, grid = positions_of(table, source, model.position_step)
        if grid:
            raise UserError(
                f"{source}: its table {TABLE!r} is no sin-cos table, as training has moved it: set "
                f"--config.tokenizer.table_grid={grid}"
            )
        if step != model.position_step:
            raise UserError(
                f"{source}: its table {TABLE!r} has the step {step:g}, but the tokenizer's is "
                f"{model.position_step:g}: set --config.tokenizer.position_step={step:g}"
            )
    shapes = parameter_shapes(model)["decoder"]

    def theirs(variables):
        return tables.to_theirs(rules, tables.split(tables.flatten(variables), _FUSED))

    tables.check(tensors, tables.exported_shapes(theirs, shapes), source=source)
    ours = tables.fuse(tables.to_ours(rules, tensors, source=source), _FUSED)
    return {"params": {"decoder": tables.unflatten(ours)}, "constants": constants}


def export_decoder(variables: Mapping[str, Any], *, original: bool) -> dict[str, np.ndarray]:
    """The inverse of `load_decoder`; of tables of positions only a constant is there."""
    flat = tables.split(tables.flatten(variables["params"]["decoder"]), _FUSED)
    constants = variables.get("constants", {}).get("decoder", {})
    table = {TABLE: constants["position_table"]} if constants else {}
    return tables.to_theirs(decoder_rules(original=original), flat) | table


def load_encoder(tensors: Mapping[str, Any], model: RAE, *, source: str) -> dict[str, Any]:
    """An encoder's tensors under its authors' names or transformers', as constants of `model`.

    Raises:
      UserError: see `load_vit`.
    """
    variables = load_vit(tensors, model.vit, source)
    return {"encoder": variables["params"], **variables.get("constants", {})}


def load_rae(
    tensors: Mapping[str, np.ndarray], model: RAE, *, source: str = "checkpoint"
) -> dict[str, Any]:
    """A state dict under diffusers' names as the variables of `model`.

    Args:
      tensors: name -> array; the statistics of the latents are left out, see `statistics_in`.
      model: the autoencoder that takes the variables.
      source: the name of the tensors in an error, such as the file's name.

    Raises:
      UserError: a tensor is missing, unexpected, misshapen or not finite, or the pixels' mean and
        standard deviation or the table of positions are those of another model.
    """
    parts: dict[str, dict] = {"encoder": {}, "decoder": {}}
    for name, array in tensors.items():
        part, dot, inside = name.partition(".")
        if dot and part in parts:
            parts[part][inside] = array
        elif name not in (MEAN, STD, *PIXELS):
            raise UserError(f"{source}: unexpected tensor {name!r}")
    for (name, found), expected in zip(
        pixels_in(tensors, source).items(), model.pixel_statistics, strict=True
    ):
        if found is not None and not np.allclose(found, expected, atol=1e-6):
            raise UserError(
                f"{source}: {name!r} is {found}, but the tokenizer's pixels have {expected}: set "
                f"--config.tokenizer.{PIXELS[name]}={tuple(map(float, found))}"
            )
    variables = load_decoder(parts["decoder"], model, original=False, source=f"{source}: decoder")
    variables["constants"] |= load_encoder(parts["encoder"], model, source=f"{source}: encoder")
    return variables


def export_rae(variables: Mapping[str, Any], model: RAE) -> dict[str, np.ndarray]:
    """The inverse of `load_rae`.

    Tensors of the encoder that no token depends on (DINO's mask token, SigLIP's pooling head) are
    zeros, as diffusers' class has them.
    """
    vit = model.vit
    encoder = export_vit(variables["constants"]["encoder"], vit, _NAMING[vit.family])
    dtype = np.asarray(variables["constants"]["encoder"]["patch_embed"]["kernel"]).dtype
    for name, shape in _unused(model).items():
        encoder[name] = np.zeros(shape, dtype)
    decoder = export_decoder(variables, original=False)
    pixels = zip(PIXELS, model.pixel_statistics, strict=True)
    return {
        **{name: values.reshape(1, -1, 1, 1) for name, values in pixels},
        **{f"encoder.{name}": array for name, array in encoder.items()},
        **{f"decoder.{name}": array for name, array in decoder.items()},
    }


def _unused(model):
    """name -> shape of the tensors of transformers' encoder that its tokens do not depend on."""
    width, hidden = model.latent_channels, model.encoder_hidden or 4 * model.latent_channels
    if model.encoder == "dinov2":
        return {"embeddings.mask_token": (1, width)}
    if model.encoder == "dinov3":
        return {"embeddings.mask_token": (1, 1, width)}
    if model.encoder != "siglip2":
        return {}
    layers = {
        "attention.out_proj": (width, width), "mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)
    }  # fmt: skip
    shapes = {
        "probe": (1, 1, width),
        "attention.in_proj_weight": (3 * width, width),
        "attention.in_proj_bias": (3 * width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {f"head.{name}": shape for name, shape in shapes.items()}


def positions_of(table: np.ndarray, source: str, *likely: float) -> tuple[float, int]:
    """What a table (1, 1 + grid^2, D) holds: the step of the sin-cos table, or another table.

    Args:
      table: the table.
      source: the name of its file in an error.
      likely: steps to try before the others.

    Returns:
      (step, 0): the authors' step is 1, diffusers' 16 / grid; or (1, grid) for another table, as
      RAE's training moves it.

    Raises:
      UserError: it has another shape.
    """
    shape = np.shape(table)
    grid = math.isqrt(max(shape[-2] - 1, 0)) if len(shape) == 3 else 0
    if grid and shape == (1, 1 + grid**2, shape[-1]) and shape[-1] and shape[-1] % 4 == 0:
        for step in (*likely, 1.0, BASE_GRID / grid, *_slowest(table, grid)):
            if np.allclose(table, _table(shape[-1], grid, step), atol=1e-3):
                return step, 0
        return 1.0, grid
    raise UserError(
        f"{source}: the table {TABLE!r} of shape {shape} is not one of a square grid behind a row "
        "for the class token"
    )


def table_of(model: RAE, grid: int) -> np.ndarray:
    """The decoder's table (1, 1 + grid^2, D) for a square grid."""
    return _table(model.decoder_width, grid, model.position_step)


def _slowest(table, grid):
    """The step that the slowest sine of a table shows, to six digits; () for a single position."""
    quarter = table.shape[-1] // 4
    sine = float(table[0, 2, quarter - 1]) if grid > 1 else 0.0
    if not 0.0 < sine <= 1.0:
        return ()
    return (float(f"{np.arcsin(sine) * 1e4 ** ((quarter - 1) / quarter):.6g}"),)


def _table(width, grid, step):
    patches = sincos_position_table(width, grid, step)
    return np.concatenate([np.zeros_like(patches[:1]), patches])[None]


def pixels_in(tensors: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray | None]:
    """Tensor's name -> the three values of the pixels' mean and of their standard deviation.

    Raises:
      UserError: a tensor has another shape, integers, or values outside (0, 1).
    """
    found = {}
    for name in PIXELS:
        array = tensors.get(name)
        if array is None:
            found[name] = None
            continue
        values = np.asarray(array, np.float32).reshape(-1)
        whole = np.asarray(array).dtype.kind in "biu"
        fits = np.shape(array) == (1, 3, 1, 1) and ((values > 0) & (values < 1)).all()
        if whole or not fits:
            raise UserError(
                f"{source}: tensor {name!r} of type {np.asarray(array).dtype} and shape "
                f"{np.shape(array)} holds no three numbers between 0 and 1"
            )
        found[name] = values
    return found
