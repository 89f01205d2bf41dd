"""Three steps of a text-to-image run beside fuse-dit's trainer, restated in torch for the test.

The scheduler is diffusers', the text encoder transformers' Gemma, and the backbone the tests' own.
"""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
import torch_text_backbones
from diffusers import FlowMatchEulerDiscreteScheduler
from torch_text import CAUSAL_LMS, LENGTH, captions, causal_lm

from repae_jax.config import apply_recipe, backbone, fusedit256, tokenizer
from repae_jax.interop.original import fuse_dit_part, import_part
from repae_jax.interop.text_encoder import load_text_encoder
from repae_jax.models.batch_norm import LATENT_EPSILON
from repae_jax.models.text_encoders.base import null_states
from repae_jax.runs.build import build_models, build_objective, build_optimizers
from repae_jax.runs.state import create_state
from repae_jax.training.noise import Draws
from repae_jax.training.step import make_train_step

SIDE, CHANNELS, BATCH, STEPS = 4, 16, 4, 3
SIZES = dict(
    patch_size=2, hidden_size=32, depth=2, num_heads=2, kv_heads=1, head_width=16, mlp_width=48
)
BOS = 2


def configuration(lm):
    config = apply_recipe(fusedit256(), "vanilla")
    config.update(dtype="float32", batch_size=BATCH, ema_decay=0.5)
    config.data.resolution = 8 * SIDE
    config.tokenizer = tokenizer("f8d16")
    config.backbone = backbone(family="fusedit", encoder_depth=1, **SIZES)
    config.optimizer.backbone.learning_rate = 1e-3  # so that three steps show
    config.optimizer.backbone.weight_decay = 0.1
    config.optimizer.backbone.max_grad_norm = 0.1  # below the gradients' norms
    config.text_encoder.update(
        arch="", family="causal_lm", vocabulary=lm.vocabulary, hidden_size=lm.dim, depth=lm.depth,
        num_heads=lm.num_heads, num_kv_heads=lm.num_kv_heads, head_dim=lm.head_dim,
        mlp_hidden=lm.mlp_hidden, length=LENGTH, null_ids=(BOS,),
    )  # fmt: skip
    return config


def variables_of(net, models):
    return import_part(parity.state_of(net), fuse_dit_part(models.backbone), source="torch")


def draw(seed):
    """The draws that both sides take, and the shift and scale of the latents."""
    rng = np.random.default_rng(seed)
    shape = (BATCH, SIDE, SIDE, CHANNELS)
    return {
        "mean": rng.normal(size=shape).astype(np.float32),
        "std": rng.uniform(0.1, 0.5, shape).astype(np.float32),
        "posterior": rng.normal(size=shape).astype(np.float32),
        "noise": rng.normal(size=shape).astype(np.float32),
        "u": 1 / (1 + np.exp(-rng.normal(size=BATCH))),
        "dropped": np.arange(BATCH) == seed,
    }


