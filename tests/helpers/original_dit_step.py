"""The original's SiT with a DiT in its place: the model, its path and its loss, nothing else.

REPA-E's loop calls `SiT.forward`, which normalizes, interpolates, projects and computes the losses.
Here that code follows DDPM's chain, and the lower bound of DiT's variance joins the denoising loss.
"""

import dataclasses
import functools
import math

import original_networks as original
import torch
import torch_sit
from original_lightning_step import recording_norm
from parity import randomise
from torch.distributions import Normal, kl_divergence

from repae_jax.models.backbones.dit import DiT
from repae_jax.models.conditioning.class_label import ClassLabel
from repae_jax.models.projectors import MLP
from repae_jax.training.noise import Draws

BACKBONE = DiT(
    latent_size=original.LATENT_SIZE,
    latent_channels=original.LATENT_CHANNELS,
    conditioner=ClassLabel(original.NUM_CLASSES),
    teacher_dims=original.TEACHER_DIMS,
    projector=MLP(original.SIT["projector_dim"]),
    **{name: value for name, value in original.SIT.items() if name != "projector_dim"},
)
ALPHA_BAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


def on_the_chain(draws: Draws) -> Draws:
    """Draws whose times are steps from 1 to 999, at which the bound is a divergence."""
    return dataclasses.replace(draws, time=(1 + (draws.time * 999) // 1).astype("float32") / 1000)


def make_model(seed: int) -> torch.nn.Module:
    """The original's small SiT with a variance at its end, all weights random."""
    model = original.make_sit(seed)
    features = original.SIT["patch_size"] ** 2 * 2 * original.LATENT_CHANNELS
    model.final_layer = randomise(
        torch_sit.FinalLayer(original.SIT["hidden_size"], features), seed + 1
    )
    model.out_channels = 2 * original.LATENT_CHANNELS
    # Classes in place of instances' methods, since the loop copies the model.
    model.__class__, model.t_embedder.__class__ = _classes()
    model.bn.__class__ = recording_norm()
    return model


def _alpha_bar(t):
    return ALPHA_BAR[(t * 1000).round().long()]


@functools.cache
def _classes():
    sit = original.modules().sit

    class Steps(sit.TimestepEmbedder):
        def forward(self, t):
            return super().forward((t * 1000).round())

    class Model(sit.SiT):
        def interpolant(self, t, path_type=None):
            alpha_bar = _alpha_bar(t).float()
            return alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), 0.0, 1.0

        def unpatchify(self, x, patch_size=None):
            noise, self.variance = super().unpatchify(x, patch_size).chunk(2, dim=1)
            return noise

        def forward(self, x, y, zs, loss_kwargs, time_input=None, noises=None):
            out = super().forward(x, y, zs, loss_kwargs, time_input, noises)
            normalized, self.bn.last = self.bn.last, None
            if not loss_kwargs["align_only"]:
                bound = _bound(normalized, out, self.variance)
                out["denoising_loss"] = out["denoising_loss"] + sit.mean_flat(bound)
            self.variance = None
            return out

    return Model, Steps


def _bound(x, out, variance):
    """KL(q(x_{t-1} | x_t, x) || p) in bits, by the formulas of arXiv 2006.11239, section 2."""
    x, noise, predicted = x.detach(), out["noises"], out["model_output"].detach()
    alpha_bar, before = _alpha_bar(out["time_input"]), _alpha_bar(out["time_input"] - 1e-3)
    beta = 1 - alpha_bar / before
    noisy = alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * noise
    data = (noisy - (1 - alpha_bar).sqrt() * predicted) / alpha_bar.sqrt()
    spread = beta * (1 - before) / (1 - alpha_bar)

    def mean(data):
        kept = before.sqrt() * beta * data + (1 - before) * (1 - beta).sqrt() * noisy
        return kept / (1 - alpha_bar)

    share = (variance + 1) / 2
    learned = (share * beta.log() + (1 - share) * spread.log()).mul(0.5).exp()
    true = Normal(mean(x), spread.sqrt().expand_as(noisy))
    return (kl_divergence(true, Normal(mean(data), learned)) / math.log(2)).float()
