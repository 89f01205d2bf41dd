"""The decoder of RAE's authors' code (bytetriper/RAE), from a checkout."""

import importlib
import os
import pathlib
import sys

ROOT = os.environ.get("RAE_ORIGINAL")
SKIP_REASON = "set RAE_ORIGINAL to a checkout of bytetriper/RAE (it needs transformers)"


def make_decoder(model, grid: int):
    """Their decoder with the dimensions of ours, for `grid` x `grid` latents."""
    folder = str(pathlib.Path(ROOT) / "src" / "stage1")
    sys.path.insert(0, folder)
    try:
        decoder = importlib.import_module("decoders.decoder")
    finally:
        sys.path.remove(folder)
    config = decoder.ViTMAEConfig(
        hidden_size=model.latent_channels,
        decoder_hidden_size=model.decoder_width,
        decoder_num_hidden_layers=model.decoder_depth,
        decoder_num_attention_heads=model.decoder_heads,
        decoder_intermediate_size=model.decoder_hidden,
        patch_size=model.factor,
        image_size=grid * model.factor,
        layer_norm_eps=1e-12,
    )
    config._attn_implementation = "eager"
    return decoder.GeneralDecoder(config, num_patches=grid**2).eval()
