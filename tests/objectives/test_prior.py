"""LSGM's bound: closed forms, its authors' weights, and the gradient of its objective in torch."""

import math
import os
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch

from repae_jax.errors import UserError
from repae_jax.models.backbones.base import BackboneOutput
from repae_jax.models.batch_norm import LATENT_EPSILON, LatentNorm
from repae_jax.models.tokenizers.distributions import Gaussian, Point
from repae_jax.objectives.interpolant import INTERPOLANTS, Interpolant
from repae_jax.objectives.objective import Objective
from repae_jax.objectives.prior import entropy_at_least_time, prior_times
from repae_jax.training.tokenizer_loss import TOKENIZER_TERMS

LEAST = 0.01
SHAPE = (3, 4, 2, 5)
(PRIOR,) = (term for term in TOKENIZER_TERMS if term.metric == "prior_loss")


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_time_of_sigma_inverts_sigma(name):
    path, t = INTERPOLANTS[name], jnp.linspace(0.0, 0.99, 12)
    np.testing.assert_allclose(path.time_of_sigma(path.sigma(t)), t, atol=1e-6)


@pytest.mark.parametrize("weighting", ["ll_uniform", "ll_iw"])
@pytest.mark.parametrize("name", INTERPOLANTS)
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.5, 0.3)])
@pytest.mark.parametrize("noise_scale", [1.0, 2.0])
def test_with_the_exact_denoiser_it_is_the_cross_entropy(name, weighting, mean, std, noise_scale):
    """CE(N(m, s^2), N(0, 1)) = (m^2 + s^2) / 2 + log(2 pi) / 2, for the denoiser of N(0, 1)."""
    path, least = INTERPOLANTS[name], 1e-3
    t, factor = prior_times(
        path, (jnp.arange(20_000) + 0.5) / 20_000, weighting, least, noise_scale
    )
    alpha, sigma = path.alpha(t), noise_scale * path.sigma(t)
    d_alpha, d_sigma = path.d_alpha(t), noise_scale * path.d_sigma(t)
    share = (d_alpha * alpha + d_sigma * sigma) / (alpha**2 + sigma**2)  # E[v | x_t] = share x_t
    error = (mean**2 + std**2) * (d_alpha - share * alpha) ** 2 + (d_sigma - share * sigma) ** 2
    found = (factor * error).mean() + entropy_at_least_time(path, least, noise_scale)
    expected = (mean**2 + std**2) / 2 + math.log(2 * math.pi) / 2
    assert found == pytest.approx(expected, abs=5 * least)


def test_the_importance_weight_stays_small():
    """Uniform times have a factor of up to 1 / e; log sigma^2 uniform, at most log(1 / e)."""
    uniform = jnp.linspace(0.0, 0.999, 1000)
    linear = INTERPOLANTS["linear"]
    _, plain = prior_times(linear, uniform, "ll_uniform", LEAST)
    t, importance = prior_times(linear, uniform, "ll_iw", LEAST)
    assert plain.max() == pytest.approx((1 - LEAST) ** 2 / LEAST, rel=1e-4)
    np.testing.assert_allclose(importance, math.log(1 / LEAST) * (1 - t), rtol=1e-5)


def vp_path(beta_start, beta_end):
    """LSGM's variance-preserving path as an `Interpolant`."""

    def alpha(t):
        return jnp.exp(-0.5 * beta_start * t - 0.25 * (beta_end - beta_start) * t**2)

    def sigma(t):
        return jnp.sqrt(-jnp.expm1(2 * jnp.log(alpha(t))))

    def time_of_sigma(s):
        slope = beta_end - beta_start
        return (jnp.sqrt(beta_start**2 - 2 * slope * jnp.log1p(-(s**2))) - beta_start) / slope

    d_alpha, d_sigma = (jax.vmap(jax.grad(f)) for f in (alpha, sigma))
    return Interpolant("vp", alpha, sigma, d_alpha, d_sigma, None, time_of_sigma)


def of_noise(path, t):
    """|v - v'|^2 over |n - n'|^2."""
    wronskian = path.alpha(t) * path.d_sigma(t) - path.d_alpha(t) * path.sigma(t)
    return (wronskian / path.alpha(t)) ** 2


UNIFORM = np.linspace(0.001, 0.999, 9, dtype=np.float32)


