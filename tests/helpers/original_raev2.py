"""RAEv2 of its authors' code (nanovisionx/RAEv2) on DINOv3's (facebookresearch/dinov3)."""

import contextlib
import importlib
import json
import os
import pathlib
import sys
from unittest import mock

import parity

ROOT, DINOV3 = os.environ.get("RAEV2_ORIGINAL"), os.environ.get("DINOV3_ORIGINAL")
FOUND = ROOT is not None and DINOV3 is not None
SKIP_REASON = (
    "set RAEV2_ORIGINAL and DINOV3_ORIGINAL to checkouts of nanovisionx/RAEv2 and "
    "facebookresearch/dinov3 (they need timm)"
)


@contextlib.contextmanager
def _importable(*folders):
    sys.path[:0] = map(str, folders)
    try:
        yield
    finally:
        for folder in folders:
            sys.path.remove(str(folder))


def make_rae(model, grid: int, folder: pathlib.Path, statistics: pathlib.Path):
    """Their RAE with the dimensions of ours, every weight random; it has `grid` x `grid` latents.

    Args:
      model: ours.
      grid: latents along a side.
      folder: takes the decoder's config.json.
      statistics: the file of the latents' mean and variance.
    """
    with _importable(DINOV3):
        dino = importlib.import_module("dinov3.models.vision_transformer")

    def load(name):
        vit = dino.DinoVisionTransformer(
            patch_size=16, embed_dim=model.latent_channels, depth=model.encoder_depth,
            num_heads=model.latent_channels // 64, norm_layer="layernormbf16", n_storage_tokens=4,
            mask_k_bias=True, layerscale_init=1.0, pos_embed_rope_dtype="fp32",
        )  # fmt: skip
        vit.init_weights()  # the periods and the masks
        return vit

    sizes = dict(
        model_type="vit_mae", hidden_act="gelu", layer_norm_eps=1e-12, qkv_bias=True,
        decoder_hidden_size=model.decoder_width, decoder_num_hidden_layers=model.decoder_depth,
        decoder_num_attention_heads=model.decoder_heads, num_channels=3,
        decoder_intermediate_size=model.decoder_hidden, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(sizes))
    with _importable(pathlib.Path(ROOT) / "src"):
        stage = importlib.import_module("stage1.rae")
        loader = importlib.import_module("encoders.models.dinov3_loader")
    layers = ".".join(map(str, model.encoder_layers))
    name = f"dinov3mls-vit-l16[layers={layers}]" if layers else "dinov3-vit-l16"
    with mock.patch.object(loader, "load_dinov3", load):
        net = stage.RAE(
            name, resolution=16 * grid, decoder_config_path=str(folder),
            decoder_patch_size=model.factor, normalization_stat_path=str(statistics),
        )  # fmt: skip
    table = net.decoder.decoder_pos_embed.data.clone()
    parity.randomise(net)
    net.decoder.decoder_pos_embed.data = table
    return net.eval()
