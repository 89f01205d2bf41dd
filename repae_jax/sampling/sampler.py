"""The options of a sampler: its method, steps and guidance."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from repae_jax.errors import UserError
from repae_jax.objectives.objective import check_noise_scale
from repae_jax.objectives.paths import PATHS
from repae_jax.objectives.times import check_shift
from repae_jax.sampling import chain

METHODS = ("euler", "heun", "euler-maruyama")
RULES = ("step", "evaluation")
MOST_STEPS = 100_000


@dataclass(frozen=True)
class Sampler:
    """The integration method and its options; immutable, hashable, and checked when made.

    Classifier-free guidance follows uncond + guidance_scale (cond - uncond) while
    guidance_low <= t <= guidance_high (see `guidance_rule`), and the conditional velocity elsewhere
    ("guidance interval", arXiv 2404.07724; t = 1 is noise). A scale of 1 turns guidance off, a
    scale of 0 follows the unconditional velocity, and a scale between 0 and 1 interpolates.

    Attributes:
      method: "euler" or "heun" (probability-flow ODE) or "euler-maruyama" (reverse SDE); for a
        model of the noise "ddpm" (ancestral sampling) or "ddim" (see chain.py).
      steps: integration steps, 1 (2 for the SDE) to `MOST_STEPS`. Heun evaluates the velocity
        2 steps - 1 times, the other methods once per step. A chain has 1 to 1,000.
      interpolant: the path that the model was trained with, a key of `PATHS`.
      guidance_scale: finite, from 0 up.
      guidance_low, guidance_high: the guidance interval, 0 <= low <= high <= 1.
      guidance_channels: guide only the first channels of the latents, as DiT's and LightningDiT's
        code does with 3; 0 guides all.
      guidance_rule: what the interval decides about. "step": all evaluations of a step, by its
        first time (REPA). "evaluation": each evaluation by its own time, and the interval is open,
        except at 0 and 1 (JiT).
      noise_scale: the standard deviation of the noise at t = 1, see `Objective`; the SDE and chains
        have 1.
      shift: multiplies the odds t / (1 - t) of the steps' times: above 1, more steps near noise
        (see `objectives.times.shift_time`). The guidance interval is one of shifted times.
      last_time: the time before the shift at which the ODE ends, as RAE's code does with 0.001; the
        latents keep the noise of that time.
      smallest_time: the time before the shift of the ODE's last evaluation, from which a step leads
        to 0 (diffusers' flow matching, the shifted 1 / 1000); 0 for even steps. It takes 2 steps.
      class_token_guidance: the guidance scale of a class token that the model denoises beside the
        latents (REG), where the latents are guided; 1 for the conditional velocity, 0 for
        guidance_scale.

    Raises:
      UserError: an unknown method or interpolant, or a value out of range.
    """

    method: Literal["euler", "heun", "euler-maruyama", "ddpm", "ddim"]
    steps: int
    interpolant: Literal["linear", "cosine", "ddpm"]
    guidance_scale: float = 1.0
    guidance_low: float = 0.0
    guidance_high: float = 1.0
    guidance_channels: int = 0
    guidance_rule: Literal["step", "evaluation"] = "step"
    noise_scale: float = 1.0
    shift: float = 1.0
    last_time: float = 0.0
    smallest_time: float = 0.0
    class_token_guidance: float = 0.0

    def __post_init__(self):
        if self.interpolant not in PATHS:
            choices = ", ".join(PATHS)
            raise UserError(f"interpolant is {self.interpolant!r}: choose one of {choices}")
        methods = chain.METHODS if self.of_chain else METHODS
        if self.method not in methods:
            raise UserError(
                f"method is {self.method!r}: choose one of {', '.join(methods)}, which sample a "
                f"model of the {PATHS[self.interpolant].predicts}"
            )
        fewest = 2 if self.method == "euler-maruyama" else 1
        whole = isinstance(self.steps, int | np.integer)
        if not whole or not fewest <= self.steps <= MOST_STEPS:
            raise UserError(
                f"steps is {self.steps!r}: {self.method} takes a whole number from {fewest} to "
                f"{MOST_STEPS}"
            )
        if self.of_chain:
            chain.chain_steps(self.method, self.steps)
            if self.shift != 1.0:
                raise UserError(f"shift is {self.shift}: {self.method} has no shift, use 1")
        if not 0.0 <= self.guidance_scale < np.inf:
            raise UserError(
                f"guidance_scale is {self.guidance_scale}: give a finite number from 0 up (0 is "
                "unconditional, 1 no guidance)"
            )
        if not 0.0 <= self.guidance_low <= self.guidance_high <= 1.0:
            raise UserError(
                f"the guidance interval is [{self.guidance_low}, {self.guidance_high}]: "
                "give 0 <= guidance_low <= guidance_high <= 1"
            )
        if not 0.0 <= self.class_token_guidance < np.inf:
            raise UserError(
                f"class_token_guidance is {self.class_token_guidance}: give a finite number from 0 "
                "up (0 is that of the latents, 1 no guidance)"
            )
        if self.guidance_rule not in RULES:
            raise UserError(
                f"guidance_rule is {self.guidance_rule!r}: use {' or '.join(map(repr, RULES))}"
            )
        if self.guidance_channels < 0:
            raise UserError(
                f"guidance_channels is {self.guidance_channels}: give a number of channels, or 0 "
                "for all"
            )
        check_shift(self.shift, "shift")
        if not 0.0 <= self.last_time < 1.0:
            raise UserError(f"last_time is {self.last_time}: give a time from 0 to below 1")
        if self.last_time and self.method not in ("euler", "heun"):
            raise UserError(
                f"last_time is {self.last_time}: {self.method} ends at 0, so leave it at 0"
            )
        self._check_smallest_time()
        check_noise_scale(self.noise_scale, self.interpolant, "noise_scale")
        if self.noise_scale != 1.0 and self.stochastic:
            raise UserError(
                f"noise_scale is {self.noise_scale}, but {self.method} adds unit noise: use "
                "'euler' or 'heun'"
            )

    def _check_smallest_time(self):
        smallest = self.smallest_time
        if not 0.0 <= smallest < 1.0:
            raise UserError(f"smallest_time is {smallest}: give a time from 0 to below 1")
        if not smallest:
            return
        if self.method not in ("euler", "heun") or self.last_time or self.steps < 2:
            raise UserError(
                f"smallest_time is {smallest}, which takes 'euler' or 'heun' with 2 steps or more "
                f"and last_time 0, but method is {self.method!r}, steps is {self.steps} and "
                f"last_time is {self.last_time}"
            )

    @property
    def stochastic(self) -> bool:
        """Whether the steps add noise."""
        return self.method in ("euler-maruyama", "ddpm")

    @property
    def of_chain(self) -> bool:
        """Whether the sampler runs through a discrete chain."""
        return PATHS[self.interpolant].predicts == "noise"

    @property
    def guided(self) -> bool:
        """Whether any step may need the unconditional velocity."""
        return self.guidance_scale != 1.0

    @property
    def unconditional(self) -> bool:
        """Whether guided steps follow the unconditional velocity alone."""
        scales = (self.guidance_scale, self.class_token_guidance)
        return scales == (0.0, 0.0) and not self.guidance_channels


def check_null_class(sampler: Sampler, drop: float) -> None:
    """Raise UserError if a sampler guides a model whose conditions were never dropped in training.

    `drop` is the probability with which training dropped conditions, 0 to 1.
    """
    if sampler.guided and drop == 0:
        raise UserError(
            f"the guidance scale is {sampler.guidance_scale}, but a backbone trained with "
            "config.condition.drop 0 has no null condition to guide away from: use 1"
        )


def check_guidance_channels(sampler: Sampler, channels: int) -> None:
    """Raise UserError if a sampler guides more channels than latents have."""
    if sampler.guidance_channels > channels:
        raise UserError(
            f"guidance_channels is {sampler.guidance_channels}, but the latents have {channels} "
            "channels: give fewer, or 0 for all"
        )


def check_class_token_guidance(sampler: Sampler, class_token: bool) -> None:
    """Raise UserError if a sampler guides the class token of a model that denoises none."""
    if sampler.class_token_guidance and not class_token:
        raise UserError(
            f"class_token_guidance is {sampler.class_token_guidance}, but the backbone denoises no "
            "class token: use 0, or a backbone with class_token_dim"
        )
