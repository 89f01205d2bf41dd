"""The paper's comparisons (arXiv 2504.10483, section 4) as arms and claims of a study."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from repae_jax.study.plan import arm, claim


def add_paper(study: ConfigDict, smaller: Mapping[str, Any]) -> None:
    """Add the paper's arms and claims to a study.

    All arms have the same number of steps. Arms that start from "vae" build on its steps, while
    "scratch" starts without them. "longer" is the control of the tuned VAE: it trains for the same
    total number of steps, without a SiT.

    Args:
      study: the study; its `arms` and `claims` are extended.
      smaller: keys of `config.backbone` for a smaller backbone, which the second stage also trains.
    """
    sizes = {"backbone": dict(smaller)}
    study.arms.update(
        vae=arm("VAE alone", "vae"),
        sit=arm("SiT, VAE frozen", "vanilla", vae="vae"),
        repa=arm("REPA, VAE frozen", "repa", vae="vae"),
        repae=arm("REPA-E", vae="vae"),
        scratch=arm("REPA-E from scratch"),
        diffusion=arm("REPA-E with the SiT's whole loss into the VAE", "repae_no_stop_gradient",
                      vae="vae"),
        no_norm=arm("REPA-E without LatentNorm", "repae_no_latent_norm", vae="vae"),
        no_regularisation=arm("REPA-E without regularization", "repae_no_regularisation",
                              vae="vae"),
        second=arm("REPA on REPA-E's VAE, frozen", "repa", vae="repae"),
        longer=arm("VAE alone, twice the steps", "vae", vae="vae"),
        second_longer=arm("REPA on the VAE with twice the steps", "repa", vae="longer"),
        repa_small=arm("REPA, smaller SiT, VAE frozen", "repa", vae="vae", changes=sizes),
        second_small=arm("REPA, smaller SiT, on REPA-E's VAE, frozen", "repa", vae="repae",
                         changes=sizes),
    )  # fmt: skip
    study.claims.update(
        faster_than_sit=claim("REPA-E is ahead of SiT", "frechet", "repae", "sit"),
        faster_than_repa=claim("REPA-E is ahead of REPA", "frechet", "repae", "repa"),
        faster_than_longer=claim("also of REPA on a VAE with as many steps", "frechet", "repae",
                                 "second_longer"),
        repa=claim("REPA is ahead of SiT", "frechet", "repa", "sit"),
        collapse=claim("the diffusion loss takes the latents' variance", "latent_variance",
                       "repae", "diffusion"),
        collapse_within=claim("and above all that within images", "latent_within", "repae",
                              "diffusion"),
        collapse_samples=claim("and samples suffer", "frechet", "repae", "diffusion"),
        norm=claim("LatentNorm helps", "frechet", "repae", "no_norm"),
        regularisation=claim("without L_REG reconstruction is worse", "psnr", "repae",
                             "no_regularisation"),
        reconstruction=claim("tuning improves reconstruction", "psnr", "repae", "vae"),
        reconstruction_longer=claim("also beside a VAE with as many steps", "psnr", "repae",
                                    "longer"),
        drop_in=claim("a fresh SiT is better on the tuned VAE", "frechet", "second", "repa"),
        drop_in_longer=claim("also beside a VAE with as many steps", "frechet", "second",
                             "second_longer"),
        drop_in_small=claim("also a SiT of another size", "frechet", "second_small", "repa_small"),
        scratch=claim("from scratch REPA-E is ahead of REPA on a trained VAE", "frechet",
                      "scratch", "repa"),
        alignment=claim("REPA-E's SiT is more aligned than REPA's", "cknna", "repae", "repa"),
    )  # fmt: skip
