"""Checkpoints of fuse-dit's trainings, small ones, and what their tests share."""

import json
import pathlib

import numpy as np
import original_text
import parity
import pytest
import torch
import torch_text_backbones
from foreign_text import text_config
from saved import saved_content

from repae_jax.interop import fuse_dit_folder

SIDE, CHANNELS, STEPS, STATES = 8, 2, 3, fuse_dit_folder.STATES
SIZES = dict(
    hidden_size=32, depth=2, num_heads=4, kv_heads=2, head_width=8, mlp_width=48
)  # fmt: skip
MODEL = dict(channels=CHANNELS, patch_size=2, text_length=32, text_width=24, **SIZES)
BASE = {
    "_name_or_path": "google/gemma-2b", "model_type": "gemma", "hidden_size": 32, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
    "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
    "attention_bias": False, "num_hidden_layers": 18, "vocab_size": 256_000,
}  # fmt: skip
CONFIG = {  # as transformers writes it, without the class's defaults
    "model_type": "DiT", "base_config": BASE, "dit_hidden_size": 32, "dit_num_hidden_layers": 2,
    "in_channels": CHANNELS, "out_channels": CHANNELS, "pos_embed": "ape", "qk_norm": True,
    "text_hidden_size": 24, "transformers_version": "4.43.3",
}  # fmt: skip


def make(source, seed):
    """torch's network with random weights, or the original's, whose absence skips the test."""
    if source == "original":
        if not original_text.FUSE_DIT:
            pytest.skip(original_text.REASONS["fusedit"])
        return parity.randomise(original_text.fuse_dit(**MODEL), seed=seed)
    return parity.randomise(torch_text_backbones.FuseDiT(**MODEL), seed=seed)


def predict(model, x, t, tokens, mask):
    """The prediction of their model, NCHW; t = 1 is noise."""
    mask = torch.tensor(mask)
    mask = mask if isinstance(model, torch_text_backbones.FuseDiT) else mask.long()
    return model(parity.to_nchw(x), 1000.0 * torch.tensor(t), torch.tensor(tokens), mask)


def inputs():
    """x (3, h, w, c), times, and captions of 32, 7 and 1 valid tokens."""
    tokens = parity.normal(3, 32, 24, seed=5)
    mask = np.arange(32) < np.array([32, 7, 1])[:, None]
    x = parity.normal(3, SIDE, SIDE, CHANNELS, seed=1)
    return x, np.array([0.01, 0.4, 1.0], np.float32), tokens, mask


def trained(source):
    """A model and its average, and the model's AdamW after some steps."""
    model, ema = (make(source, seed) for seed in (1, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    for _ in range(STEPS):
        predict(model, *inputs()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, ema, optimizer


def configuration(recipe="vanilla", **changes):
    """The configuration of a run with the model."""
    config = text_config("fusedit", "gemma", 24, recipe, **(SIZES | changes))
    config.text_encoder.weights = "somewhere"
    return config


def states_of_deepspeed(model, ema, optimizer):
    """The file of a step. DeepSpeed's AdamW counts the steps at the last parameter alone."""
    optimizer = optimizer.state_dict()
    states = optimizer["state"]
    for number, entry in states.items():
        entry["step"] = STEPS if number == len(states) - 1 else 0
    (group,) = optimizer["param_groups"]
    kept = ("lr", "betas", "eps", "weight_decay", "params")
    optimizer["param_groups"] = [{"bias_correction": True, **{k: group[k] for k in kept}}]
    return {
        "module": model.state_dict(), "buffer_names": ["patch_embed.pos_embed"],
        "optimizer": optimizer, "param_shapes": None,
        "lr_scheduler": {"last_batch_iteration": STEPS - 1},
        "sparse_tensor_module_names": set(), "skipped_steps": 0, "global_steps": STEPS,
        "global_samples": STEPS * 8, "dp_world_size": 1, "mp_world_size": 1,
        "ds_config": {"gradient_clipping": 1.0}, "ds_version": "0.15.1", "ema": ema.state_dict(),
    }  # fmt: skip


def write(folder, states, config=CONFIG, step=STEPS):
    """A checkpoint's folder; its path."""
    (folder / str(step)).mkdir(parents=True)
    torch.save(states, folder / str(step) / STATES)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "latest").write_text(str(step))
    return folder


def states(folder: pathlib.Path) -> dict:
    """What torch finds in the file of the step."""
    return saved_content(folder / str(STEPS) / STATES)
