"""ODE and SDE samplers: from noise at t = 1 to latents at t = 0 along the learned velocity.

One loop body runs the table of every method (steps.py). The program holds one loop for each stretch
of steps with or without guidance: at most three copies of the model for any number of steps, and
only guided steps pay for guidance.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.errors import UserError
from repae_jax.models.conditioning.base import full_like
from repae_jax.objectives.interpolant import INTERPOLANTS, Interpolant, score_from_velocity
from repae_jax.sampling import chain
from repae_jax.sampling.sampler import (
    Sampler,
    check_class_token_guidance,
    check_guidance_channels,
)
from repae_jax.sampling.steps import Evaluations, evaluations, guided_rows, segments
from repae_jax.utils.finite import finite_rows

Tree = Any
# The latents (B, h, w, c), or the pair of latents and class token (B, D) of a backbone that
# denoises both.
State = jax.Array | tuple[jax.Array, jax.Array]
Velocity = Callable[[State, jax.Array, Tree], State]
StepNoise = Callable[[jax.Array], State]


def sample(
    sampler: Sampler,
    velocity: Velocity,
    noise: State,
    condition: Tree,
    *,
    null: Tree | None = None,
    step_noise: StepNoise | None = None,
) -> State:
    """Sample latents (B, h, w, c) float32 at t = 0; see `sample_kept` for the arguments."""
    return sample_watched(sampler, velocity, noise, condition, null=null, step_noise=step_noise)[0]


def sample_watched(
    sampler: Sampler,
    velocity: Velocity,
    noise: State,
    condition: Tree,
    *,
    null: Tree | None = None,
    step_noise: StepNoise | None = None,
) -> tuple[State, jax.Array]:
    """The latents and the faults of `sample_kept`."""
    return sample_kept(sampler, velocity, noise, condition, null=null, step_noise=step_noise)[:2]


def sample_kept(
    sampler: Sampler,
    velocity: Velocity,
    noise: State,
    condition: Tree,
    *,
    null: Tree | None = None,
    step_noise: StepNoise | None = None,
    kept: Sequence[int] = (),
) -> tuple[State, jax.Array, State | None]:
    """Sample latents (B, h, w, c) float32 at t = 0 from `noise` (B, h, w, c) at t = 1.

    Call it under `jax.jit` (with the sampler static, and the parameters that `velocity` closes
    over as arguments): the result is one program whose steps run in `lax.scan`s.

    The state is float32 with compensated (Kahan) summation, where the original's is float64: the
    loop carries the rounding error of each addition, so the total error does not grow with the
    steps.

    Args:
      sampler: the method and its options.
      velocity: `velocity(x, t, condition)` maps (N, h, w, c), (N,) float32 in [0, 1] and a tree of
        arrays (N, ...), such as {"label": (N,) int32}, to (N, h, w, c) of any float type; for a
        chain to the noise, or to the noise and its variance fraction (N, h, w, 2 c). N is B;
        in guided steps with a nonzero scale it is 2 B, where each image appears twice, once with
        its condition and once with `null`.
      noise: standard normal; the sampler scales it. If it is a pair of latents and class token, so
        are x, the velocity, the steps' noise and the result.
      condition: a tree of arrays (B, ...).
      null: the null condition of one image; guidance needs it.
      step_noise: `step_noise(i)` is the standard normal noise (B, h, w, c) of step i, a traced
        int32; the SDE needs it.
      kept: K numbers of steps, 1 to `sampler.steps`, in ascending order.

    Returns:
      The latents; their faults (B,) int32: the step, from 1 up, that first made an image's latents
      NaN or infinite, or 0; and the states (K, B, ...) after the steps `kept`, None without any.

    Raises:
      UserError: guidance is on and `null` is None, the SDE has no step noise, or the sampler guides
        more channels than latents have, or a class token that the noise lacks.
    """
    if sampler.guided and null is None:
        raise UserError(
            f"guidance_scale is {sampler.guidance_scale} but null is None: "
            "guide a model that was trained with dropped conditions, or use a scale of 1"
        )
    if sampler.stochastic and step_noise is None:
        raise UserError(f"step_noise is None: {sampler.method} needs the noise of every step")
    noise = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), noise)
    check_guidance_channels(sampler, _latents(noise).shape[-1])
    check_class_token_guidance(sampler, len(jax.tree.leaves(noise)) > 1)
    condition = jax.tree.map(jnp.asarray, condition)
    drifts = {
        False: functools.partial(_drift, sampler, velocity, condition=condition),
        True: functools.partial(_guided_drift, sampler, velocity, condition=condition, null=null),
    }
    if sampler.of_chain:
        return _sample_chain(sampler, drifts, noise, step_noise, kept)
    table, guided = evaluations(sampler)
    x = jax.tree.map(lambda leaf: sampler.noise_scale * leaf, noise)
    none = jax.tree.map(jnp.zeros_like, x)
    carry = _Carry(x, none, x, none, jnp.zeros(len(_latents(x)), jnp.int32))
    trail = _Trail(table.step, kept)
    for segment in segments(guided):
        advance = functools.partial(
            _advance,
            drifts[bool(guided[segment.start])],
            step_noise if sampler.stochastic else None,
        )
        carry = trail.scan(advance, carry, table, segment)
    return carry.x, carry.fault, trail.states


def _latents(state):
    return jax.tree.leaves(state)[0]


def _sample_chain(sampler, drifts, x, step_noise, kept):
    """`sample_kept` for a chain."""
    table = chain.chain_rows(sampler.method, sampler.steps)
    guided = guided_rows(sampler, table.time.astype(np.float64))
    noise_of_step = step_noise if sampler.stochastic else None

    def step(carry, row, drift_at):
        x, fault = carry
        x = chain.advance(drift_at, noise_of_step, x, row)
        return _ChainCarry(x, jnp.where((fault > 0) | _finite(x), fault, row.step + 1))

    carry, trail = _ChainCarry(x, jnp.zeros(x.shape[0], jnp.int32)), _Trail(table.step, kept)
    for segment in segments(guided):
        advance = functools.partial(step, drift_at=drifts[bool(guided[segment.start])])
        carry = trail.scan(advance, carry, table, segment)
    return carry.x, carry.fault, trail.states


class _ChainCarry(NamedTuple):
    x: State
    fault: jax.Array


class _Trail:
    """The loops over a table of evaluations, and the states after some of its steps.

    Attributes:
      states: a tree of (K, ...), one for each kept step; None without any.
    """

    def __init__(self, step: np.ndarray, kept: Sequence[int]):
        last = np.searchsorted(step, np.asarray(kept, int), side="left") - 1  # rows that end them
        self._place = np.full(len(step), len(kept), np.int32)  # K: not kept
        self._place[last] = np.arange(len(kept))
        self._count = len(kept)
        self.states: State | None = None

    def scan(self, advance, carry, table, segment):
        """Run the rows of a segment; `advance(carry, row)` returns the next carry."""
        rows = jax.tree.map(lambda column: jnp.asarray(column[segment]), table)
        if not self._count:
            return jax.lax.scan(lambda carry, row: (advance(carry, row), None), carry, rows)[0]
        if self.states is None:
            self.states = jax.tree.map(
                lambda leaf: jnp.zeros((self._count, *leaf.shape), leaf.dtype), carry.x
            )

        def keep(both, row_and_place):
            (carry, states), (row, place) = both, row_and_place
            carry = advance(carry, row)
            states = jax.tree.map(
                lambda all_, x: all_.at[place].set(x, mode="drop"), states, carry.x
            )
            return (carry, states), None

        places = jnp.asarray(self._place[segment])
        (carry, self.states), _ = jax.lax.scan(keep, (carry, self.states), (rows, places))
        return carry


class _Carry(NamedTuple):
    """What the loop carries from one evaluation to the next; all but `fault` are States in float32.

    `residue` is the accumulated rounding error of `x`: x - residue is the exact state.
    `fault` is (B,) int32: the step, from 1 up, that first made x NaN or infinite, or 0.
    """

    x: State
    residue: State
    query: State
    drift: State
    fault: jax.Array


def _advance(drift_at, step_noise, carry: _Carry, row: Evaluations) -> _Carry:
    """Evaluate the drift once and update the state by the row's weights, with Kahan summation."""
    drift = drift_at(carry.query, row.time)
    noise = None if step_noise is None else step_noise(row.step)

    def add(x, residue, drift, previous, *noise):
        move = row.weight * drift + row.previous_weight * previous
        for values in noise:
            move = move + row.noise_scale * values
        move = move - residue
        after = x + move
        residue = (after - x) - move
        return after, residue, after + (row.lookahead * drift - residue)

    parts = (carry.x, carry.residue, drift, carry.drift, *([] if noise is None else [noise]))
    added = [add(*leaves) for leaves in zip(*map(jax.tree.leaves, parts), strict=True)]
    structure = jax.tree.structure(carry.x)
    x, residue, query = (structure.unflatten(leaves) for leaves in zip(*added, strict=True))
    fault = jnp.where((carry.fault > 0) | _finite(x), carry.fault, row.step + 1)
    return _Carry(x, residue, query, drift, fault)


