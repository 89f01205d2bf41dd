"""The training objective: the weights and variants of the loss terms."""

import dataclasses
import math

from repae_jax.errors import UserError
from repae_jax.objectives.diffaug import AUGMENTATIONS
from repae_jax.objectives.interpolant import INTERPOLANTS
from repae_jax.objectives.paths import PATHS
from repae_jax.objectives.prior import PRIOR_WEIGHTINGS
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
      prior_weight: the weight of LSGM's bound on KL(q || p_theta) in the VAE's loss, in nats per
        image like `kl_weight`, with the backbone as the prior (objectives/prior.py); 0 turns it
        off.
      prior_weighting: over times, one of `PRIOR_WEIGHTINGS`: "ll_iw", "ll_uniform", or
        "unweighted" for the backbone's own loss times the number of dimensions.
      prior_least_time: the least time of the bound (LSGM, 0.01).
      perceptual_start: the first step (counted from 0) with LPIPS.
      discriminator_start: the first step with adversarial terms.
      discriminator_factor: multiplies the hinge loss and the adversarial term from that step on.
      generator_start: the first step with the tokenizer's adversarial term, if it is later than
        discriminator_start (RAE).
      adaptive_weight: multiply the adversarial term by |dL_rec/dW| / (|dL_adv/dW| +
        adaptive_epsilon), at most adaptive_limit, with L_rec the reconstruction and LPIPS, and W
        the kernel of the decoder's last layer (VQGAN, arXiv 2012.09841, equation 7; RAE).
      augmentation: of all images that the discriminator sees: "none" or "diffaug" (see
        `diffaug.diff_augment`; RAE).
      fake_latents: what the discriminator's own loss sees: "same", the reconstructions of the other
        terms, or those of the posterior's "mean", decoded once more (RAE: without latent noise).
      fake_bytes: round the reconstructions of the discriminator's own loss to 8 bits, after
        clipping them to [-1, 1] (RAE).
      vf_weight: the weight of VF loss in the VAE's loss (VA-VAE, arXiv 2501.01423: 0.1), with the
        first teacher as the vision encoder; 0 turns it off.
      vf_adaptive: multiply it by |dL_rec/dW| / (|dL_vf/dW| + 1e-4), at most 1e8, with W the kernel
        of the encoder's last layer.
      vf_distance_margin, vf_cosine_margin: see `foundation.foundation_loss`.
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
      UserError: an unknown interpolant, posterior, latent_norm, reconstruction, prior_weighting,
        augmentation or fake_latents; a least_time or noise_scale that the interpolant does not
        have; or a prior_weight that goes with another interpolant, least_time or posterior.
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
    prior_weight: float = 0.0
    prior_weighting: str = "ll_iw"
    prior_least_time: float = 0.01
    adversarial_weight: float = 0.1
    perceptual_start: int = 0
    discriminator_start: int = 0
    discriminator_factor: float = 1.0
    generator_start: int = 0
    adaptive_weight: bool = False
    adaptive_epsilon: float = 1e-6
    adaptive_limit: float = 1e4
    augmentation: str = "none"
    fake_latents: str = "same"
    fake_bytes: bool = False
    vf_weight: float = 0.0
    vf_adaptive: bool = True
    vf_distance_margin: float = 0.25
    vf_cosine_margin: float = 0.5
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
            ("prior_weighting", PRIOR_WEIGHTINGS),
            ("augmentation", tuple(AUGMENTATIONS)),
            ("fake_latents", ("same", "mean")),
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
        if not 0.0 < self.prior_least_time < 1.0:
            raise UserError(
                f"config.objective.prior_least_time is {self.prior_least_time}: give a time above "
                "0 and below 1"
            )
        if self.prior_weight:
            self._check_prior()

    def _check_prior(self):
        if self.posterior != "sample":
            raise UserError(
                f"config.objective.prior_weight is {self.prior_weight}, but its bound needs "
                "samples of the posterior: set --config.objective.posterior=sample"
            )
        if self.prior_least_time < self.least_time:
            raise UserError(
                f"config.objective.prior_least_time is {self.prior_least_time}, but below "
                f"config.objective.least_time {self.least_time} the backbone learns no velocity: "
                f"set --config.objective.prior_least_time={self.least_time}"
            )
        if self.interpolant not in INTERPOLANTS:
            raise UserError(
                f"config.objective.prior_weight is {self.prior_weight}, but its bound needs the "
                f"velocity of {' or '.join(INTERPOLANTS)}, in place of {self.interpolant!r}"
            )


def check_noise_scale(scale: float, interpolant: str, name: str) -> None:
    """Raise UserError, with the value's name, unless the path has noise of this deviation."""
    if not 0.0 < scale < math.inf:
        raise UserError(f"{name} is {scale}: give a finite number above 0")
    if scale != 1.0 and PATHS[interpolant].predicts == "noise":
        raise UserError(f"{name} is {scale}, but the path {interpolant!r} has unit noise: use 1")
