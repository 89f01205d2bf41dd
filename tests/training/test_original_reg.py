"""The loss of REG's code, where it is checked out: value, terms and all gradients."""

import types

import jax
import numpy as np
import original_reg
import parity
import pytest
import torch
from sits import sit_of

from repae_jax.interop.original import export_part, import_part, sit_part
from repae_jax.models.batch_norm import LatentNorm
from repae_jax.models.networks import Models
from repae_jax.objectives.objective import Objective
from repae_jax.training.backbone_loss import backbone_loss
from repae_jax.training.forward import StepContext
from repae_jax.training.noise import Draws

pytestmark = pytest.mark.skipif(not original_reg.REG, reason=original_reg.REASON)

DIM = 12
SIT = dict(
    latent_size=4, latent_channels=3, patch_size=2, hidden_size=32, depth=2, num_heads=4,
    num_classes=5, encoder_depth=1, teacher_dims=(DIM, 20), projector_dim=24, class_token_dim=DIM,
)  # fmt: skip
LABELS = np.array([4, 0, 2])
TIME = np.array([0.7, 0.03, 0.4], np.float32)


def test_the_loss_and_its_gradients_are_theirs(monkeypatch):
    """On the linear path: on the cosine path REG pairs each class token with every image's time."""
    net = parity.randomise(original_reg.original_sit(**SIT))
    net.pos_embed.requires_grad = False
    net.pos_embed.data[:, 0] = 0.0
    x, noise = (parity.normal(3, 4, 4, 3, seed=seed) for seed in (1, 2))
    of_class = parity.normal(3, DIM, seed=3)
    tokens = [parity.normal(3, 5, dim, seed=dim) for dim in SIT["teacher_dims"]]  # token in front
    draws = iter([parity.to_nchw(noise), torch.tensor(of_class)])
    monkeypatch.setattr(torch, "rand", lambda shape: torch.tensor(TIME).reshape(shape))
    monkeypatch.setattr(torch, "randn_like", lambda like: next(draws))
    loss_of = original_reg.original("loss.py").SILoss(path_type="linear")
    given = [torch.tensor(part) for part in tokens]
    denoising, alignment, *_, token_loss = loss_of(
        net, parity.to_nchw(x), dict(y=torch.tensor(LABELS)), zs=given, cls_token=given[0][:, 0]
    )
    expected = denoising.mean() + 0.5 * alignment.mean() + 0.03 * token_loss.mean()
    expected.backward()

    model = sit_of(**SIT)
    part = sit_part(model, statistics=False)
    variables = import_part(parity.state_of(net), part, source="it")
    models = Models(types.SimpleNamespace(), model, LatentNorm(epsilon=0.0))
    loss = backbone_loss(models, Objective(latent_norm="fixed"))
    blank = np.zeros_like(x)
    context = StepContext(
        step=np.int32(0), images=None, condition={"label": LABELS}, posterior=None, latents=x,
        draws=Draws(blank, TIME, noise, np.zeros(3, bool), of_class), reconstructions=None,
        teacher_tokens=tuple(np.roll(part, -1, axis=1) for part in tokens),
        class_token=tokens[0][:, 0], frozen={"backbone": {"constants": variables["constants"]}},
    )  # fmt: skip
    statistics = {"latent_norm": {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}}

    def of_params(params):
        total, metrics, _ = loss({"backbone": params}, statistics, context)
        return total, metrics

    gradient = parity.quick_jit(jax.value_and_grad(of_params, has_aux=True))
    (total, metrics), by_params = gradient(variables["params"])
    parity.assert_close(total, expected, "loss")
    parity.assert_close(metrics["class_token_loss"], token_loss.mean(), "class token")
    parity.assert_close(metrics["denoising_loss"], denoising.mean(), "denoising")
    parity.assert_close(metrics["proj_loss"], alignment.mean(), "alignment")
    by_name = export_part({"params": by_params}, part, {})
    parity.assert_tensors_close(by_name, parity.gradients_of(net))
