"""ODE and SDE samplers: from noise at t = 1 to latents at t = 0 along the learned velocity.

A method is a table with one row per velocity evaluation (`Evaluations`), computed ahead in float64.
One loop body runs every table: Euler, Heun and Euler-Maruyama differ only in the table's numbers.
The program holds one loop for each stretch of steps with or without guidance: at most three copies
of the model for any number of steps, and only guided steps pay for guidance.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.errors import UserError
from repae_jax.models.conditioning.base import full_like
from repae_jax.objectives.interpolant import INTERPOLANTS, Interpolant, score_from_velocity
from repae_jax.objectives.objective import check_noise_scale
from repae_jax.objectives.paths import PATHS
from repae_jax.objectives.times import check_shift, shift_time
from repae_jax.sampling import chain
from repae_jax.utils.finite import finite_rows

Tree = Any
Velocity = Callable[[jax.Array, jax.Array, Tree], jax.Array]
StepNoise = Callable[[jax.Array], jax.Array]

METHODS = ("euler", "heun", "euler-maruyama")
RULES = ("step", "evaluation")
MOST_STEPS = 100_000
LAST_SDE_TIME = 0.04  # The score grows as 1/t; the last step, from here to 0, adds no noise.


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
        check_noise_scale(self.noise_scale, self.interpolant, "noise_scale")
        if self.noise_scale != 1.0 and self.stochastic:
            raise UserError(
                f"noise_scale is {self.noise_scale}, but {self.method} adds unit noise: use "
                "'euler' or 'heun'"
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


def sample(
    sampler: Sampler,
    velocity: Velocity,
    noise: jax.Array,
    condition: Tree,
    *,
    null: Tree | None = None,
    step_noise: StepNoise | None = None,
) -> jax.Array:
    """Sample latents (B, h, w, c) float32 at t = 0; see `sample_watched` for the arguments."""
    return sample_watched(sampler, velocity, noise, condition, null=null, step_noise=step_noise)[0]


def sample_watched(
    sampler: Sampler,
    velocity: Velocity,
    noise: jax.Array,
    condition: Tree,
    *,
    null: Tree | None = None,
    step_noise: StepNoise | None = None,
) -> tuple[jax.Array, jax.Array]:
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
      noise: standard normal; the sampler scales it.
      condition: a tree of arrays (B, ...).
      null: the null condition of one image; guidance needs it.
      step_noise: `step_noise(i)` is the standard normal noise (B, h, w, c) of step i, a traced
        int32; the SDE needs it.

    Returns:
      The latents, and their faults (B,) int32: the step, from 1 up, that first made an image's
      latents NaN or infinite, or 0.

    Raises:
      UserError: guidance is on and `null` is None, or the SDE has no step noise.
    """
    if sampler.guided and null is None:
        raise UserError(
            f"guidance_scale is {sampler.guidance_scale} but null is None: "
            "guide a model that was trained with dropped conditions, or use a scale of 1"
        )
    if sampler.stochastic and step_noise is None:
        raise UserError(f"step_noise is None: {sampler.method} needs the noise of every step")
    check_guidance_channels(sampler, noise.shape[-1])
    condition = jax.tree.map(jnp.asarray, condition)
    drifts = {
        False: functools.partial(_drift, sampler, velocity, condition=condition),
        True: functools.partial(_guided_drift, sampler, velocity, condition=condition, null=null),
    }
    if sampler.of_chain:
        return _sample_chain(sampler, drifts, noise.astype(jnp.float32), step_noise)
    table, guided = evaluations(sampler)
    x = sampler.noise_scale * noise.astype(jnp.float32)
    fault = jnp.zeros(x.shape[0], jnp.int32)
    state = _State(x, jnp.zeros_like(x), x, jnp.zeros_like(x), fault)
    for segment in _segments(guided):
        advance = functools.partial(
            _advance,
            drifts[bool(guided[segment.start])],
            step_noise if sampler.stochastic else None,
        )
        rows = jax.tree.map(lambda column, segment=segment: jnp.asarray(column[segment]), table)
        state, _ = jax.lax.scan(advance, state, rows)
    return state.x, state.fault


def _sample_chain(sampler, drifts, x, step_noise):
    """`sample_watched` for a chain: latents and faults."""
    table = chain.chain_rows(sampler.method, sampler.steps)
    guided = _guided(sampler, table.time.astype(np.float64))
    noise_of_step = step_noise if sampler.stochastic else None

    def step(carry, row, drift_at):
        x, fault = carry
        x = chain.advance(drift_at, noise_of_step, x, row)
        return (x, jnp.where((fault > 0) | finite_rows(x), fault, row.step + 1)), None

    carry = (x, jnp.zeros(x.shape[0], jnp.int32))
    for segment in _segments(guided):
        rows = jax.tree.map(lambda column, segment=segment: jnp.asarray(column[segment]), table)
        advance = functools.partial(step, drift_at=drifts[bool(guided[segment.start])])
        carry, _ = jax.lax.scan(advance, carry, rows)
    return carry


