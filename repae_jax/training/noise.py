"""The random draws of a training step."""

import flax.struct
import jax

from repae_jax.objectives.times import UNIFORM, Times


@flax.struct.dataclass
class Draws:
    """The random draws of one step as data, so that tests and resumed runs can repeat them."""

    posterior_noise: jax.Array  # (B, h, w, c) standard normal, z = mean + std * noise
    time: jax.Array  # (B,) in [0, 1]
    noise: jax.Array  # (B, h, w, c) standard normal, the interpolant at t = 1
    condition_drop: jax.Array  # (B,) bool, True where the null condition replaces the condition


def sample_draws(
    key: jax.Array,
    batch_size: int,
    latent_shape: tuple[int, int, int],
    *,
    interpolant: str = "linear",
    times: Times = UNIFORM,
    condition_drop: float = 0.1,
) -> Draws:
    """Sample the random draws for a batch of latents.

    Args:
      key: a JAX key for this step alone, e.g. `fold_in(run_key, step)`.
      batch_size: B, the global batch.
      latent_shape: (h, w, c).
      interpolant: "linear" or "cosine"; lognormal times depend on it.
      times: the distribution of the times.
      condition_drop: probability that a condition is dropped, in [0, 1].
    """
    posterior_key, time_key, noise_key, drop_key = jax.random.split(key, 4)
    shape = (batch_size, *latent_shape)
    return Draws(
        posterior_noise=jax.random.normal(posterior_key, shape),
        time=times.sample(time_key, batch_size, interpolant),
        noise=jax.random.normal(noise_key, shape),
        condition_drop=jax.random.bernoulli(drop_key, condition_drop, (batch_size,)),
    )
