"""Loss, times and samplers of RAE's and diffusion-bench's code, where they are checked out."""

import functools
import types

import jax
import numpy as np
import parity
import pytest
import scipy.stats
import torch
from original_ddt import CHECKOUTS, REASONS, labelled, module_of, original_ddt
from original_lightningdit import euler

from repae_jax.interop.original import ddt_part, export_part, import_part
from repae_jax.models.backbones.families import BACKBONES
from repae_jax.models.conditioning.class_label import ClassLabel
from repae_jax.objectives.diffusion import denoising_loss
from repae_jax.objectives.interpolant import LINEAR
from repae_jax.objectives.paths import interpolate
from repae_jax.objectives.times import Times
from repae_jax.sampling.integrate import sample
from repae_jax.sampling.sampler import Sampler

SIDE, CHANNELS, CLASSES, SHIFT = 4, 8, 5, 48**0.5
LABELS = np.array([4, 0, 2])
TIME = np.array([0.7, 0.03, 0.4], np.float32)
SIZES = dict(
    patch_size=1, num_classes=CLASSES, hidden_size=[32, 48], depth=[2, 1], num_heads=[2, 3]
)
OWN = {"ditdh": {}, "ddt": dict(time_tokens=2, class_tokens=3)}
LEAST = {"ditdh": 0.0, "ddt": 0.05}  # diffusion-bench bounds the target's denominator


@pytest.fixture(scope="module", params=OWN)
def both(request):
    """(family, their network, ours, its part, its variables), with the same random weights."""
    family = request.param
    if not CHECKOUTS[family]:
        pytest.skip(REASONS[family])
    net = original_ddt(family, input_size=SIDE, in_channels=CHANNELS, **SIZES, **OWN[family])
    parity.randomise(net).requires_grad_(True)
    model = BACKBONES[family].build(
        latent_size=SIDE, latent_channels=CHANNELS, patch_size=1, hidden_size=32, depth=2,
        num_heads=2, head_size=48, head_depth=1, head_heads=3, encoder_depth=1,
        conditioner=ClassLabel(CLASSES), **OWN[family],
    )  # fmt: skip
    part = ddt_part(model)
    return family, net, model, part, import_part(parity.state_of(net), part, source="it")


def transport_of(family, prediction="velocity"):
    """Their object of losses and samplers, at a shift of `SHIFT`, and its package."""
    stubs = {
        "torchdiffeq": dict(odeint=euler),
        "stage2.utils": dict(apply_cfg_dropout=lambda given, null, probability: (given, None)),
        "utils": {},
        "utils.dist_utils": dict(synchronize_gradients=None),
    }
    package = module_of(family, "stage2.transport", stubs)
    if family == "ditdh":
        made = package.create_transport(
            "Linear", prediction, time_dist_type="logit-normal_0_1", time_dist_shift=SHIFT
        )
    else:
        config = types.SimpleNamespace(
            prediction=prediction, time_dist_type="logit-normal_0_1", t_eps=0.05,
            percep_loss_t_thresh=0.7, meanflow=None,
        )  # fmt: skip
        made = package.create_transport(config, SHIFT, SHIFT)
    return made, package


def latents(seed):
    return parity.normal(len(LABELS), SIDE, SIDE, CHANNELS, seed=seed)


@pytest.mark.parametrize("prediction", ["velocity", "x"])
def test_the_loss_and_its_gradients_are_theirs(both, prediction, monkeypatch):
    """Of predicted data too (RAEv2), which RAE's code does not have."""
    family, net, model, part, variables = both
    if prediction == "x":
        if family == "ditdh":
            pytest.skip("RAE predicts the velocity")
        model = model.clone(predicts_data=True)
    x, noise = latents(1), latents(2)
    transport, _ = transport_of(family, prediction)
    given = (torch.tensor(TIME), parity.to_nchw(noise), parity.to_nchw(x))
    monkeypatch.setattr(transport, "sample", lambda x1: given)
    net.zero_grad()
    key = "y" if family == "ditdh" else "context"
    terms = transport.training_losses(net, given[2], {key: torch.tensor(LABELS)})
    expected = terms["loss"].mean()
    expected.backward()

    def loss(params):
        noisy, target = interpolate(LINEAR, x, noise, TIME, least_time=LEAST[family])
        output = model.apply({"params": params}, noisy, TIME, {"label": LABELS})
        return denoising_loss(output.prediction, target)

    value, gradients = parity.quick_jit(jax.value_and_grad(loss))(variables["params"])
    parity.assert_close(value, expected, "loss")
    found = export_part({"params": gradients}, part, {})
    found = {name: array for name, array in found.items() if name not in part.tables}
    parity.assert_tensors_close(found, parity.gradients_of(net))


def test_the_times_have_their_distribution(both):
    family, *_ = both
    transport, _ = transport_of(family)
    torch.manual_seed(0)
    theirs = transport.sample(torch.zeros(20_000, 1))[0].numpy()
    highest = {"ditdh": 0.999, "ddt": 1.0}[family]
    ours = Times("lognormal", highest=highest, shift=SHIFT)
    drawn = ours.sample(jax.random.key(0), 20_000, "linear")
    assert scipy.stats.ks_2samp(theirs, drawn).pvalue > 0.01
    other = Times("lognormal", shift=1.0).sample(jax.random.key(0), 20_000, "linear")
    assert scipy.stats.ks_2samp(theirs, other).pvalue < 1e-6


@pytest.mark.parametrize(("scale", "high"), [(1.0, 1.0), (1.8, 1.0), (1.8, 0.9)])
def test_its_samples_are_theirs(both, scale, high):
    """RAE: 11 points from 1 to 0.001; diffusion-bench: 10 steps from 1 to 0; both shifted."""
    family, net, model, _, variables = both
    noise, null = latents(3), np.full_like(LABELS, CLASSES)
    transport, package = transport_of(family)
    doubled = torch.cat([parity.to_nchw(noise)] * 2)
    labels = torch.tensor(np.concatenate([LABELS, null]))
    if family == "ditdh":
        run = package.Sampler(transport).sample_ode(sampling_method="euler", num_steps=11)
        guided = functools.partial(net.forward_with_cfg, cfg_scale=scale, cfg_interval=(0, high))
        keys = dict(y=labels)
    else:
        run = package.create_sampler(transport, None).sample_ode(num_steps=10)
        stubs = {"configs": {}, "configs.stage2": dict(GuidanceConfig=None)}
        guidance = module_of(family, "utils.guidance_utils", stubs)
        guided = functools.partial(
            guidance.forward_with_cfg, net, cfg_scale=scale, cfg_interval=(0, high)
        )
        keys = dict(context=labels)
    with torch.no_grad():
        expected = run(doubled, guided, **keys)[-1][: len(LABELS)]
    last = {"ditdh": 0.001, "ddt": 0.0}[family]
    ours = Sampler("euler", 10, "linear", scale, 0.0, high, shift=SHIFT, last_time=last)

    def velocity(x, t, y):
        return model.apply(variables, x, t, {"label": y}).prediction

    made = parity.quick_jit(lambda n, y: sample(ours, velocity, n, y, null=CLASSES))(noise, LABELS)
    parity.assert_close(made, parity.to_nhwc(expected), "samples")
    with torch.no_grad():  # and labels matter at these sizes
        one = labelled(family, net, parity.to_nchw(noise), torch.tensor(TIME), LABELS)
        other = labelled(family, net, parity.to_nchw(noise), torch.tensor(TIME), null)
    assert parity.relative_error(one, other) > 1e-2
