"""diffusers' AutoencoderRAE, small and random, as the tests' independent RAE."""

import parity
import torch
import transformers

from repae_jax.models.tokenizers.rae import RAE

if not hasattr(transformers.SiglipVisionModel, "vision_model"):
    # transformers 5 has merged the two modules, which diffusers 0.42 does not know
    transformers.SiglipVisionModel.vision_model = property(lambda self: self)

PATCHES = {"dinov2": 14, "siglip2": 16, "mae": 16}
WIDTH = 64


def make_rae(kind: str = "dinov2", grid: int = 4, depth: int = 2, seed: int = 0, **changes):
    """A diffusers.AutoencoderRAE of `grid` x `grid` latents, every weight random."""
    import diffusers

    patch = PATCHES[kind]
    sizes = dict(
        encoder_type=kind,
        encoder_hidden_size=WIDTH,
        encoder_patch_size=patch,
        encoder_num_hidden_layers=2,
        encoder_input_size=grid * patch,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=depth,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=48,
        patch_size=4,
    )
    if kind == "siglip2":
        sizes |= dict(encoder_norm_mean=[0.5] * 3, encoder_norm_std=[0.5] * 3)
    net = parity.randomise(diffusers.AutoencoderRAE(**sizes | changes), seed).eval()
    net.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in net.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "position_embedding" in name:
            parameter.data = 0.5 * noise
        elif "lambda1" in name:
            parameter.data = 1.0 + 0.2 * noise
        elif name.endswith("cls_token"):  # so small that the epsilon of the norms shows
            parameter.data = 1e-3 * noise
    embeddings = net.encoder.embeddings
    if hasattr(embeddings, "position_embeddings") and kind != "siglip2":
        embeddings.position_embeddings.data[:, 0] = 0
    return net


def module_of(net, **changes) -> RAE:
    """Our module with the dimensions of diffusers'."""
    config = net.config
    grid = config.encoder_input_size // config.encoder_patch_size
    return RAE(
        encoder=config.encoder_type,
        latent_channels=config.encoder_hidden_size,
        encoder_depth=config.encoder_num_hidden_layers,
        encoder_patch=config.encoder_patch_size,
        encoder_hidden=None if config.encoder_type == "dinov2" else 3072,
        decoder_width=config.decoder_hidden_size,
        decoder_depth=config.decoder_num_hidden_layers,
        decoder_heads=config.decoder_num_attention_heads,
        decoder_hidden=config.decoder_intermediate_size,
        factor=config.patch_size,
        **{"position_step": 16 / grid, **changes},
    )


def published(model: RAE):
    """diffusers' module with the dimensions of ours, as it makes it; call it on torch's "meta"."""
    import diffusers

    return diffusers.AutoencoderRAE(
        encoder_type=model.encoder,
        encoder_hidden_size=model.latent_channels,
        encoder_patch_size=model.encoder_patch,
        encoder_num_hidden_layers=model.encoder_depth,
        encoder_input_size=16 * model.encoder_patch,
        decoder_hidden_size=model.decoder_width,
        decoder_num_hidden_layers=model.decoder_depth,
        decoder_num_attention_heads=model.decoder_heads,
        decoder_intermediate_size=model.decoder_hidden,
        patch_size=model.factor,
    )
