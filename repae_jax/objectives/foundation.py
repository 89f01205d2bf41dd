"""VF loss: latents as a frozen vision encoder sees the images (VA-VAE, arXiv 2501.01423, sec. 3.2).

Its two parts compare the latents, projected to the encoder's width, with the encoder's tokens at
the same positions: their similarities to each other, and each pair's direction.
"""

import jax
import jax.numpy as jnp

from repae_jax.objectives.alignment import unit


def foundation_loss(
    projected: jax.Array,
    tokens: jax.Array,
    *,
    distance_margin: float,
    cosine_margin: float,
) -> tuple[jax.Array, jax.Array]:
    """The marginal distance-matrix loss and the marginal cosine loss (equations 5 and 4).

    Args:
      projected: projected latents (B, N, D).
      tokens: tokens of the frozen encoder (B, N, D).
      distance_margin: m_2; differences of similarities below it count as 0.
      cosine_margin: m_1; cosines above 1 - m_1 count as 1 - m_1.

    Returns:
      (distance, cosine), scalars: the mean over images and pairs of positions, each position with
      itself among them, of relu(|cos(z_i, z_j) - cos(f_i, f_j)| - m_2), and the mean over images
      and positions of relu(1 - m_1 - cos(z_i, f_i)).

    Raises:
      ValueError: the shapes differ.
    """
    if projected.shape != tokens.shape:
        raise ValueError(
            f"projected latents {projected.shape} and the encoder's tokens {tokens.shape} differ: "
            "the latents' grid and the encoder's must have the same number of positions"
        )
    similarities = [jnp.einsum("bid,bjd->bij", u, u) for u in (unit(projected), unit(tokens))]
    differences = jnp.abs(similarities[0] - similarities[1])
    distance = jax.nn.relu(differences - distance_margin).mean()
    # PyTorch's cosine_similarity keeps norms from 1e-8, its normalize from 1e-12.
    cosines = jnp.sum(unit(projected, 1e-8) * unit(tokens, 1e-8), axis=-1)
    return distance, jax.nn.relu(1.0 - cosine_margin - cosines).mean()