class Trainer:
    """fuse-dit's arithmetic: facts of its `dit_training_step`, its optimizer and its average."""

    def __init__(self, net, lm, shift, scale, config):
        self.net, self.ema, self.lm = net, copy.deepcopy(net), lm
        self.shift, self.scale, self.config = shift, scale, config
        self.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        rates = config.optimizer.backbone
        self.optimizer = torch.optim.AdamW(
            net.parameters(), lr=rates.learning_rate, weight_decay=rates.weight_decay
        )

    def step(self, draws, ids, mask):
        ids, mask = ids.copy(), mask.copy()
        ids[draws["dropped"]] = [BOS] + [0] * (LENGTH - 1)  # the loader's empty caption
        mask[draws["dropped"]] = np.arange(LENGTH) < 1
        ids, mask = torch.tensor(ids).long(), torch.tensor(mask)
        with torch.no_grad():
            text = self.lm(ids, attention_mask=mask.long()).last_hidden_state
        z = parity.to_nchw(draws["mean"] + draws["std"] * draws["posterior"])
        z = (z - self.shift) * self.scale
        noise = parity.to_nchw(draws["noise"])
        index = torch.tensor((draws["u"] * 1000).astype(int))
        sigma = self.scheduler.sigmas[index][:, None, None, None]
        noisy = (1 - sigma) * z + sigma * noise
        prediction = self.net(noisy, self.scheduler.timesteps[index], text, mask)
        loss = ((prediction - (noise - z)) ** 2).mean()
        self.optimizer.zero_grad()
        loss.backward()
        parameters = self.net.parameters()
        norm = torch.nn.utils.clip_grad_norm_(
            parameters, self.config.optimizer.backbone.max_grad_norm
        )
        self.optimizer.step()
        decay = self.config.ema_decay
        for average, now in zip(self.ema.parameters(), self.net.parameters(), strict=True):
            average.data.mul_(decay).add_(now.data, alpha=1 - decay)
        return {"denoising_loss": loss.item(), "grad_norm_sit": norm.item()}


@pytest.mark.parametrize("kind", CAUSAL_LMS)
def test_three_steps(kind):
    reference, lm = causal_lm(kind)
    config = configuration(lm)
    models = build_models(config)
    models = dataclasses.replace(models, text_encoder=lm.clone(length=LENGTH, null_ids=(BOS,)))
    net = torch_text_backbones.FuseDiT(channels=CHANNELS, text_width=lm.dim, **SIZES)
    net = parity.randomise(net)
    rng = np.random.default_rng(9)
    shift, scale = rng.normal(size=CHANNELS), rng.uniform(0.5, 2.0, CHANNELS)
    statistics = {"mean": shift, "var": scale**-2.0 - LATENT_EPSILON}

    frozen = load_text_encoder(parity.state_of(reference), lm)
    variables = variables_of(net, models)
    state = create_state(
        {"backbone": variables.pop("params"), "tokenizer": {}},  # cached latents need no tokenizer
        {"latent_norm": {name: np.float32(value) for name, value in statistics.items()}},
        {
            "backbone": variables,
            "text_encoder": frozen,
            "null_condition": null_states(models.text_encoder, frozen),
        },
        build_optimizers(config),
    )
    state = jax.tree.map(jnp.asarray, state)
    step = parity.quick_jit(
        make_train_step(
            models, build_objective(config), build_optimizers(config), ema_decay=config.ema_decay
        )
    )
    of_channels = (torch.tensor(np.float32(v))[:, None, None] for v in (shift, scale))
    trainer = Trainer(net, reference, *of_channels, config)
    ids, mask = captions(LENGTH, 5, 2, 9)
    for index in range(STEPS):
        draws = draw(index)
        expected = trainer.step(draws, ids, mask)
        grid = np.maximum(np.ceil((1 - draws["u"]) * 1000), 1) / 1000
        batch = {
            "latent_mean": draws["mean"], "latent_std": draws["std"], "caption_ids": ids,
            "caption_length": mask.sum(1).astype(np.int32),
        }  # fmt: skip
        time = (3 * grid / (1 + 2 * grid)).astype(np.float32)
        ours = Draws(draws["posterior"], time, draws["noise"], draws["dropped"])
        state, metrics = step(state, batch, ours)
        for name, value in expected.items():
            tolerance = 1e-4 if index == 0 else 1e-3
            parity.assert_close(metrics[name], value, f"{name}, step {index}", tolerance)
    for what, found, theirs in (
        ("weights", state.params["backbone"], trainer.net),
        ("average", state.ema["params"], trainer.ema),
    ):
        wanted = variables_of(theirs, models)["params"]
        flat, expected = (dict(jax.tree_util.tree_leaves_with_path(t)) for t in (found, wanted))
        for path, value in expected.items():
            parity.assert_close(flat[path], value, f"{what} {path}", 1e-3)
