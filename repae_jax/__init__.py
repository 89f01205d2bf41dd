"""REPA-E in JAX: a VAE and a latent diffusion transformer trained jointly, in one pure step."""

__version__ = "0.1.0"
