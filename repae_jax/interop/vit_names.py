"""The tensor names of published ViTs: one `Format` per family and naming, as data."""

from collections.abc import Mapping

from repae_jax.interop.tables import LINEAR, Layout, Rule
from repae_jax.interop.vit_format import Format, Naming

FAMILIES = {
    "dinov2": "DINOv2",
    "dinov3": "DINOv3",
    "dino": "DINO",
    "mocov3": "MoCo v3",
    "mae": "MAE",
    "ijepa": "I-JEPA",
    "clip": "CLIP",
    "siglip": "SigLIP",
    "pe": "PE",
}


def _blocks(theirs: str, names: Mapping[str, str | tuple[str, ...]]):
    """Layers within a block -> the same layers under `theirs`, the path of a block in the file."""

    def inside(name):
        return f"{theirs}.{name}" if isinstance(name, str) else tuple(map(inside, name))

    return {f"blocks_{{i}}/{ours}": inside(name) for ours, name in names.items()}


_TIMM_TENSORS = (
    Rule("pos_embed", "position_table"),
    Rule("cls_token", "class_token"),
    Rule("register_tokens", "register_tokens"),
    Rule("blocks.{i}.ls1.gamma", "blocks_{i}/ls1/scale"),
    Rule("blocks.{i}.ls2.gamma", "blocks_{i}/ls2/scale"),
)
_TIMM_LAYERS = {
    "patch_embed": "patch_embed.proj",
    "norm": "norm",
    **_blocks(
        "blocks.{i}",
        {
            "norm1": "norm1",
            "attn/qkv": "attn.qkv",
            "attn/proj": "attn.proj",
            "norm2": "norm2",
            "mlp/fc1": "mlp.fc1",
            "mlp/fc2": "mlp.fc2",
            "mlp/w12": "mlp.w12",
            "mlp/w3": "mlp.w3",
        },
    ),
}

