"""Samplers against textbook loops and closed solutions, and the programs that they compile to."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.extend.core import jaxprs_in_params
from jaxprs import equations
from velocities import CLASSES, NULL_LABEL, SHAPE, field, velocity

from repae_jax.sampling.integrate import sample, sample_kept
from repae_jax.sampling.noise import image_noise, step_noise
from repae_jax.sampling.sampler import METHODS, Sampler
from repae_jax.sampling.steps import evaluations, time_grid

BATCH = 4


def inputs(steps, seed=1):
    """Noise, labels, and the noise of every step, as float64 holds their float32 values."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(BATCH, *SHAPE)).astype(np.float32)
    step_noises = rng.normal(size=(steps, BATCH, *SHAPE)).astype(np.float32)
    return noise, rng.integers(0, CLASSES, BATCH), step_noises


@functools.partial(jax.jit, static_argnames=("sampler", "velocity"))
def run(sampler, noise, labels, step_noises, velocity=velocity):
    return sample(
        sampler,
        velocity,
        noise,
        labels,
        null=NULL_LABEL,
        step_noise=lambda i: step_noises[i],
    )


def reference(sampler, noise, labels, step_noises, *, every=False):
    """The three methods as textbook loops in float64, each evaluation guided on its own.

    With `every`, the states after all steps.
    """
    n = sampler.steps
    times = np.linspace(1, sampler.last_time, n + 1)
    if sampler.method == "euler-maruyama":
        times = np.append(1 - 0.96 * np.arange(n) / (n - 1), 0)
    times = sampler.shift * times / (1 - times + sampler.shift * times)

    def score(v, x, t):
        if sampler.interpolant == "linear":
            return -(x + (1 - t) * v) / t
        return -x - v / (np.pi / 2 * np.tan(np.pi / 2 * t))

    def one_drift(x, t, labels):
        v = field(x, np.full(len(x), t), labels, np)
        return v - t * score(v, x, t) if sampler.method == "euler-maruyama" else v

    def drift(x, t, guided_by):
        cond = one_drift(x, t, labels)
        low, high = sampler.guidance_low, sampler.guidance_high
        if sampler.guidance_rule == "evaluation":
            inside = (t > low or low == 0) and (t < high or high == 1)
        else:
            inside = low <= guided_by <= high
        if not inside:
            return cond
        uncond = one_drift(x, t, np.full(len(x), NULL_LABEL))
        guided = uncond + sampler.guidance_scale * (cond - uncond)
        some = sampler.guidance_channels or SHAPE[-1]
        return np.concatenate([guided[..., :some], cond[..., some:]], axis=-1)

    x = noise.astype(np.float64)
    states = []
    for i in range(n):
        t, dt, last = times[i], times[i + 1] - times[i], i == n - 1
        d = drift(x, t, t)
        if sampler.method == "heun" and not last:
            d = (d + drift(x + dt * d, times[i + 1], t)) / 2
        x = x + dt * d
        if sampler.method == "euler-maruyama" and not last:
            x = x + np.sqrt(2 * t) * np.sqrt(-dt) * step_noises[i]
        states.append(x)
    return np.stack(states) if every else x