def _finite(state):
    """Which images have finite values alone, (B,) bool."""
    return functools.reduce(operator.and_, map(finite_rows, jax.tree.leaves(state)))


def _drift(
    sampler: Sampler, velocity: Velocity, x: State, time: jax.Array, *, condition: Tree
) -> State:
    """The drift at `x` (N, ...): the velocity, for the SDE minus t times the score.

    The reverse SDE with diffusion w_t is dx = (v - w_t/2 score) dt + sqrt(w_t) dW (arXiv
    2401.08740, section 2), here with w_t = 2 t. The score is computed at the integrator's float32
    state, which the model itself may round to another type.
    """
    t = jnp.full((len(_latents(x)),), time, jnp.float32)
    v = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), velocity(x, t, condition))
    if not sampler.stochastic or sampler.of_chain:
        return v
    interpolant: Interpolant = INTERPOLANTS[sampler.interpolant]
    return jax.tree.map(lambda v, x: v - time * score_from_velocity(interpolant, v, x, t), v, x)


def _guided_drift(
    sampler: Sampler,
    velocity: Velocity,
    x: State,
    time: jax.Array,
    *,
    condition: Tree,
    null: Tree,
) -> State:
    """The guided drift uncond + scale (cond - uncond), from one batch of twice the size.

    The two copies of an image are adjacent, (B, ...) -> (B, 2, ...) -> (2 B, ...), so that each
    device doubles its own shard of the batch without communication. Where all scales are 0, the
    unconditional velocity suffices.
    """
    if sampler.unconditional and not sampler.of_chain:
        return _drift(sampler, velocity, x, time, condition=full_like(condition, null))

    def beside(values, nothing):
        return jnp.stack([values, nothing], axis=1).reshape(-1, *values.shape[1:])

    both = jax.tree.map(beside, condition, full_like(condition, null))
    twice = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), x)
    drift = _drift(sampler, velocity, twice, time, condition=both)
    (latents, *class_tokens), structure = jax.tree.flatten(drift)
    channels = sampler.guidance_channels or _latents(x).shape[-1]
    of_class = sampler.class_token_guidance or sampler.guidance_scale
    guided = [
        _follow(latents, sampler.guidance_scale, channels),
        *(_follow(token, of_class, token.shape[-1]) for token in class_tokens),
    ]
    return structure.unflatten(guided)


def _follow(drift, scale, channels):
    """uncond + scale (cond - uncond) in the first channels, cond in the others."""
    drift = drift.reshape(-1, 2, *drift.shape[1:])
    cond, uncond = drift[:, 0], drift[:, 1]
    guided = uncond + scale * (cond - uncond)
    if channels == drift.shape[-1]:
        return guided
    return jnp.where(jnp.arange(drift.shape[-1]) < channels, guided, cond)
