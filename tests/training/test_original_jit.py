"""JiT's loss and samplers against its authors' denoiser, where iREPA is checked out."""

import jax
import numpy as np
import parity
import pytest
import torch
from original_jit import ORIGINAL, REASON, original_denoiser, original_jit_with_heads

from repae_jax.interop import tables
from repae_jax.interop.jit import jit_rules
from repae_jax.models.backbones.base import headless_shapes
from repae_jax.models.backbones.jit import JiT
from repae_jax.models.conditioning.class_label import ClassLabel
from repae_jax.objectives.diffusion import denoising_loss
from repae_jax.objectives.interpolant import LINEAR
from repae_jax.objectives.paths import interpolate
from repae_jax.sampling.integrate import sample
from repae_jax.sampling.sampler import Sampler

pytestmark = pytest.mark.skipif(not ORIGINAL, reason=REASON)

CLASSES, SIDE = 5, 32
LABELS = np.array([4, 0, 2])
ARGUMENTS = dict(
    img_size=SIDE, class_num=CLASSES, attn_dropout=0.0, proj_dropout=0.0, encoder_depth=8,
    z_dims=[], projector_dim=8, projection_layer_type="mlp", proj_kwargs_kernel_size=1,
    label_drop_prob=0.1, P_mean=-0.8, P_std=0.8, t_eps=0.05, noise_scale=1.0, ema_decay1=0.9999,
    ema_decay2=0.9996, sampling_method="heun", num_sampling_steps=4, cfg=1.0, interval_min=0.0,
    interval_max=1.0, projection_loss_type="cosine", proj_coeff="0.5",
)  # fmt: skip


@pytest.fixture(scope="module")
def both():
    """(their network, ours, its variables), with the same random weights."""
    net = original_jit_with_heads(
        input_size=SIDE, patch_size=8, hidden_size=32, depth=4, num_heads=2, bottleneck_dim=8,
        in_context_len=4, in_context_start=2, num_classes=CLASSES,
    )  # fmt: skip
    parity.randomise(net).pos_embed.requires_grad = False
    model = JiT(
        latent_size=SIDE, latent_channels=3, patch_size=8, hidden_size=32, depth=4, num_heads=2,
        conditioner=ClassLabel(CLASSES), encoder_depth=1, bottleneck=8, context_tokens=4,
        context_start=2,
    )  # fmt: skip
    rules = jit_rules(model.patch_size)
    return net, model, tables.load(rules, parity.state_of(net), headless_shapes(model))


def images(seed):
    return parity.normal(len(LABELS), SIDE, SIDE, 3, seed=seed)


def test_the_loss_and_its_gradients_are_theirs(both, monkeypatch):
    net, model, variables = both
    x, noise, time = images(1), images(2), np.array([0.7, 0.03, 0.4], np.float32)
    denoiser = original_denoiser(net=net, **ARGUMENTS).eval()  # drops no label
    monkeypatch.setattr(denoiser, "sample_t", lambda n, device: torch.tensor(1 - time))
    monkeypatch.setattr(torch, "randn_like", lambda x: parity.to_nchw(noise))
    net.zero_grad()
    expected, _ = denoiser(parity.to_nchw(x), torch.tensor(LABELS), [])
    expected.backward()

    def loss(params):
        noisy, target = interpolate(LINEAR, x, noise, time, least_time=0.05)
        output = model.apply({**variables, "params": params}, noisy, time, {"label": LABELS})
        return denoising_loss(output.prediction, target)

    value, gradients = parity.quick_jit(jax.value_and_grad(loss))(variables["params"])
    parity.assert_close(value, expected, "loss")
    gradients = tables.to_theirs(jit_rules(8), tables.flatten({"params": gradients}))
    parity.assert_tensors_close(gradients, parity.gradients_of(net))


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("interval", [(0.1, 0.6), (0.0, 0.6), (0.25, 0.75), (0.0, 1.0)])
def test_its_samples_are_theirs(both, method, interval, monkeypatch):
    """An interval of times toward the data; 0.25 and 0.75 are points of the grid."""
    net, model, variables = both
    low, high = interval
    scale = {"euler": 1.0, "heun": 2.0}[method]  # of the noise
    theirs = dict(sampling_method=method, cfg=2.5, interval_min=low, interval_max=high)
    theirs["noise_scale"] = scale
    denoiser = original_denoiser(net=net, **ARGUMENTS | theirs).eval()
    noise = images(3)
    monkeypatch.setattr(torch, "randn", lambda *shape, device: parity.to_nchw(noise))
    expected = denoiser.generate(torch.tensor(LABELS))
    rules = dict(guidance_rule="evaluation", noise_scale=scale)
    ours = Sampler(method, 4, "linear", 2.5, 1 - high, 1 - low, **rules)

    def velocity(x, t, labels):
        return model.apply(variables, x, t, {"label": labels}).prediction

    latents = parity.quick_jit(lambda n, y: sample(ours, velocity, n, y, null=CLASSES))
    parity.assert_close(latents(noise, LABELS), parity.to_nhwc(expected), "samples")