def relative_error(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


def scans(jaxpr):
    """(length, sizes of the batches that the velocity sees) of each scan in a jaxpr, in order."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            body = list(equations(eqn.params["jaxpr"].jaxpr))
            batches = [e.outvars[0].aval.shape[0] for e in body if e.primitive.name == "tanh"]
            found.append((eqn.params["length"], batches))
        else:
            for inner in jaxprs_in_params(eqn.params):
                found += scans(inner)
    return found


def program(sampler):
    return jax.make_jaxpr(run, static_argnums=0)(sampler, *inputs(sampler.steps)).jaxpr


INTERVALS = {(0.0, 1.0): 1, (0.0, 0.55): 2, (0.45, 1.0): 2, (0.31, 0.77): 3, (0.501, 0.502): 1}


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize(
    ("method", "interpolant"),
    [
        ("euler", "linear"),
        ("heun", "linear"),
        ("euler-maruyama", "linear"),
        ("euler-maruyama", "cosine"),
    ],
)
def test_matches_the_textbook_loop(method, interpolant, interval):
    sampler = Sampler(method, 12, interpolant, 1.8, *interval)
    arguments = inputs(sampler.steps)
    ours = run(sampler, *arguments)
    assert ours.dtype == jnp.float32
    assert relative_error(ours, reference(sampler, *arguments)) < 3e-6
    assert len(scans(program(sampler))) == INTERVALS[interval]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kept", [(1, 4, 5, 9, 12), (7,), ()])
def test_kept_steps_are_those_of_the_textbook_loop(method, kept):
    sampler = Sampler(method, 12, "linear", 1.8, 0.31, 0.77)  # three loops, one after the other
    noise, labels, step_noises = inputs(sampler.steps)
    last, _, states = sample_kept(
        sampler, velocity, noise, labels,
        null=NULL_LABEL, step_noise=lambda i: jnp.asarray(step_noises)[i], kept=kept,
    )  # fmt: skip
    expected = reference(sampler, noise, labels, step_noises, every=True)
    assert relative_error(last, expected[-1]) < 3e-6
    if not kept:
        assert states is None
        return
    assert states.shape == (len(kept), *noise.shape)
    for state, step in zip(states, kept, strict=True):
        assert relative_error(state, expected[step - 1]) < 3e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [0.0, 1.8])
def test_the_shift_and_the_guided_channels_of_the_textbook_loop(method, scale):
    sampler = Sampler(
        method, 12, "linear", scale, 0.3, 0.9, guidance_channels=SHAPE[-1] - 1, shift=3.0
    )
    arguments = inputs(sampler.steps)
    expected = reference(sampler, *arguments)
    assert relative_error(run(sampler, *arguments), expected) < 3e-6
    for change in ({"shift": 1.0}, {"guidance_channels": 0}):
        other = dataclasses.replace(sampler, **change)
        assert relative_error(run(other, *arguments), expected) > 1e-3


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_an_ode_may_end_before_the_data(method):
    """As RAE's, whose last time 0.001 becomes 0.0069 by its shift of 6.93."""
    sampler = Sampler(method, 12, "linear", shift=48**0.5, last_time=0.001)
    assert time_grid(sampler)[-1] == pytest.approx(0.0068871, rel=1e-4)
    arguments = inputs(sampler.steps)
    expected = reference(sampler, *arguments)
    assert relative_error(run(sampler, *arguments), expected) < 3e-6
    to_the_data = dataclasses.replace(sampler, last_time=0.0)
    assert relative_error(run(to_the_data, *arguments), expected) > 1e-3


# 0.25 and 0.75 are times of the grid, at which the rules differ for every method of the ODE
@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("interval", [(0.0, 0.75), (0.25, 1.0), (0.25, 0.75), (0.3, 0.7)])
def test_each_evaluation_decides_about_its_guidance(method, interval):
    sampler = Sampler(method, 12, "linear", 1.8, *interval, guidance_rule="evaluation")
    arguments = inputs(sampler.steps)
    assert relative_error(run(sampler, *arguments), reference(sampler, *arguments)) < 3e-6
    assert len(scans(program(sampler))) <= 3
    other = run(dataclasses.replace(sampler, guidance_rule="step"), *arguments)
    same = method == "euler" and interval == (0.3, 0.7)
    assert (relative_error(other, reference(sampler, *arguments)) < 1e-4) == same


def test_the_published_interval_of_jit_is_guided_as_in_torch():
    """t < high and (low == 0 or t > low) of float32 times toward the data, for Heun's 99."""
    ours = Sampler("heun", 50, "linear", 3.0, 0.0, 0.9, guidance_rule="evaluation")
    times = torch.linspace(0.0, 1.0, 51)[:-1].repeat_interleave(2)[1:]
    expected = [t < 1.0 and bool(t > 0.1) for t in times]
    assert evaluations(ours)[1].tolist() == expected
    assert sum(expected) == 88


@pytest.mark.parametrize("method", METHODS)
def test_matches_the_textbook_loop_with_the_fewest_steps(method):
    sampler = Sampler(method, 2 if method == "euler-maruyama" else 1, "linear", 1.8)
    arguments = inputs(sampler.steps)
    assert relative_error(run(sampler, *arguments), reference(sampler, *arguments)) < 3e-6


@pytest.mark.parametrize("interpolant", ["linear", "cosine"])
def test_the_ode_does_not_depend_on_the_interpolant(interpolant):
    arguments = inputs(8)
    ours = run(Sampler("heun", 8, interpolant), *arguments)
    other = run(Sampler("heun", 8, "linear"), *arguments)
    np.testing.assert_array_equal(ours, other)


@pytest.mark.parametrize("method", METHODS)
def test_rounding_does_not_grow_with_the_steps(method):
    # Without compensated summation the error at 1000 steps is 10 to 20 times larger.
    sampler = Sampler(method, 1000, "linear")
    arguments = inputs(sampler.steps)
    expected = reference(sampler, *arguments)
    error = run(sampler, *arguments) - expected
    assert np.sqrt(np.mean(error**2) / np.mean(expected**2)) < 2.5e-7


# Gaussian data N(M, S^2), for which the velocity is known and the ODE has a closed solution.
M, S = 0.8, 0.4


def gaussian_velocity(x, t, labels, interpolant="linear"):
    t = t[:, None, None, None]
    if interpolant == "linear":
        alpha, sigma, d_alpha, d_sigma = 1 - t, t, -1.0, 1.0
    else:
        alpha, sigma = jnp.cos(jnp.pi / 2 * t), jnp.sin(jnp.pi / 2 * t)
        d_alpha, d_sigma = -jnp.pi / 2 * sigma, jnp.pi / 2 * alpha
    away = (x - alpha * M) / (alpha**2 * S**2 + sigma**2)
    return d_alpha * (M + alpha * S**2 * away) + d_sigma * sigma * away


@pytest.mark.parametrize("interpolant", ["linear", "cosine"])
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence(method, order, interpolant):
    noise, labels, _ = inputs(1)
    # Along the flow of a Gaussian, the standardised value stays what it was at t = 1.
    exact = M + S * noise
    flow = functools.partial(gaussian_velocity, interpolant=interpolant)

    def error(steps):
        sampler = Sampler(method, steps, interpolant)
        latents = jax.jit(lambda n, y: sample(sampler, flow, n, y))(noise, labels)
        return np.abs(latents - exact).max()

    errors = [error(steps) for steps in (16, 32, 64)]
    assert errors[-1] > 1e-5  # Far from rounding, so that the order is to be seen.
    orders = -np.diff(np.log2(errors))
    assert np.abs(orders - order).max() < 0.25


@pytest.mark.parametrize("interpolant", ["linear", "cosine"])
def test_the_sde_ends_in_the_data_distribution(interpolant):
    # A wrong score, drift or noise scale changes the variance; so do 200 steps, but by little.
    sampler = Sampler("euler-maruyama", 200, interpolant)
    flow = functools.partial(gaussian_velocity, interpolant=interpolant)
    indices = jnp.arange(4096)

    @jax.jit
    def latents(key):
        start = image_noise(key, indices, (1, 1, 4))
        steps = step_noise(key, indices, (1, 1, 4))
        return sample(sampler, flow, start, jnp.zeros(4096, jnp.int32), step_noise=steps)

    x = np.asarray(latents(jax.random.key(0)))
    assert abs(x.mean() - M) < 0.02
    assert abs(x.std() - S) < 0.02


def test_the_last_sde_step_has_no_noise():
    sampler = Sampler("euler-maruyama", 6, "linear", 1.8)
    noise, labels, step_noises = inputs(6)
    first = run(sampler, noise, labels, step_noises)
    step_noises[-1] += 100
    np.testing.assert_array_equal(first, run(sampler, noise, labels, step_noises))
    step_noises[-2] += 1
    assert relative_error(run(sampler, noise, labels, step_noises), first) > 0.02


@pytest.mark.parametrize("method", METHODS)
def test_only_guided_steps_pay_for_a_doubled_batch(method):
    # Inside [0.31, 0.77] start the steps 0.7, 0.6, 0.5, 0.4, or 0.68, 0.57, 0.47, 0.36 of the SDE.
    evaluated, guided = (2 * 10 - 1, 2 * 4) if method == "heun" else (10, 4)
    found = scans(program(Sampler(method, 10, "linear", 1.8, 0.31, 0.77)))
    assert [batches for _, batches in found] == [[BATCH], [2 * BATCH], [BATCH]]
    assert found[1][0] == guided
    assert sum(length for length, _ in found) == evaluated

    ((length, batches),) = scans(program(Sampler(method, 10, "linear")))
    assert (length, batches) == (evaluated, [BATCH])


@pytest.mark.parametrize("method", METHODS)
def test_the_program_does_not_grow_with_the_steps(method):
    def size(steps):
        return len(list(equations(program(Sampler(method, steps, "linear", 1.8, 0.3, 0.7)))))

    assert size(10) == size(500)


def test_one_compile_serves_all_noise_labels_and_parameters():
    traces = []

    @jax.jit
    def latents(scale, noise, labels):
        def scaled(x, t, labels):
            traces.append(x.shape[0])
            return scale * velocity(x, t, labels)

        sampler = Sampler("heun", 50, "linear", 1.8, 0.0, 0.7)
        return sample(sampler, scaled, noise, labels, null=NULL_LABEL)

    first = latents(1.0, *inputs(1)[:2])
    traced = list(traces)
    second = latents(0.5, *inputs(1, seed=2)[:2])
    assert traced == traces
    assert set(traces) == {BATCH, 2 * BATCH}
    assert relative_error(second, first) > 0.1


def test_null_label_and_times_reach_the_velocity():
    seen = []

    def spy(x, t, labels):
        jax.debug.callback(lambda t, y: seen.append((np.array(t), np.array(y))), t, labels)
        return velocity(x, t, labels)

    noise, labels, step_noises = inputs(4)
    run(Sampler("euler", 4, "linear", 1.8, 0.0, 0.6), noise, labels, step_noises, velocity=spy)
    jax.effects_barrier()
    by_time = {float(t[0]): y for t, y in seen}
    assert all((t == t[0]).all() and t.dtype == np.float32 for t, _ in seen)
    assert sorted(by_time) == [0.25, 0.5, 0.75, 1.0]
    assert by_time[1.0].tolist() == by_time[0.75].tolist() == labels.tolist()
    for t in (0.5, 0.25):
        assert sorted(by_time[t]) == sorted([*labels, *[NULL_LABEL] * BATCH])


@pytest.mark.parametrize("method", METHODS)
def test_a_bfloat16_velocity_is_guided_and_integrated_in_float32(method):
    def rounded(x, t, labels):
        assert x.dtype == t.dtype == jnp.float32
        return jax.lax.reduce_precision(velocity(x, t, labels), exponent_bits=8, mantissa_bits=7)

    def half(x, t, labels):
        return rounded(x, t, labels).astype(jnp.bfloat16)

    sampler = Sampler(method, 4, "linear", 1.8)
    arguments = inputs(4)
    ours = run(sampler, *arguments, velocity=half)
    assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(ours, run(sampler, *arguments, velocity=rounded))
    assert (ours != run(sampler, *arguments)).any()


def test_the_noise_is_scaled():
    noise, labels, step_noises = inputs(6)
    scaled = run(Sampler("heun", 6, "linear", noise_scale=2.0), noise, labels, step_noises)
    plain = run(Sampler("heun", 6, "linear"), 2 * noise, labels, step_noises)
    np.testing.assert_array_equal(scaled, plain)
