"""REPA-E in JAX: a VAE and a latent diffusion transformer trained jointly, in one pure step."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repae_jax.runs.pretrained import PretrainedVAE as AutoencoderKL

__version__ = "0.1.0"
__all__ = ["AutoencoderKL", "Pipeline"]


def __getattr__(name):
    # Imported at the first use, so that `import repae_jax` alone stays quick.
    if name == "AutoencoderKL":
        from repae_jax.runs.pretrained import PretrainedVAE

        return PretrainedVAE
    if name == "Pipeline":
        from repae_jax.runs.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
