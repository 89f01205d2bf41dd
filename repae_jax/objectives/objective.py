"""The training objective: the weights and variants of the loss terms."""

import dataclasses
import math

from repae_jax.errors import UserError
from repae_jax.objectives.paths import PATHS
from repae_jax.objectives.reconstruction import RECONSTRUCTION


@dataclasses.dataclass(frozen=True)
class Objective:
    """The weights and variants of the loss terms; the defaults are REPA-E's published values.

    Attributes:
      interpolant: "linear" or "cosine", or "ddpm" for a backbone that predicts the noise.
      least_time: the velocity's target is (x_t - x) / max(t, least_time), on the linear path (JiT
        and diffusion-bench, 0.05); 0 for the velocity itself.
      noise_scale: the standard deviation of the noise at t = 1 (JiT, 2 for images of 512 x 512).
      backbone_alignment: lambda, the weight of L_REPA in the backbone's loss.
      tokenizer_alignment: the weight of L_REPA in the VAE's loss.
      alignment_end: L_REPA of the backbone ends at this step, counted from 0 (HASTE, arXiv
        2505.16792); 0 for never.
      spatial_norm: normalize the teachers' tokens over positions before L_REPA (see
        `alignment.spatial_norm`) with this share of their mean removed; 0 turns it off.
      stop_gradient: keeps gradients of the diffusion loss from the VAE; False is the paper's
        "w/o stopgrad".
      posterior: the latents are a "sample" of the encoder's posterior, or its "mean" (as in
        diffusion-bench).
      latent_norm: "batch" normalizes latents by batch statistics and updates the running
        statistics; "fixed" uses the statistics at the start of the run (frozen VAE; the paper's
        "w/o batch-norm").
      latent_noise: tau: the decoder learns from latents with noise of a standard deviation from
        U(0, tau) of each image (RAE, 0.8); 0 turns it off. The backbone's latents stay as they are.
      reconstruction: "l1" or "l2".
      reconstruction_weight, perceptual_weight, kl_weight, adversarial_weight: the weights in L_REG;
        all zero is the paper's "w/o L_REG".
      discriminator_start: the first step (counted from 0) with adversarial terms.
      discriminator_factor: multiplies the hinge loss and the adversarial term from that step on.
      lecam_weight, lecam_decay: weight of LeCam regularization (0 turns it off), and the decay of
        its moving averages.
      cosine_weight: the weight of the velocity's direction in the backbone's loss (LightningDiT, 1;
        0 turns it off).
      dispersive_weight: the weight of Dispersive Loss of the tokens after the aligned block (its
        authors' code: 0.25, after the last block; 0 turns it off). It compares the images of a
        micro-batch with each other.
      class_token_weight: the weight of the velocity's loss of a class token that the backbone
        denoises (REG, arXiv 2507.01467: 0.03).

    Raises:
      UserError: an unknown interpolant, posterior, latent_norm or reconstruction, or a least_time
        or noise_scale that the interpolant does not have.
    """

    interpolant: str = "linear"
    least_time: float = 0.0
    noise_scale: float = 1.0
    backbone_alignment: float = 0.5
    tokenizer_alignment: float = 1.5
    alignment_end: int = 0
    spatial_norm: float = 0.0
    stop_gradient: bool = True
    posterior: str = "sample"
    latent_norm: str = "batch"
    latent_noise: float = 0.0
    reconstruction: str = "l1"
    reconstruction_weight: float = 1.0
    perceptual_weight: float = 1.0
    kl_weight: float = 1e-6
    adversarial_weight: float = 0.1
    discriminator_start: int = 0
    discriminator_factor: float = 1.0
    lecam_weight: float = 0.0
    lecam_decay: float = 0.999
    cosine_weight: float = 0.0
    dispersive_weight: float = 0.0
    class_token_weight: float = 0.03

    def __post_init__(self):
        for field, allowed in (
            ("interpolant", tuple(PATHS)),
            ("posterior", ("sample", "mean")),
            ("latent_norm", ("batch", "fixed")),
            ("reconstruction", tuple(RECONSTRUCTION)),
        ):
            if getattr(self, field) not in allowed:
                choices = " or ".join(map(repr, allowed))
                raise UserError(
                    f"config.objective.{field} is {getattr(self, field)!r}: use {choices}"
                )
        if self.least_time and self.interpolant != "linear":
            raise UserError(
                f"config.objective.least_time is {self.least_time}, which the path "
                f"{self.interpolant!r} does not have: use 0, or the interpolant 'linear'"
            )
        check_noise_scale(self.noise_scale, self.interpolant, "config.objective.noise_scale")


def check_noise_scale(scale: float, interpolant: str, name: str) -> None:
    """Raise UserError, with the value's name, unless the path has noise of this deviation."""
    if not 0.0 < scale < math.inf:
        raise UserError(f"{name} is {scale}: give a finite number above 0")
    if scale != 1.0 and PATHS[interpolant].predicts == "noise":
        raise UserError(f"{name} is {scale}, but the path {interpolant!r} has unit noise: use 1")