@pytest.mark.parametrize("weighting", ["ll_uniform", "ll_iw"])
def test_on_its_own_path_the_weights_are_lsgms(weighting):
    """g^2 / (2 sigma^2), and (log sigma_1^2 - log sigma_e^2) / (2 (1 - sigma^2)) (section 3.2)."""
    start, end = 0.1, 20.0
    path = vp_path(start, end)
    t, factor = prior_times(path, jnp.asarray(UNIFORM), weighting, LEAST)
    squared = np.asarray(path.sigma(t), np.float64) ** 2
    if weighting == "ll_uniform":
        expected = (1 - LEAST) * (start + (end - start) * np.asarray(t)) / (2 * squared)
    else:
        ends = np.log(np.asarray(path.sigma(jnp.array([1.0, LEAST])), np.float64) ** 2)
        expected = 0.5 * (ends[0] - ends[1]) / (1 - squared)
        log_squared = np.log(squared)
        np.testing.assert_allclose(np.diff(log_squared, 2), 0.0, atol=2e-4)  # uniform
    kept = np.asarray(path.alpha(t)) > 0.05  # 1 - sigma^2 is rounded beyond
    assert kept.sum() >= 5
    parity.assert_close((factor * of_noise(path, t))[kept], expected[kept], weighting, 2e-3)


@pytest.mark.skipif(
    "LSGM_ORIGINAL" not in os.environ, reason="set LSGM_ORIGINAL to a checkout of NVlabs/LSGM"
)
@pytest.mark.parametrize("weighting", ["ll_uniform", "ll_iw"])
def test_the_weights_are_those_of_lsgms_code(weighting, monkeypatch):
    module = original_diffusion(monkeypatch)
    args = types.SimpleNamespace(
        sigma2_0=0.0, sde_type="vpsde", beta_start=0.1, beta_end=20.0, time_eps=LEAST
    )
    theirs = module.DiffusionVPSDE(args)
    monkeypatch.setattr(torch, "rand", lambda size, device: torch.tensor(UNIFORM))
    found = theirs.iw_quantities(len(UNIFORM), LEAST, weighting, False)
    t_theirs, weight = found[0].flatten(), found[4].flatten()
    path = vp_path(0.1, 20.0)
    t, factor = prior_times(path, jnp.asarray(UNIFORM), weighting, LEAST)
    parity.assert_close(t, t_theirs, "times", 1e-4)
    kept = np.asarray(path.alpha(t)) > 0.05
    if weighting == "ll_uniform":
        factor = factor / (1 - LEAST)
    parity.assert_close((factor * of_noise(path, t))[kept], weight[kept], weighting, 2e-3)
    constant = theirs.cross_entropy_const(LEAST)
    parity.assert_close(entropy_at_least_time(path, LEAST, 1.0), constant, "constant", 1e-5)


