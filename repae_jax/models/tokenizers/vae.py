"""The VAE families: what they share is `encode`, `decode`, `factor` and `latent_channels`."""

import jax
import jax.numpy as jnp

from repae_jax.models.tokenizers.autoencoder_kl import VAE_CONFIGS as KL_CONFIGS
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.models.tokenizers.qwen_image_vae import QWEN_VAE_CONFIGS, AutoencoderKLQwenImage

VAE = AutoencoderKL | AutoencoderKLQwenImage

VAE_FAMILIES: dict[str, type[VAE]] = {"kl": AutoencoderKL, "qwenimage": AutoencoderKLQwenImage}

# published name -> (family, its fields)
VAE_PRESETS: dict[str, tuple[str, dict]] = {
    **{name: ("kl", fields) for name, fields in KL_CONFIGS.items()},
    **{name: ("qwenimage", fields) for name, fields in QWEN_VAE_CONFIGS.items()},
}


def parameter_shapes(vae: VAE) -> dict:
    """The parameters' shapes and types; allocates nothing."""
    images = jnp.zeros((1, vae.factor, vae.factor, vae.image_channels))
    noise = jnp.zeros((1, 1, 1, vae.latent_channels))
    return jax.eval_shape(vae.init, jax.random.key(0), images, noise)["params"]
