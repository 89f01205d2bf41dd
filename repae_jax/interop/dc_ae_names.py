"""DC-AE's tensors under diffusers' names and under its authors'."""

from typing import Literal

from repae_jax.interop.tables import CONV, CONV1X1, LINEAR, Rule, layer, norm
from repae_jax.models.tokenizers.dc_ae import AutoencoderDC

Naming = Literal["diffusers", "original"]


# Names within a side's modules, in diffusers' files and the authors'.
_DIFFUSERS = {
    "encoder/conv_in": "encoder.conv_in",
    "encoder/conv_out": "encoder.conv_out",
    "decoder/conv_in": "decoder.conv_in",
    "decoder/norm_out": "decoder.norm_out",
    "decoder/conv_out": "decoder.conv_out",
    "inner": ".conv",  # of a change of the resolution without a shortcut
    "encoder": "encoder.down_blocks.{}.{}",
    "decoder": "decoder.up_blocks.{}.{}",
    "downsample": ".conv",
    "strided": ".conv",
    "upsample": ".conv",
    "conv1": ".conv1",
    "conv2": ".conv2",
    "norm": ".norm",
    "parts": ".attn.to_{}",
    "scale_in": ".attn.to_qkv_multiscale.{}.proj_in",
    "scale_out": ".attn.to_qkv_multiscale.{}.proj_out",
    "proj_out": ".attn.to_out",
    "attn_norm": ".attn.norm_out",
    "inverted": ".conv_out.conv_inverted",
    "depth": ".conv_out.conv_depth",
    "point": ".conv_out.conv_point",
    "ffn_norm": ".conv_out.norm",
}
_ORIGINAL = {
    "encoder/conv_in": "encoder.project_in.conv",
    "encoder/conv_out": "encoder.project_out.main.op_list.0.conv",
    "decoder/conv_in": "decoder.project_in.main.conv",
    "decoder/norm_out": "decoder.project_out.op_list.0",
    "decoder/conv_out": "decoder.project_out.op_list.2.conv",
    "inner": ".conv",
    "encoder": "encoder.stages.{}.op_list.{}",
    "decoder": "decoder.stages.{}.op_list.{}",
    "downsample": ".main.conv.conv",
    "strided": ".main.conv",
    "upsample": ".main.conv.conv",
    "conv1": ".main.conv1.conv",
    "conv2": ".main.conv2.conv",
    "norm": ".main.conv2.norm",
    "parts": ".context_module.main.qkv.conv.{}",
    "scale_in": ".context_module.main.aggreg.{}.0",
    "scale_out": ".context_module.main.aggreg.{}.1",
    "proj_out": ".context_module.main.proj.conv",
    "attn_norm": ".context_module.main.proj.norm",
    "inverted": ".local_module.main.inverted_conv.conv",
    "depth": ".local_module.main.depth_conv.conv",
    "point": ".local_module.main.point_conv.conv",
    "ffn_norm": ".local_module.main.point_conv.norm",
}


def dc_ae_rules(model: AutoencoderDC, naming: Naming = "diffusers") -> list[Rule]:
    """Rules from a file's names, in the order of its modules, to the variables of `model`."""
    names = _DIFFUSERS if naming == "diffusers" else _ORIGINAL
    return [*_encoder_rules(model, names), *_decoder_rules(model, names)]


def _encoder_rules(model, names):
    levels, first = len(model.widths), 0 if model.encoder_layers[0] else 1
    strided = names is _ORIGINAL and not model.shuffle
    inner = names["inner"] if first and not strided else ""
    rules = layer(
        names["encoder/conv_in"] + inner, "params/encoder/conv_in" + "/conv" * first, CONV
    )
    for i in range(first, levels):
        for j in range(model.encoder_layers[i]):
            there, here = names["encoder"].format(i, j), f"encoder/down_{i}_{j}"
            rules += _block_rules(model, names, i, there, here, batch_norm=False)
        if i + 1 < levels:
            there = names["encoder"].format(i, model.encoder_layers[i])
            there += names["downsample" if model.shuffle else "strided"]
            rules += layer(there, f"params/encoder/downsample_{i}/conv", CONV)
    return rules + layer(names["encoder/conv_out"], "params/encoder/conv_out", CONV)


def _decoder_rules(model, names):
    levels, first = len(model.widths), 0 if model.decoder_layers[0] else 1
    rules = layer(names["decoder/conv_in"], "params/decoder/conv_in", CONV)
    for i in range(first, levels):
        above = int(i + 1 < levels)  # the up-sampling is the first of a level's modules
        if above:
            there = names["decoder"].format(i, 0) + names["upsample"]
            rules += layer(there, f"params/decoder/upsample_{i}/conv", CONV)
        for j in range(model.decoder_layers[i]):
            there, here = names["decoder"].format(i, j + above), f"decoder/up_{i}_{j}"
            batch_norm = i in model.batch_norm_levels
            rules += _block_rules(model, names, i, there, here, batch_norm=batch_norm)
    inner = names["inner"] if first else ""
    rules += norm(names["decoder/norm_out"], "params/decoder/norm_out")
    there = names["decoder/conv_out"] + inner
    return rules + layer(there, "params/decoder/conv_out" + "/conv" * first, CONV)


def _block_rules(model, names, level, there, here, *, batch_norm):
    ours = f"params/{here}"
    if level not in model.attention_levels:
        return [
            *layer(there + names["conv1"], f"{ours}/conv1", CONV),
            *layer(there + names["conv2"], f"{ours}/conv2", CONV, bias=False),
            *_norm_rules(there + names["norm"], f"{here}/norm", batch_norm),
        ]
    linear = LINEAR if names is _DIFFUSERS else CONV1X1
    rules = []
    for i, part in enumerate("qkv"):
        rules += layer(there + names["parts"].format(part), f"{ours}/attn/part_{i}", linear,
                       bias=False)  # fmt: skip
    for i in range(len(model.scales)):
        for which in ("in", "out"):
            name = there + names[f"scale_{which}"].format(i)
            rules += layer(name, f"{ours}/attn/scale_{i}_{which}", CONV, bias=False)
    return [
        *rules,
        *layer(there + names["proj_out"], f"{ours}/attn/proj_out", linear, bias=False),
        *_norm_rules(there + names["attn_norm"], f"{here}/attn/norm", batch_norm),
        *layer(there + names["inverted"], f"{ours}/ffn/inverted", CONV),
        *layer(there + names["depth"], f"{ours}/ffn/depth", CONV),
        *layer(there + names["point"], f"{ours}/ffn/point", CONV, bias=False),
        *norm(there + names["ffn_norm"], f"{ours}/ffn/norm"),
    ]


def _norm_rules(there, here, batch_norm):
    rules = norm(there, f"params/{here}")
    if batch_norm:
        rules.append(Rule(f"{there}.running_mean", f"constants/{here}/mean"))
        rules.append(Rule(f"{there}.running_var", f"constants/{here}/var"))
    return rules