def original_diffusion(monkeypatch):
    """LSGM's diffusion_continuous.py on the CPU, without its other dependencies."""
    names = ("trace_df_dx_hutchinson", "sample_gaussian_like", "sample_rademacher_like")
    utils = types.SimpleNamespace(**dict.fromkeys((*names, "get_mixed_prediction")))
    for name, module in (
        ("util", types.SimpleNamespace(utils=utils)),
        ("util.utils", utils),
        ("torchdiffeq", types.SimpleNamespace(odeint=None)),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    path = pathlib.Path(os.environ["LSGM_ORIGINAL"]) / "diffusion_continuous.py"
    module = types.ModuleType("lsgm_diffusion")
    source = path.read_text().replace("device='cuda'", "device='cpu'")
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


class _Score:
    """A score network of one layer that follows the backbone's contract as far as the term does."""

    def __init__(self, weight):
        self.weight = weight

    def apply(self, variables, latents, time, condition):
        assert not condition
        x = latents @ variables["params"]["weight"]
        return BackboneOutput(jnp.tanh(x) * (1.0 + time)[:, None, None, None], None, (), {})


def term_and_inputs(**objective):
    """`value(mean, logvar)` of the term, and random inputs; also its draws."""
    rng = np.random.default_rng(0)
    mean, logvar, posterior_noise, noise = rng.normal(size=(4, *SHAPE)).astype(np.float32)
    weight = rng.normal(size=(SHAPE[-1], SHAPE[-1])).astype(np.float32)
    uniform = np.array([0.1, 0.5, 0.9], np.float32)
    stats = {"mean": 0.3 * jnp.arange(5.0), "var": 1.0 + 0.5 * jnp.arange(5.0)}
    objective = Objective(prior_weight=1.0, **objective)
    draws = types.SimpleNamespace(noise=noise, prior_uniform=jnp.asarray(uniform), time=None)

    def value(mean, logvar):
        posterior = Gaussian(mean, logvar)
        context = types.SimpleNamespace(
            posterior=posterior, latents=posterior.sample(jnp.asarray(posterior_noise)),
            draws=draws, condition={}, class_token=None, frozen={},
        )  # fmt: skip
        return PRIOR.value(
            types.SimpleNamespace(
                models=types.SimpleNamespace(backbone=_Score(weight), latent_norm=LatentNorm()),
                objective=objective, params={"backbone": {"weight": jnp.asarray(weight)}},
                batch_stats={"latent_norm": stats}, context=context,
            )
        )  # fmt: skip

    return value, (mean, logvar), (posterior_noise, noise, weight, uniform, stats)


@pytest.mark.parametrize("weighting", ["ll_uniform", "ll_iw", "unweighted"])
@pytest.mark.parametrize("latent_norm", ["batch", "fixed"])
def test_value_and_gradient_equal_torch(weighting, latent_norm):
    """The objective of q as its authors train it: neg-entropy of the sample's q + cross entropy."""
    value, inputs, (posterior_noise, noise, weight, uniform, stats) = term_and_inputs(
        prior_weighting=weighting, latent_norm=latent_norm
    )
    mean, logvar = (torch.tensor(x, requires_grad=True) for x in inputs)
    posterior_noise, noise, weight, uniform = map(
        torch.tensor, (posterior_noise, noise, weight, uniform)
    )
    latents = mean + torch.exp(0.5 * logvar) * posterior_noise
    of_batch = latent_norm == "batch"
    center = latents.mean((0, 1, 2)) if of_batch else torch.tensor(np.asarray(stats["mean"]))
    var = torch.tensor(np.asarray(stats["var"]))
    if of_batch:
        var = latents.var((0, 1, 2), unbiased=False)
    std = torch.sqrt(var + LATENT_EPSILON)
    z = (latents - center) / std
    log_q = torch.distributions.Normal((mean - center) / std, torch.exp(0.5 * logvar) / std)
    neg_entropy = -log_q.entropy().sum((1, 2, 3))
    if weighting == "ll_uniform":
        t = LEAST + (1 - LEAST) * uniform
        weights = (1 - LEAST) * (1 - t) / t
    elif weighting == "ll_iw":
        t = LEAST ** (1 - uniform)
        weights = math.log(1 / LEAST) * (1 - t)
    else:
        t, weights = uniform, torch.ones(3)
    at = t.reshape(-1, 1, 1, 1)
    noisy = (1 - at) * z + at * noise
    error = (torch.tanh(noisy @ weight) * (1 + at) - (noise - z)) ** 2
    constant = 0.5 * math.log(2 * math.pi * math.e * LEAST**2)
    per_variable = weights.reshape(-1, 1, 1, 1) * error + constant
    expected = (per_variable.sum((1, 2, 3)) + neg_entropy).mean()
    expected.backward()

    found, gradients = jax.value_and_grad(value, argnums=(0, 1))(*map(jnp.asarray, inputs))
    parity.assert_close(found, expected, "value", 1e-5)
    for name, ours, theirs in zip(("mean", "logvar"), gradients, (mean, logvar), strict=True):
        parity.assert_close(ours, theirs.grad, f"gradient by {name}", 1e-4)


def test_under_batch_statistics_the_latents_scale_changes_nothing():
    """Without the scale's share, the bound would fall by D log k for latents k times as large."""
    value, (mean, logvar), _ = term_and_inputs(latent_norm="batch")
    scaled = [value(k * mean + 2.0, logvar + 2 * math.log(k)) for k in (1.0, 3.0, 30.0)]
    np.testing.assert_allclose(scaled[1:], scaled[0], rtol=2e-4)
    value, *_ = term_and_inputs(latent_norm="fixed")
    assert abs(value(3 * mean, logvar + 2 * math.log(3.0)) / value(mean, logvar) - 1) > 0.1


def test_a_deterministic_tokenizer_is_refused():
    with pytest.raises(UserError, match="prior_weight.*deterministic"):
        Point(jnp.zeros(SHAPE)).entropy()


def test_the_entropy_is_that_of_torch():
    mean, logvar = parity.normal(*SHAPE, seed=0), parity.normal(*SHAPE, seed=1)
    normal = torch.distributions.Normal(torch.tensor(mean), torch.exp(0.5 * torch.tensor(logvar)))
    parity.assert_close(
        Gaussian(mean, logvar).entropy(), normal.entropy().sum((1, 2, 3)), "entropy", 1e-5
    )


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("posterior", "mean", "set --config.objective.posterior=sample"),
        ("least_time", 0.05, "set --config.objective.prior_least_time=0.05"),
        ("interpolant", "ddpm", "linear or cosine, in place of 'ddpm'"),
        ("prior_weighting", "iw", "config.objective.prior_weighting is 'iw'"),
        ("prior_least_time", 0.0, "config.objective.prior_least_time is 0.0"),
        ("prior_least_time", 1.0, "config.objective.prior_least_time is 1.0"),
    ],
)
def test_what_has_no_bound_is_refused(field, value, named):
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        Objective(prior_weight=1e-6, **{field: value})
