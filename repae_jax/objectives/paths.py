"""The table of paths from data to noise; `config.objective.interpolant` names one of them."""

import jax

from repae_jax.models.backbones.base import velocity_from_data
from repae_jax.objectives.ddpm import DDPM
from repae_jax.objectives.interpolant import INTERPOLANTS, Interpolant, per_image

Path = Interpolant | DDPM

PATHS: dict[str, Path] = {**INTERPOLANTS, "ddpm": DDPM()}


def interpolate(
    path: Path, x: jax.Array, noise: jax.Array, t: jax.Array, *, least_time: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """The noisy latents x_t, and the target of the backbone's prediction.

    x_t = alpha(t) x + sigma(t) n, and for an interpolant v = alpha'(t) x + sigma'(t) n (arXiv
    2401.08740, section 2).

    Args:
      path: the path.
      x: latents (B, h, w, c).
      noise: standard normal (B, h, w, c).
      t: times (B,) in [0, 1].
      least_time: above 0, the target on the linear path is (x_t - x) / max(t, least_time), which is
        the velocity from that time on and shrinks to zero below it (JiT, arXiv 2511.13720).

    Returns:
      (x_t, target), each (B, h, w, c).
    """
    t = per_image(t, x)
    noisy = path.alpha(t) * x + path.sigma(t) * noise
    if least_time:
        return noisy, velocity_from_data(x, noisy, t, least_time)
    return noisy, path.target(x, noise, t)