_HF_TENSORS = (
    Rule("embeddings.position_embeddings", "position_table"),
    Rule("embeddings.cls_token", "class_token"),
    Rule("embeddings.register_tokens", "register_tokens"),
    Rule("encoder.layer.{i}.layer_scale1.lambda1", "blocks_{i}/ls1/scale"),
    Rule("encoder.layer.{i}.layer_scale2.lambda1", "blocks_{i}/ls2/scale"),
)
_HF_OUTSIDE = {"patch_embed": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
_HF_ATTENTION = {
    "attn/qkv": tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    "attn/proj": "attention.output.dense",
}
_HF5_ATTENTION = {
    "attn/qkv": tuple(f"attention.{part}_proj" for part in ("q", "k", "v")),
    "attn/proj": "attention.o_proj",
}

_DINOV2_COMMON = {"norm1": "norm1", "norm2": "norm2", "mlp/fc1": "mlp.fc1", "mlp/fc2": "mlp.fc2"}
_HF_DINOV2_BLOCK = {
    **_DINOV2_COMMON,
    **_HF_ATTENTION,
    "mlp/w12": "mlp.weights_in",
    "mlp/w3": "mlp.weights_out",
}
_HF5_DINOV2_BLOCK = {
    **_DINOV2_COMMON,
    **_HF5_ATTENTION,
    "mlp/w12": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp/w3": "mlp.down_proj",
}

# transformers' ViTModel, of which its MAE and I-JEPA are copies
_HF_VIT_NORMS = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
_HF_VIT_BLOCK = {
    **_HF_VIT_NORMS,
    **_HF_ATTENTION,
    "mlp/fc1": "intermediate.dense",
    "mlp/fc2": "output.dense",
}
_HF5_VIT_BLOCK = {**_HF_VIT_NORMS, **_HF5_ATTENTION, "mlp/fc1": "mlp.fc1", "mlp/fc2": "mlp.fc2"}

_VECTOR = Layout(lambda a: a[None, None], lambda a: a[0, 0])  # (D,) <-> (1, 1, D)
_TABLE = Layout(lambda a: a[None], lambda a: a[0])  # (N, D) <-> (1, N, D)

_OPENAI_TENSORS = (
    Rule("positional_embedding", "position_table", _TABLE),
    Rule("class_embedding", "class_token", _VECTOR),
    # torch.nn.MultiheadAttention holds these two directly, not in a layer
    Rule("transformer.resblocks.{i}.attn.in_proj_weight", "blocks_{i}/attn/qkv/kernel", LINEAR),
    Rule("transformer.resblocks.{i}.attn.in_proj_bias", "blocks_{i}/attn/qkv/bias"),
)
_OPENAI_LAYERS = {
    "patch_embed": "conv1",
    "pre_norm": "ln_pre",
    "norm": "ln_post",
    **_blocks(
        "transformer.resblocks.{i}",
        {
            "norm1": "ln_1",
            "attn/proj": "attn.out_proj",
            "norm2": "ln_2",
            "mlp/fc1": "mlp.c_fc",
            "mlp/fc2": "mlp.c_proj",
        },
    ),
}
_PE_TENSORS = (
    *_OPENAI_TENSORS,
    Rule("transformer.resblocks.{i}.ls_1.gamma", "blocks_{i}/ls1/scale"),
    Rule("transformer.resblocks.{i}.ls_2.gamma", "blocks_{i}/ls2/scale"),
)
# tensors beside the image tower in a file of the complete model
_OPENAI_TEXT = (
    r"(transformer|token_embedding|ln_final)\..*",
    r"positional_embedding|text_projection|logit_scale",
    r"input_resolution|context_length|vocab_size",
)

_HF_CLIP_TENSORS = (
    Rule("embeddings.position_embedding.weight", "position_table", _TABLE),
    Rule("embeddings.class_embedding", "class_token", _VECTOR),
)
_HF_SIGLIP_LAYERS = {
    "patch_embed": "embeddings.patch_embedding",
    "norm": "post_layernorm",
    **_blocks(
        "encoder.layers.{i}",
        {
            "norm1": "layer_norm1",
            "attn/qkv": tuple(f"self_attn.{part}_proj" for part in ("q", "k", "v")),
            "attn/proj": "self_attn.out_proj",
            "norm2": "layer_norm2",
            "mlp/fc1": "mlp.fc1",
            "mlp/fc2": "mlp.fc2",
        },
    ),
}


_HF_CLIP_LAYERS = {**_HF_SIGLIP_LAYERS, "pre_norm": "pre_layrnorm"}


def _timm(family: str, **details) -> Format:
    return Format(family, "authors", _TIMM_TENSORS, _TIMM_LAYERS, **details)


def _hf_vit(family: str, **details) -> tuple[Format, Format]:
    published = {**_HF_OUTSIDE, **_blocks("encoder.layer.{i}", _HF_VIT_BLOCK)}
    modules = {**_HF_OUTSIDE, **_blocks("layers.{i}", _HF5_VIT_BLOCK)}
    return (
        Format(family, "transformers", _HF_TENSORS, published, **details),
        Format(family, "transformers5", _HF_TENSORS, modules, **details),
    )


def _hf_dinov2(naming: Naming, block) -> Format:
    layers = {**_HF_OUTSIDE, **_blocks("encoder.layer.{i}", block)}
    return Format("dinov2", naming, _HF_TENSORS, layers, left_out=("embeddings.mask_token",))


def _hf_dinov3(mlp: Mapping[str, str | tuple[str, ...]]) -> tuple[Format, Format]:
    block = {"norm1": "norm1", "norm2": "norm2", **_HF5_ATTENTION, **mlp}
    outside = {"patch_embed": "embeddings.patch_embeddings", "norm": "norm"}

    def named(naming: Naming, layer: str) -> Format:
        tensors = (
            Rule("embeddings.register_tokens", "register_tokens"),
            Rule("embeddings.cls_token", "class_token"),
            Rule(f"{layer}.layer_scale1.lambda1", "blocks_{i}/ls1/scale"),
            Rule(f"{layer}.layer_scale2.lambda1", "blocks_{i}/ls2/scale"),
        )
        layers = {**outside, **_blocks(layer, block)}
        return Format("dinov3", naming, tensors, layers, left_out=(r"embeddings\.mask_token",),
                      biases=_DINOV3_BIASES)  # fmt: skip

    return named("transformers", "layer.{i}"), named("transformers5", "model.layer.{i}")


_POOLING, _FINAL_NORM = "attn_pool.probe", "ln_post.weight"
_TIMM_PE = {
    "family": "pe",
    "naming": "timm",
    "tensors": (
        *_TIMM_TENSORS[:2],
        Rule("blocks.{i}.gamma_1", "blocks_{i}/ls1/scale"),
        Rule("blocks.{i}.gamma_2", "blocks_{i}/ls2/scale"),
    ),
    "layers": {
        **{ours: name for ours, name in _TIMM_LAYERS.items() if "/w" not in ours},
        "pre_norm": "norm_pre",
    },
    "left_out": (r"(attn_pool|head)\..*",),
}
_PE = {
    "family": "pe",
    "naming": "authors",
    "tensors": _PE_TENSORS,
    "layers": _OPENAI_LAYERS,
    "inside": "weights",
    "beside": _OPENAI_TEXT,
}
_DINOV3_BIASES = ("blocks_{i}/attn/qkv",)  # no key has one, and in the 7B none

FORMATS: tuple[Format, ...] = (
    Format(
        "dinov3",
        "authors",
        (
            Rule("storage_tokens", "register_tokens"),
            *(rule for rule in _TIMM_TENSORS if "ls" in rule.ours or rule.ours == "class_token"),
        ),
        {
            **{ours: name for ours, name in _TIMM_LAYERS.items() if "w12" not in ours},
            **_blocks("blocks.{i}", {"mlp/w12": ("mlp.w1", "mlp.w2")}),
        },
        left_out=("mask_token", r"local_cls_norm\..*"),
        biases=_DINOV3_BIASES,
    ),
    *_hf_dinov3({"mlp/fc1": "mlp.up_proj", "mlp/fc2": "mlp.down_proj"}),
    *_hf_dinov3({"mlp/w12": ("mlp.gate_proj", "mlp.up_proj"), "mlp/w3": "mlp.down_proj"}),
    _timm("dinov2", left_out=("mask_token",)),
    _hf_dinov2("transformers", _HF_DINOV2_BLOCK),
    _hf_dinov2("transformers5", _HF5_DINOV2_BLOCK),
    _timm(
        "dino",
        # published are a backbone alone, and full checkpoints of student and teacher
        prefixes=("", "backbone.", "module.backbone."),
        inside="teacher",
        beside=(r"(module\.)?head\..*",),
    ),
    *_hf_vit("dino", left_out=(r"pooler\..*",)),
    _timm(
        "mocov3",
        prefixes=("module.base_encoder.", ""),
        inside="state_dict",
        left_out=(r"head\..*",),
        beside=(r"module\.(momentum_encoder|predictor)\..*",),
        misnamed=(  # in the published ViT-L
            ("blocks.13.norm13.", "blocks.13.norm1."),
            ("blocks.13.mlp.fc13.", "blocks.13.mlp.fc1."),
            ("blocks.14.norm14.", "blocks.14.norm2."),
            ("blocks.14.mlp.fc14.", "blocks.14.mlp.fc2."),
        ),
    ),
    _timm("mae", inside="model", left_out=(r"mask_token|decoder_.*",)),
    *_hf_vit("mae", prefixes=("vit.", ""), beside=(r"decoder\..*",)),
    _timm("ijepa", prefixes=("module.", ""), inside="encoder"),
    *_hf_vit("ijepa", left_out=(r"pooler\..*",)),
    Format(
        "clip",
        "authors",
        _OPENAI_TENSORS,
        _OPENAI_LAYERS,
        prefixes=("visual.", ""),
        left_out=("proj",),
        beside=_OPENAI_TEXT,
        holds=_FINAL_NORM,
        lacks=_POOLING,
    ),
    # Core has the pooling, Spatial and Lang have neither it nor the final norm
    Format(**_PE, prefixes=("visual.", ""), left_out=("proj", r"attn_pool\..*"), holds=_POOLING),
    Format(**_PE, lacks=_FINAL_NORM),
    Format(**_TIMM_PE, holds="attn_pool.latent"),
    Format(**_TIMM_PE, holds="norm_pre.weight", lacks="norm.weight"),
    Format(
        "clip",
        "transformers",
        _HF_CLIP_TENSORS,
        _HF_CLIP_LAYERS,
        prefixes=("vision_model.", ""),
        left_out=(r"embeddings\.position_ids",),
        beside=(r"text_model\..*", r"(visual|text)_projection\.weight|logit_scale"),
    ),
    Format(
        "siglip",
        "transformers",
        _HF_CLIP_TENSORS[:1],
        _HF_SIGLIP_LAYERS,
        prefixes=("vision_model.", ""),
        left_out=(r"head\..*", r"embeddings\.position_ids"),
        beside=(r"text_model\..*", r"logit_(scale|bias)"),
    ),
)
