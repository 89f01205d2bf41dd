import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from repae_jax.errors import UserError
from repae_jax.objectives.interpolant import INTERPOLANTS, score_from_velocity
from repae_jax.objectives.objective import Objective
from repae_jax.objectives.paths import interpolate

SHAPE = (6, 3, 2, 4)


def relative_error(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.abs(a - b).max() / np.abs(b).max()


def torch_path(name, t):
    """alpha and sigma as the papers write them; the derivatives are left to autograd."""
    if name == "linear":
        return 1 - t, t
    return torch.cos(torch.pi / 2 * t), torch.sin(torch.pi / 2 * t)


@pytest.fixture
def draws():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    return x, noise, np.linspace(0, 1, SHAPE[0], dtype=np.float32)


def test_the_registry_names_each_interpolant_as_it_names_itself():
    assert {name: path.name for name, path in INTERPOLANTS.items()} == {
        "linear": "linear",
        "cosine": "cosine",
    }


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_interpolate_matches_torch_in_value_velocity_and_gradient(name, draws):
    rng = np.random.default_rng(1)
    weight_x, weight_v = rng.normal(size=(2, *SHAPE)).astype(np.float32)

    tx, tn, tt = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in draws)
    # The velocity is the derivative of the path by t, which forward mode gives here.
    path = lambda t: sum(  # noqa: E731
        a.reshape(-1, 1, 1, 1) * b for a, b in zip(torch_path(name, t), (tx, tn), strict=True)
    )
    theirs, their_velocity = torch.autograd.functional.jvp(
        path, tt, torch.ones_like(tt), create_graph=True
    )
    (theirs * torch.tensor(weight_x) + their_velocity * torch.tensor(weight_v)).sum().backward()

    def loss(x, noise, t):
        x_t, velocity = interpolate(INTERPOLANTS[name], x, noise, t)
        return jnp.sum(x_t * weight_x + velocity * weight_v)

    ours, our_velocity = interpolate(INTERPOLANTS[name], *map(jnp.asarray, draws))
    assert relative_error(ours, theirs.detach()) < 1e-5
    assert relative_error(our_velocity, their_velocity.detach()) < 1e-5
    for ours, theirs in zip(jax.grad(loss, (0, 1, 2))(*draws), (tx, tn, tt), strict=True):
        assert relative_error(ours, theirs.grad) < 1e-4


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_the_ends_are_the_data_and_the_noise(name, draws):
    x, noise, _ = draws
    at_zero, _ = interpolate(INTERPOLANTS[name], x, noise, jnp.zeros(len(x)))
    at_one, _ = interpolate(INTERPOLANTS[name], x, noise, jnp.ones(len(x)))
    np.testing.assert_allclose(at_zero, x, atol=1e-6)
    np.testing.assert_allclose(at_one, noise, atol=1e-6)


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_score_of_gaussian_data_is_the_gaussians_own(name):
    # Data N(m, s^2): x_t is N(alpha m, var) and all conditional means are linear in x_t.
    m, s = 0.7, 0.3
    t = np.array([1e-3, 0.04, 0.3, 0.65, 0.999, 1.0], np.float32)
    x = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)

    tt = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    alpha, sigma = torch_path(name, tt)
    d_alpha = torch.autograd.grad(alpha.sum(), tt, retain_graph=True)[0]
    d_sigma = torch.autograd.grad(sigma.sum(), tt)[0]
    alpha, sigma, d_alpha, d_sigma = (
        a.detach().numpy().reshape(-1, 1, 1, 1) for a in (alpha, sigma, d_alpha, d_sigma)
    )
    var = alpha**2 * s**2 + sigma**2
    away = (x - alpha * m) / var
    velocity = d_alpha * (m + alpha * s**2 * away) + d_sigma * sigma * away

    ours = score_from_velocity(INTERPOLANTS[name], velocity.astype(np.float32), x, t)
    # At small t the score is a difference of large terms, over sigma: float32's share is 1e-7/t.
    for image, time in enumerate(t):
        assert relative_error(ours[image], -away[image]) < 1e-5 + 3e-7 / time


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_score_follows_the_ratio_formula_for_any_velocity(name):
    rng = np.random.default_rng(3)
    velocity, x = rng.normal(size=(2, *SHAPE))
    t = np.linspace(0.04, 1.0, SHAPE[0])
    at = t.reshape(-1, 1, 1, 1)
    if name == "linear":
        alpha, sigma, d_alpha, d_sigma = 1 - at, at, -1.0, 1.0
    else:
        angle = np.pi / 2 * at
        alpha, sigma = np.cos(angle), np.sin(angle)
        d_alpha, d_sigma = -np.pi / 2 * sigma, np.pi / 2 * alpha
    ratio = alpha / d_alpha
    theirs = (ratio * velocity - x) / (sigma**2 - ratio * d_sigma * sigma)
    single = (jnp.asarray(a, jnp.float32) for a in (velocity, x, t))
    ours = score_from_velocity(INTERPOLANTS[name], *single)
    for image in range(SHAPE[0]):
        assert relative_error(ours[image], theirs[image]) < 1e-5


def test_a_least_time_bounds_the_denominator(draws):
    x, noise, _ = draws
    t = np.resize(np.float32([0.01, 0.05, 0.5, 1.0]), len(x))
    noisy, target = interpolate(INTERPOLANTS["linear"], x, noise, t, least_time=0.05)
    plain, velocity = interpolate(INTERPOLANTS["linear"], x, noise, t)
    np.testing.assert_array_equal(noisy, plain)
    share = np.minimum(t / 0.05, 1.0).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(target, share * velocity, rtol=1e-4, atol=1e-5)


def test_a_path_without_a_least_time_is_named():
    with pytest.raises(UserError, match=r"objective.least_time is 0.05, which the path 'cosine'"):
        Objective(interpolant="cosine", least_time=0.05)
