"""The random draws of a training step."""

import flax.struct
import jax

from repae_jax.objectives.diffaug import sample_numbers
from repae_jax.objectives.times import UNIFORM, Times


@flax.struct.dataclass
class Draws:
    """The random draws of one step as data, so that tests and resumed runs can repeat them."""

    posterior_noise: jax.Array  # (B, h, w, c) standard normal, z = mean + std * noise
    time: jax.Array  # (B,) in [0, 1]
    noise: jax.Array  # (B, h, w, c) standard normal, the interpolant at t = 1
    condition_drop: jax.Array  # (B,) bool, True where the null condition replaces the condition
    class_noise: jax.Array | None = None  # (B, D), the noise of the class token (REG)
    prior_uniform: jax.Array | None = None  # (B,) in [0, 1), the times of LSGM's cross entropy
    # (B, 3, NUMBERS) uniform in [0, 1): the augmentation (see `diffaug.diff_augment`) of the
    # reconstruction in the adversarial term, then of that and of the image in the discriminator's
    # loss.
    augmentation: jax.Array | None = None


def sample_draws(
    key: jax.Array,
    batch_size: int,
    latent_shape: tuple[int, int, int],
    *,
    interpolant: str = "linear",
    times: Times = UNIFORM,
    condition_drop: float = 0.1,
    class_token_dim: int = 0,
    prior: bool = False,
    augment: bool = False,
) -> Draws:
    """Sample the random draws for a batch of latents.

    Args:
      key: a JAX key for this step alone, e.g. `fold_in(run_key, step)`.
      batch_size: B, the global batch.
      latent_shape: (h, w, c).
      interpolant: "linear" or "cosine"; lognormal times depend on it.
      times: the distribution of the times.
      condition_drop: probability that a condition is dropped, in [0, 1].
      class_token_dim: the width of the class token that the backbone denoises; 0 for none.
      prior: whether the tokenizer's loss has LSGM's cross entropy.
      augment: whether the discriminator's images are augmented.
    """
    posterior_key, time_key, noise_key, drop_key = jax.random.split(key, 4)
    shape, of_class = (batch_size, *latent_shape), (batch_size, class_token_dim)
    # Apart from the four above.
    class_key, prior_key, augment_key = (jax.random.fold_in(key, i) for i in (4, 5, 6))
    return Draws(
        posterior_noise=jax.random.normal(posterior_key, shape),
        time=times.sample(time_key, batch_size, interpolant),
        noise=jax.random.normal(noise_key, shape),
        condition_drop=jax.random.bernoulli(drop_key, condition_drop, (batch_size,)),
        class_noise=jax.random.normal(class_key, of_class) if class_token_dim else None,
        prior_uniform=jax.random.uniform(prior_key, (batch_size,)) if prior else None,
        augmentation=sample_numbers(augment_key, (batch_size, 3)) if augment else None,
    )
