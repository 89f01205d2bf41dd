"""The loop that trains a small network: AdamW, a cosine schedule, a progress bar."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
import optax

from repae_jax.utils.finite import NotFinite


class Recipe(Protocol):
    """How long and how fast a network is trained.

    Attributes:
      steps: optimizer steps; the first tenth warms up.
      learning_rate: the highest rate of the schedule.
      weight_decay: AdamW's decoupled weight decay.
    """

    steps: int
    learning_rate: float
    weight_decay: float


Loss = Callable[[Any, Mapping[str, jax.Array], jax.Array], jax.Array]


def fit(
    params: Any,
    loss: Loss,
    batches: Iterator[Mapping[str, np.ndarray]],
    key: jax.Array,
    recipe: Recipe,
    *,
    name: str,
    progress: bool = True,
) -> Any:
    """Minimize a loss with AdamW and a cosine schedule; returns the parameters.

    Args:
      params: initial parameters.
      loss: (parameters, batch, random key of the step) -> the batch's mean loss.
      batches: at least `recipe.steps` batches.
      key: the key from which every step derives its own.
      recipe: steps and rates.
      name: the network's name, for the progress bar and errors.
      progress: show a bar.

    Raises:
      NotFinite: the training diverged.
    """
    from tqdm import tqdm

    steps, highest = recipe.steps, recipe.learning_rate
    rate = optax.warmup_cosine_decay_schedule(0.0, highest, steps // 10, steps)
    optimizer = optax.adamw(rate, weight_decay=recipe.weight_decay)

    @jax.jit
    def step(params, opt_state, batch, index):
        own = jax.random.fold_in(key, index)
        value, grads = jax.value_and_grad(loss)(params, batch, own)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    opt_state = optimizer.init(params)
    bar = tqdm(range(steps), desc=name, unit="step", disable=not progress)
    for index in bar:
        params, opt_state, value = step(params, opt_state, next(batches), index)
        if index % 20 == 0:
            bar.set_postfix(loss=f"{float(value):.3f}")
    params = jax.device_get(params)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise NotFinite(
            f"the {name} diverged: its weights are NaN or infinite after {steps} steps with "
            f"the learning rate {highest}; lower it"
        )
    return params