def _guided(sampler, times):
    """Which of the steps that begin, or evaluations that lie, at these times are guided."""
    low, high = sampler.guidance_low, sampler.guidance_high
    if sampler.guidance_rule == "evaluation":
        inside = ((low < times) | (low == 0.0)) & ((times < high) | (high == 1.0))
    else:
        inside = (low <= times) & (times <= high)
    return inside & sampler.guided


class Evaluations(NamedTuple):
    """The table of a method: one row for each of its K velocity evaluations; columns are (K,).

    Evaluation k computes the drift d_k at the query point and time t_k; then

        x     += weight d_k + previous_weight d_{k-1} + noise_scale N(0, I)
        query  = x + lookahead d_k
    """

    step: np.ndarray
    time: np.ndarray
    weight: np.ndarray
    previous_weight: np.ndarray
    lookahead: np.ndarray
    noise_scale: np.ndarray


def evaluations(sampler: Sampler) -> tuple[Evaluations, np.ndarray]:
    """The sampler's table (`step` int32, the rest float32) and a mask of guided rows, bool (K,)."""
    times = time_grid(sampler)
    step, time, dt = np.arange(sampler.steps), times[:-1], np.diff(times)
    none = np.zeros_like(dt)
    table = Evaluations(step, time, dt, none, none, none)
    if sampler.stochastic:
        # x += drift dt + sqrt(2 t |dt|) N(0, I); the last step has no noise.
        scale = np.where(step < sampler.steps - 1, np.sqrt(2.0 * time * np.abs(dt)), 0.0)
        table = table._replace(noise_scale=scale)
    elif sampler.method == "heun":
        table = _heun(step, times)
    # By the rule "step", the time at which a Heun step starts decides for both of its evaluations.
    by_step = sampler.guidance_rule == "step"
    guided = _guided(sampler, times[table.step] if by_step else table.time)
    as_float32 = [column.astype(np.float32) for column in table[1:]]
    return Evaluations(table.step.astype(np.int32), *as_float32), guided


def _heun(step: np.ndarray, times: np.ndarray) -> Evaluations:
    """Heun's table. A step has two rows: query a full step ahead, then move by the mean drift.

    The last step, which arrives at t = 0, is a plain Euler step with one row.
    """
    dt = np.diff(times)
    first, second = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    table = Evaluations(
        step=np.repeat(step, 2),
        time=np.stack([times[:-1], times[1:]], axis=1).ravel(),
        weight=np.outer(dt / 2, second).ravel(),
        previous_weight=np.outer(dt / 2, second).ravel(),
        lookahead=np.outer(dt, first).ravel(),
        noise_scale=np.zeros(2 * len(dt)),
    )
    table = Evaluations(*(column[:-1] for column in table))
    table.weight[-1], table.lookahead[-1] = dt[-1], 0.0
    return table


def time_grid(sampler: Sampler) -> np.ndarray:
    """Times (steps + 1,) float64 from 1 to `last_time`, evenly spaced before the shift.

    The SDE's are evenly spaced from 1 to 0.04, and then 0.
    """
    if sampler.stochastic:
        times = np.append(_linspace(1.0, LAST_SDE_TIME, sampler.steps), 0.0)
    else:
        times = _linspace(1.0, sampler.last_time, sampler.steps + 1)
    return times if sampler.shift == 1.0 else shift_time(times, sampler.shift)


def _linspace(start: float, stop: float, count: int) -> np.ndarray:
    """Reproduce torch.linspace in float64 bit by bit: from both ends, each point rounded once.

    The last bit matters where a guidance bound is a point of the grid: the original compares the
    bound with the time as torch rounds it, which decides whether the step is guided. numpy's
    linspace rounds differently.
    """
    step = Fraction((stop - start) / (count - 1))
    points = [
        Fraction(start) + step * i if i < count // 2 else Fraction(stop) - step * (count - 1 - i)
        for i in range(count)
    ]
    return np.array([float(point) for point in points])


def _segments(guided: np.ndarray) -> list[slice]:
    """Maximal runs of equal values: at most three, since the guidance interval is contiguous."""
    cuts = np.flatnonzero(np.diff(guided)) + 1
    return [slice(a, b) for a, b in zip([0, *cuts], [*cuts, len(guided)], strict=True)]


