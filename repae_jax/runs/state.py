"""The state of a run: the arrays that a step reads and writes."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

Tree = Any


@flax.struct.dataclass
class TrainState:
    """All arrays of a run. The networks with an optimizer state are the trained ones.

    Attributes:
      step: completed steps, int32 scalar.
      params: trainable parameters by network: "backbone" (heads included), "tokenizer",
        "discriminator".
      batch_stats: the mutable collection: "latent_norm" (mean, var), "discriminator" (running
        statistics, or vectors of power iterations), and the running means of LeCam under "lecam".
      opt_state: optimizer state of each trained network.
      ema: exponential moving average of the backbone's "params" and of the "latent_norm"
        statistics, with the averaged backbone's other collections, such as "constants" with a
        position table (in an imported run it may differ from the trained backbone's); and of the
        "tokenizer"'s parameters, if the run averages them.
      frozen: arrays that no step changes: the other collections of "backbone", "tokenizer" and
        "discriminator", if they have any, the "teachers" by name, "lpips", the "text_encoder", and
        the "null_condition" of captions.
    """

    step: jax.Array
    params: Mapping[str, Tree]
    batch_stats: Mapping[str, Tree]
    opt_state: Mapping[str, Tree]
    ema: Mapping[str, Tree]
    frozen: Mapping[str, Tree]


def create_state(
    params: Mapping[str, Tree],
    batch_stats: Mapping[str, Tree],
    frozen: Mapping[str, Tree],
    optimizers: Mapping[str, optax.GradientTransformation],
    *,
    average_tokenizer: bool = False,
) -> TrainState:
    """Make a state at step 0; the moving averages start as copies of the current values."""
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=dict(params),
        batch_stats=dict(batch_stats),
        opt_state={name: tx.init(params[name]) for name, tx in optimizers.items()},
        ema={"tokenizer": params["tokenizer"]} if average_tokenizer else {},
        frozen=dict(frozen),
    )
    return restart_average(state)


def restart_average(state: TrainState) -> TrainState:
    """Reset the moving averages to copies of the current values."""
    # Copies, because a donated buffer must not appear twice in the state.
    ema = {**averaged_variables(state), **state.frozen.get("backbone", {})}
    return state.replace(ema=jax.tree.map(jnp.copy, ema))


def tokenizer_variables(params: Mapping[str, Tree], frozen: Mapping[str, Tree]) -> dict[str, Tree]:
    """All collections of the tokenizer, from a state's fields `params` and `frozen`."""
    return {"params": params["tokenizer"], **frozen.get("tokenizer", {})}


def averaged_tokenizer(state: TrainState) -> dict[str, Tree]:
    """All collections of the tokenizer that a run gives: with its average, if it has one."""
    params = {"tokenizer": state.ema.get("tokenizer", state.params["tokenizer"])}
    return tokenizer_variables(params, state.frozen)


def discriminator_variables(state: TrainState) -> dict[str, Tree]:
    """All collections of the discriminator."""
    name = "discriminator"
    return {"params": state.params[name], "batch_stats": state.batch_stats[name]}


def without_heads(params: Mapping[str, Tree]) -> dict[str, Tree]:
    """A backbone's parameters, or their moments, without projection heads."""
    return {name: part for name, part in params.items() if not name.startswith("projectors_")}


def averaged_variables(state: TrainState) -> dict[str, Tree]:
    """The current values that the moving averages follow.

    They are those of the backbone and the latent statistics, and of a tokenizer that is averaged.
    """
    followed = {}
    if "backbone" in state.params:
        followed["params"] = state.params["backbone"]
        followed["latent_norm"] = state.batch_stats["latent_norm"]
    if "tokenizer" in state.ema:
        followed["tokenizer"] = state.params["tokenizer"]
    return followed
