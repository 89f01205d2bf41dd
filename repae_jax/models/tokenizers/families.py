"""The table of tokenizers; `config.tokenizer.family` names one of them."""

from repae_jax.models.family import Family
from repae_jax.models.tokenizers import autoencoder_kl, dc_ae, pixels, qwen_image_vae, rae
from repae_jax.models.tokenizers.base import Tokenizer

TOKENIZERS = {
    "kl": autoencoder_kl.FAMILY,
    "qwenimage": qwen_image_vae.FAMILY,
    "dcae": dc_ae.FAMILY,
    "rae": rae.FAMILY,
    "pixels": pixels.FAMILY,
}


def family_of(tokenizer: Tokenizer) -> Family:
    """The row of `TOKENIZERS` that a module belongs to."""
    return next(row for row in TOKENIZERS.values() if row.build is type(tokenizer))
