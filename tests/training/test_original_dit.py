"""DiT's loss and samplers against its authors' code."""

import jax
import numpy as np
import original_dit
import parity
import pytest
import torch

if not original_dit.ORIGINAL:
    pytest.skip(original_dit.REASON, allow_module_level=True)

from repae_jax.objectives.ddpm import variational_bound
from repae_jax.objectives.diffusion import denoising_loss
from repae_jax.objectives.paths import PATHS, interpolate
from repae_jax.sampling.chain import chain_steps
from repae_jax.sampling.integrate import sample
from repae_jax.sampling.sampler import Sampler

SHAPE, CLASSES, BATCH = (4, 4, 4), 5, 4
STEPS = np.array([0, 1, 500, 999])


def test_the_loss_and_its_gradient():
    x, noise, prediction, fraction = (parity.normal(BATCH, *SHAPE, seed=seed) for seed in range(4))
    x *= 1.3  # a third of the elements take the tails of the last term, as of latents
    t = np.float32(STEPS) / 1000
    noisy, target = interpolate(PATHS["ddpm"], x, noise, t)
    output = torch.cat([parity.to_nchw(prediction), parity.to_nchw(fraction)], dim=1)
    output.requires_grad_()
    seen = {}

    def model(noisy, steps):
        seen.update(noisy=noisy, steps=steps)
        return output

    diffusion = original_dit.create_diffusion("")
    terms = diffusion.training_losses(
        model, parity.to_nchw(x), torch.tensor(STEPS), noise=parity.to_nchw(noise)
    )
    terms["loss"].mean().backward()
    parity.assert_close(noisy, parity.to_nhwc(seen["noisy"]), "noisy latents", 1e-5)
    np.testing.assert_array_equal(seen["steps"].numpy(), STEPS)

    def loss(prediction, fraction):
        fixed = jax.lax.stop_gradient(prediction)
        bound = variational_bound(x, noisy, fixed, fraction, t)
        return denoising_loss(prediction, target) + bound, bound

    (by_noise, by_fraction), bound = jax.grad(loss, argnums=(0, 1), has_aux=True)(
        prediction, fraction
    )
    parity.assert_close(bound, terms["vb"].mean(), "lower bound", 1e-5)
    theirs = parity.to_nhwc(output.grad)
    parity.assert_close(by_noise, theirs[..., :4], "gradient of the noise", 1e-5)
    parity.assert_close(by_fraction, theirs[..., 4:], "gradient of the variance")
    # the bound alone, step by step: the middle of the chain is far smaller than its ends
    for number in range(BATCH):
        one = slice(number, number + 1)
        alone = variational_bound(x[one], noisy[one], prediction[one], fraction[one], t[one])
        parity.assert_close(alone, terms["vb"][number], f"lower bound at {STEPS[number]}")


@pytest.mark.parametrize("count", [1, 2, 10, 50, 250, 1000])
def test_the_steps_are_theirs(count):
    theirs = original_dit.create_diffusion(str(count)).timestep_map
    assert list(chain_steps("ddpm", count)) == theirs


@pytest.mark.parametrize("count", [1, 2, 10, 50, 250, 1000])
def test_the_steps_of_ddim_are_theirs(count):
    if count == 1:  # their stride ends below the length of the chain
        return
    assert (
        list(chain_steps("ddim", count))
        == original_dit.create_diffusion(f"ddim{count}").timestep_map
    )


@pytest.fixture(scope="module")
def model():
    return parity.randomise(
        original_dit.original_dit(
            input_size=SHAPE[0], patch_size=2, in_channels=SHAPE[-1], hidden_size=32, depth=1,
            num_heads=4, num_classes=CLASSES,
        )
    )  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_guided_samples(model, method, scale, monkeypatch):
    count = 10
    noise, labels = parity.normal(BATCH, *SHAPE, seed=3), np.array([0, 4, 2, 1])
    steps = parity.normal(count, BATCH, *SHAPE, seed=4)
    injected = iter(steps)

    def randn_like(x):
        one = parity.to_nchw(next(injected))
        return torch.cat([one, one]) if len(x) > BATCH else one

    monkeypatch.setattr(torch, "randn_like", randn_like)
    diffusion = original_dit.create_diffusion(("ddim" if method == "ddim" else "") + str(count))
    z, y = parity.to_nchw(noise), torch.tensor(labels)
    kwargs = dict(y=y)
    if scale > 1:
        z = torch.cat([z, z])
        kwargs = dict(y=torch.cat([y, torch.full((BATCH,), CLASSES)]), cfg_scale=scale)
    loop = diffusion.ddim_sample_loop if method == "ddim" else diffusion.p_sample_loop
    forward = model.forward_with_cfg if scale > 1 else model.forward
    expected = loop(forward, z.shape, z, clip_denoised=False, model_kwargs=kwargs, device="cpu")
    expected = parity.to_nhwc(expected[:BATCH])

    def predict(x, t, labels):  # their model, so that the sampler alone is compared
        def run(x, t, labels):
            with torch.no_grad():
                step = torch.tensor(np.round(np.asarray(t) * 1000).astype(int))
                return parity.to_nhwc(model(parity.to_nchw(x), step, torch.tensor(labels)))

        shape = (*x.shape[:-1], 2 * x.shape[-1])
        return jax.pure_callback(run, jax.ShapeDtypeStruct(shape, np.float32), x, t, labels)

    ours = Sampler(method, count, "ddpm", scale, guidance_channels=3)
    latents = jax.jit(
        lambda n, y: sample(
            ours, predict, n, y, null=CLASSES, step_noise=lambda i: jax.numpy.asarray(steps)[i]
        )
    )(noise, labels)
    parity.assert_close(latents, expected, "latents")
