"""LightningDiT's loss, train steps and guided samples against its authors' code."""

import jax
import numpy as np
import original_lightningdit
import parity
import pytest
import torch

if not original_lightningdit.ORIGINAL:
    pytest.skip(original_lightningdit.REASON, allow_module_level=True)

import original_lightningdit_loop as loop

from repae_jax.config import apply_recipe, backbone, lightningdit256, tokenizer
from repae_jax.interop import tables
from repae_jax.interop.lightningdit import ROTARY, lightningdit_rules
from repae_jax.objectives.diffusion import cosine_loss, denoising_loss
from repae_jax.objectives.interpolant import LINEAR
from repae_jax.objectives.paths import interpolate
from repae_jax.runs.build import build_models, build_objective, build_optimizers
from repae_jax.sampling.integrate import sample
from repae_jax.sampling.sampler import Sampler
from repae_jax.sampling.steps import evaluations
from repae_jax.training.step import make_train_step

SHAPE, CLASSES, BATCH = (4, 4, 8), 5, 3


def test_the_loss_and_its_gradient():
    x, noise, prediction = (parity.normal(BATCH, *SHAPE, seed=seed) for seed in range(3))
    prediction[0, 0, 0] = 0  # no direction, as a new model predicts everywhere
    t = np.array([0.1, 0.5, 0.93], np.float32)
    noisy, target = interpolate(LINEAR, x, noise, t)

    package = original_lightningdit.original_transport()
    transport = package.create_transport("Linear", "velocity", use_cosine_loss=True)
    their_prediction = parity.to_nchw(-prediction).requires_grad_()
    seen = {}

    def model(noisy, time):
        seen.update(noisy=noisy, time=time)
        return their_prediction

    transport.sample = lambda x1, *_: (torch.tensor(1 - t), parity.to_nchw(noise), x1)
    terms = transport.training_losses(model, parity.to_nchw(x))
    (terms["loss"].mean() + terms["cos_loss"].mean()).backward()

    def loss(v):
        return denoising_loss(v, target) + cosine_loss(v, target), cosine_loss(v, target)

    gradient, cosine = jax.grad(loss, has_aux=True)(prediction)
    parity.assert_close(noisy, parity.to_nhwc(seen["noisy"]), "noisy latents", 1e-6)
    parity.assert_close(cosine, terms["cos_loss"].mean(), "cosine loss", 1e-6)
    theirs = -parity.to_nhwc(their_prediction.grad)
    rest = np.arange(BATCH * SHAPE[0] * SHAPE[1]).reshape(BATCH, *SHAPE[:2]) > 0
    parity.assert_close(gradient[rest], theirs[rest], "gradient", 1e-5)
    parity.assert_close(gradient[0, 0, 0], theirs[0, 0, 0], "gradient at zero", 1e-5)


def test_train_steps():
    """Three steps of their loop: metrics, gradient norm, weights and their average."""
    config = apply_recipe(lightningdit256(), "vanilla")
    config.update(dtype="float32", batch_size=BATCH, ema_decay=0.5)
    config.data.update(resolution=16 * SHAPE[0], num_classes=CLASSES)
    config.tokenizer = tokenizer("f16d32")
    sizes = dict(patch_size=1, hidden_size=32, depth=2, num_heads=4)
    config.backbone = backbone(family="lightningdit", encoder_depth=1, **sizes)
    models = build_models(config)
    theirs = parity.randomise(
        original_lightningdit.original_lightningdit(
            input_size=SHAPE[0], in_channels=32, num_classes=CLASSES, **sizes
        )
    )
    state = loop.our_state(theirs, config, models)
    training = loop.Training(theirs, ema_decay=config.ema_decay)
    step = make_train_step(
        models, build_objective(config), build_optimizers(config), ema_decay=config.ema_decay
    )
    step = parity.quick_jit(step)
    for index in range(3):
        batch, draws = loop.make_batch(config, models, seed=index)
        statistics = loop.latent_statistics(models)
        expected = training.step(*loop.their_inputs(batch, draws, statistics, CLASSES))
        expected["grad_norm_sit"] = training.gradient_norm()
        state, metrics = step(state, batch, draws)
        for name, value in expected.items():
            parity.assert_close(metrics[name], value, f"{name}, step {index}", 1e-5)
    for ours, model in ((state.params["backbone"], theirs), (state.ema["params"], training.ema)):
        arrays = {n: a for n, a in parity.state_of(model).items() if n not in ROTARY}
        constants = {"constants": state.frozen["backbone"]["constants"]}
        found = tables.flatten({"params": ours, **constants})
        parity.assert_tensors_close(tables.to_theirs(lightningdit_rules(1), found), arrays)


@pytest.fixture(scope="module")
def model():
    return parity.randomise(
        original_lightningdit.original_lightningdit(
            input_size=SHAPE[0], patch_size=1, in_channels=SHAPE[-1], hidden_size=32, depth=1,
            num_heads=4, num_classes=CLASSES,
        )
    )  # fmt: skip


@pytest.mark.parametrize(("scale", "start"), [(1.0, 0.0), (6.7, 0.0), (6.7, 0.125)])
def test_guided_samples(model, scale, start, monkeypatch):
    """Points in place of steps, a shift from the other end, and three guided channels."""
    points, shift = 11, 0.3
    noise, labels = parity.normal(BATCH, *SHAPE, seed=3), np.array([0, 4, 2])
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self, raising=False)
    monkeypatch.setattr(model.y_embedder, "num_classes", CLASSES)
    package = original_lightningdit.original_transport()
    transport = package.create_transport("Linear", "velocity")
    sampler = package.Sampler(transport).sample_ode(
        sampling_method="euler", num_steps=points, timestep_shift=shift
    )
    times = []
    with torch.no_grad():
        z, y = parity.to_nchw(noise), torch.tensor(labels)
        if scale > 1:
            z, y = torch.cat([z, z]), torch.cat([y, torch.full((BATCH,), CLASSES)])

        def forward(z, t, y):
            times.append(float(t[0]))
            if scale == 1:
                return model.forward(z, t, y)
            return model.forward_with_cfg(z, t, y, scale, True, start)

        expected = parity.to_nhwc(sampler(z, forward, y=y)[-1][:BATCH])

    ours = Sampler(
        "euler", points - 1, "linear", scale, 0.0, 1.0 - start, guidance_channels=3, shift=1 / shift
    )
    table, _ = evaluations(ours)
    np.testing.assert_allclose(table.time, 1 - np.array(times), atol=1e-6)

    def velocity(x, t, labels):  # their model, so that the sampler alone is compared
        def run(x, t, labels):
            with torch.no_grad():
                out = model.forward(parity.to_nchw(x), torch.tensor(1 - t), torch.tensor(labels))
            return -parity.to_nhwc(out)

        return jax.pure_callback(run, jax.ShapeDtypeStruct(x.shape, np.float32), x, t, labels)

    latents = jax.jit(lambda n, y: sample(ours, velocity, n, y, null=CLASSES))(noise, labels)
    parity.assert_close(latents, expected, "latents")
