"""The samplers of a pipeline in torch against ours, on a velocity that is known everywhere."""

import functools
import types

import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch

from repae_jax.interop.torch_pipeline.pipeline import RepaePipeline
from repae_jax.interop.torch_pipeline.scheduler import RepaeScheduler
from repae_jax.sampling.chain import chain_steps
from repae_jax.sampling.integrate import sample
from repae_jax.sampling.sampler import Sampler
from repae_jax.sampling.steps import evaluations

SIDE, CHANNELS, CLASSES = 4, 3, 5
LABELS = [0, 4, 2]
GUIDED = dict(guidance_scale=3.0, guidance_low=0.25, guidance_high=0.75)
LINEAR, COSINE, CHAIN = ({"interpolant": name} for name in ("linear", "cosine", "ddpm"))


class Known(torch.nn.Module):
    """A velocity in place of a transformer; `outputs` times the channels, as of a DiT."""

    device = torch.device("cpu")

    def __init__(self, outputs=1):
        super().__init__()
        self.outputs = outputs
        self.config = types.SimpleNamespace(
            latent_size=SIDE, latent_channels=CHANNELS, num_classes=CLASSES, null_class=True
        )

    def forward(self, x, t, class_labels):
        """(B, c, h, w) -> (B, outputs * c, h, w)."""
        per_image = [v.float()[:, None, None, None] for v in (t, class_labels)]
        return torch.cat(known(torch, x, *per_image, self.outputs), dim=1)


def known(xp, x, t, label, outputs):
    """The velocity as a list of parts, with `xp` torch or jax.numpy."""
    parts = [xp.cos(x + 3.0 * t) - 0.3 * (label + 1.0) * x, xp.sin(2.0 * x) * xp.cos(label + t)]
    return parts[:outputs]


def ours(sampler, noise, steps, outputs):
    """The result of our sampler (B, h, w, c)."""

    def velocity(x, t, condition):
        per_image = [v.astype(jnp.float32)[:, None, None, None] for v in (t, condition["label"])]
        return jnp.concatenate(known(jnp, x, *per_image, outputs), axis=-1)

    def run(noise, steps, labels):
        return sample(
            sampler, velocity, noise, {"label": labels}, null={"label": CLASSES},
            step_noise=lambda step: steps[step],
        )  # fmt: skip

    return np.asarray(parity.quick_jit(run)(noise, steps, np.array(LABELS, np.int32)))


@pytest.mark.parametrize(
    "options",
    [
        dict(method="euler", steps=1, **LINEAR),
        dict(method="euler", steps=7, **LINEAR, **GUIDED),
        dict(method="euler", steps=5, shift=3.0, noise_scale=1.5, guidance_scale=0.0, **LINEAR),
        dict(method="heun", steps=8, **LINEAR, **GUIDED),
        dict(method="heun", steps=8, guidance_rule="evaluation", **LINEAR, **GUIDED),
        dict(method="heun", steps=5, guidance_channels=2, last_time=0.001, **COSINE, **GUIDED),
        dict(method="heun", steps=5, smallest_time=0.01, shift=0.5, **LINEAR, **GUIDED),
        dict(method="euler-maruyama", steps=6, **LINEAR, **GUIDED),
        dict(method="euler-maruyama", steps=2, shift=2.0, **COSINE, guidance_scale=1.5),
        dict(method="ddpm", steps=6, **CHAIN, **GUIDED),
        dict(method="ddpm", steps=4, guidance_scale=0.0, guidance_channels=1, **CHAIN),
        dict(method="ddim", steps=8, guidance_scale=0.0, **CHAIN),
    ],
    ids=lambda options: f"{options['method']} {options['interpolant']} {options['steps']}",
)
def test_results_are_those_of_our_sampler(options):
    sampler = Sampler(**options)
    for outputs in (1, 2) if sampler.of_chain else (1,):  # the noise, with and without a variance
        check(options, sampler, outputs)


def check(options, sampler, outputs):
    shape = (len(LABELS), SIDE, SIDE, CHANNELS)
    noise, steps = parity.normal(*shape, seed=1), parity.normal(sampler.steps, *shape, seed=2)
    expected = ours(sampler, noise, steps, outputs)
    pipe = RepaePipeline(Known(outputs), RepaeScheduler(**options))
    pipe.set_progress_bar_config(disable=True)
    of_step = functools.partial(torch.Tensor.__getitem__, torch.tensor(steps).movedim(-1, 2))
    found = pipe(
        LABELS, latents=parity.to_nchw(noise), step_noise=of_step, output_type="latent"
    ).images
    np.testing.assert_allclose(parity.to_nhwc(found), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["euler", "heun", "euler-maruyama"])
@pytest.mark.parametrize("steps", [2, 10, 50, 250])
def test_times_and_guided_steps_are_ours_exactly(method, steps):
    """Also where a bound of the interval is a time of the grid."""
    for high in (0.5, 0.7, 0.75, 1.0):
        options = dict(method=method, steps=steps, guidance_scale=2.0, guidance_high=high, **LINEAR)
        table, guided = evaluations(Sampler(**options))
        scheduler = RepaeScheduler(**options)
        scheduler.set_timesteps()
        np.testing.assert_array_equal(scheduler.timesteps.numpy(), table.time)
        found = [scheduler.is_guided(index, 0.0, high) for index in range(len(table.time))]
        np.testing.assert_array_equal(found, guided)


@pytest.mark.parametrize(("method", "steps"), [("ddpm", 1), ("ddpm", 250), ("ddim", 50)])
def test_the_chain_visits_our_steps(method, steps):
    scheduler = RepaeScheduler(method=method, steps=steps, **CHAIN)
    scheduler.set_timesteps()
    visited = (scheduler.timesteps * 1000).round().int().tolist()
    assert tuple(reversed(visited)) == chain_steps(method, steps)


def test_numbers_of_steps_that_ddim_lacks_are_named():
    scheduler = RepaeScheduler(method="ddim", **CHAIN)
    with pytest.raises(ValueError, match="no whole stride of ddim"):
        scheduler.set_timesteps(300)
