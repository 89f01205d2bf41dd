"""The backbones that `config.backbone.family` chooses from."""

from repae_jax.models.backbones import sit

BACKBONES = {"sit": sit.FAMILY}