class _State(NamedTuple):
    """The scan's carry from one evaluation to the next; arrays are (B, h, w, c) float32.

    `residue` is the accumulated rounding error of `x`: x - residue is the exact state.
    `fault` is (B,) int32: the step, from 1 up, that first made x NaN or infinite, or 0.
    """

    x: jax.Array
    residue: jax.Array
    query: jax.Array
    drift: jax.Array
    fault: jax.Array


def _advance(drift_at, step_noise, state: _State, row: Evaluations) -> tuple[_State, None]:
    """Evaluate the drift once and update the state by the row's weights, with Kahan summation."""
    drift = drift_at(state.query, row.time)
    move = row.weight * drift + row.previous_weight * state.drift
    if step_noise is not None:
        move = move + row.noise_scale * step_noise(row.step)
    move = move - state.residue
    x = state.x + move
    residue = (x - state.x) - move
    query = x + (row.lookahead * drift - residue)
    fault = jnp.where((state.fault > 0) | finite_rows(x), state.fault, row.step + 1)
    return _State(x, residue, query, drift, fault), None


def _drift(
    sampler: Sampler, velocity: Velocity, x: jax.Array, time: jax.Array, *, condition: Tree
) -> jax.Array:
    """The drift at `x` (N, h, w, c): the velocity, for the SDE minus t times the score.

    The reverse SDE with diffusion w_t is dx = (v - w_t/2 score) dt + sqrt(w_t) dW (arXiv
    2401.08740, section 2), here with w_t = 2 t. The score is computed at the integrator's float32
    state, which the model itself may round to another type.
    """
    t = jnp.full((x.shape[0],), time, jnp.float32)
    v = velocity(x, t, condition).astype(jnp.float32)
    if not sampler.stochastic or sampler.of_chain:
        return v
    interpolant: Interpolant = INTERPOLANTS[sampler.interpolant]
    return v - time * score_from_velocity(interpolant, v, x, t)


def _guided_drift(
    sampler: Sampler,
    velocity: Velocity,
    x: jax.Array,
    time: jax.Array,
    *,
    condition: Tree,
    null: Tree,
) -> jax.Array:
    """The guided drift uncond + scale (cond - uncond), from one batch of twice the size.

    The two copies of an image are adjacent, (B, ...) -> (B, 2, ...) -> (2 B, ...), so that each
    device doubles its own shard of the batch without communication. For a scale of 0 on all
    channels the unconditional velocity suffices.
    """
    if sampler.guidance_scale == 0.0 and not sampler.guidance_channels and not sampler.of_chain:
        return _drift(sampler, velocity, x, time, condition=full_like(condition, null))

    def beside(values, nothing):
        return jnp.stack([values, nothing], axis=1).reshape(-1, *values.shape[1:])

    both = jax.tree.map(beside, condition, full_like(condition, null))
    drift = _drift(sampler, velocity, jnp.repeat(x, 2, axis=0), time, condition=both)
    drift = drift.reshape(x.shape[0], 2, *drift.shape[1:])
    cond, uncond = drift[:, 0], drift[:, 1]
    guided = uncond + sampler.guidance_scale * (cond - uncond)
    channels = sampler.guidance_channels or x.shape[-1]
    if channels == drift.shape[-1]:
        return guided
    return jnp.where(jnp.arange(drift.shape[-1]) < channels, guided, cond)


def image_noise(key: jax.Array, indices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The initial standard normal noise (B, *shape) of the images with the given `indices` (B,).

    The noise depends on the key and the image's index alone, so image i is the same in every batch
    and on any number of devices. The same key may serve `step_noise`.

    Raises:
      UserError: the key's generator is another than threefry2x32, whose vectorized numbers are
        independent of the batch.
    """
    return _noise(key, indices, 0, shape)


def step_noise(key: jax.Array, indices: jax.Array, shape: tuple[int, ...]) -> StepNoise:
    """Make the function i -> standard normal noise (B, *shape) of step i, for `sample`.

    The noise depends on the key, the image's index and the step alone.

    Raises:
      UserError: the returned function raises it for a key of another generator than threefry2x32.
    """
    return lambda step: _noise(key, indices, step + 1, shape)


def _noise(key: jax.Array, indices: jax.Array, draw: jax.Array | int, shape) -> jax.Array:
    """Random draw number `draw` of each image's stream: 0 is the initial noise, i + 1 step i's."""
    if jax.random.key_impl(key) != "threefry2x32":
        # Under vmap, the other generators make one image's numbers depend on the rest of the batch.
        raise UserError(
            f"the key's generator is {jax.random.key_impl(key)}: "
            "make the key with jax.random.key(seed, impl='threefry2x32')"
        )

    def one(index):
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, index), draw), shape)

    return jax.vmap(one)(jnp.asarray(indices))
