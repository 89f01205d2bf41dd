"""The training loop of the LightningDiT's authors, and our step with its weights and its inputs.

What computes on their side are the statements of `do_train` in their train.py, which are taken from
the source at run time. Around them stand plain replacements: one process in place of accelerate and
DistributedDataParallel, and random numbers that are given.
"""

import ast
import copy
import functools
import pathlib
import types
from collections import OrderedDict
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import torch
import yaml
from checkouts import code_of, define, function_of
from ml_collections import ConfigDict
from original_lightningdit import ORIGINAL, original_transport
from parity import state_of, to_nchw

from repae_jax.interop import tables
from repae_jax.interop.lightningdit import ROTARY, lightningdit_rules
from repae_jax.models.backbones.base import headless_shapes
from repae_jax.models.batch_norm import normalize
from repae_jax.models.networks import Models
from repae_jax.runs.build import build_optimizers, latent_shape
from repae_jax.runs.state import TrainState, create_state
from repae_jax.training.noise import Draws

# The configuration of the run of 64 epochs, which `defaults.lightningdit256` is ours of.
PUBLISHED = "configs/reproductions/lightningdit_xl_vavae_f16d32_64ep_cfg.yaml"


class Training:
    """Their loss, optimizer, moving average and loop, one step at a time.

    The configuration is `PUBLISHED`. The caller normalizes the latents and drops the labels.

    Args:
      model: an `original_lightningdit`, which is trained in place.
      ema_decay: in place of their default, by which a few steps move next to nothing.
      autocast: run the model in bfloat16 as accelerate's mixed precision does.
    """

    def __init__(self, model, *, ema_decay: float | None = None, autocast: bool = False):
        checkout = pathlib.Path(ORIGINAL)
        script = checkout / "train.py"
        model.y_embedder.dropout_prob = 0.0  # labels come dropped
        self.model, self.ema = model, copy.deepcopy(model)
        self.scope = {
            "torch": torch,
            "OrderedDict": OrderedDict,
            "create_transport": original_transport().create_transport,
            "train_config": yaml.safe_load((checkout / PUBLISHED).read_text()),
            "accelerator": types.SimpleNamespace(
                mixed_precision="bf16" if autocast else "no",
                backward=lambda loss: loss.backward(),
            ),
            "device": model.pos_embed.device,
            "model": _Wrapped(model, autocast),
            "ema": self.ema,
        }
        define(script, ("update_ema", "requires_grad"), self.scope)
        preparation, self._step = _loop(script)
        exec(preparation, self.scope)
        if ema_decay is not None:
            update_ema = self.scope["update_ema"]
            self.scope["update_ema"] = functools.partial(update_ema, decay=ema_decay)

    def step(self, latents, labels, time, noise) -> dict[str, float]:
        """One pass of the loop's body; returns the loss that it logs, the other term, and both.

        Args:
          latents: normalized, (B, c, h, w).
          labels: (B,), the null class where they are dropped.
          time: (B,), of their direction: 1 for the data.
          noise: (B, c, h, w).
        """
        self.scope["transport"].sample = lambda latents, *_: (time, noise, latents)
        self.scope.update(x=latents, y=labels, running_loss=0.0)
        exec(self._step, self.scope)
        return {
            "denoising_loss": self.scope["running_loss"],
            "cosine_loss": self.scope["loss_dict"]["cos_loss"].mean().item(),
            "sit_loss": self.scope["loss"].item(),
        }

    def gradient_norm(self) -> float:
        """The global norm of the last step's gradients, which their loop does not take."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients).item()


class _Wrapped(torch.nn.Module):
    """What the loop sees of DistributedDataParallel and accelerate around the model."""

    def __init__(self, module, autocast):
        super().__init__()
        self.module, self._autocast = module, autocast

    def forward(self, x, t, y):
        if not self._autocast:
            return self.module(x, t, y=y)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return self.module(x, t, y=y).float()


def _loop(script):
    """Code of `do_train`: that which prepares loss, optimizer and average, and that of a step."""
    function = function_of(script, "do_train")
    starts = ("requires_grad(ema", "transport =", "opt =", "update_ema(ema", "model.train()",
              "ema.eval()")  # fmt: skip
    preparation = [node for node in function.body if ast.unparse(node).startswith(starts)]
    assert len(preparation) == len(starts), [ast.unparse(node) for node in preparation]
    (body,) = (
        node.body
        for node in ast.walk(function)
        if isinstance(node, ast.For) and ast.unparse(node.iter) == "loader"
    )
    # Behind the update of the average and the sum of the losses.
    (end,) = (i for i, node in enumerate(body) if ast.unparse(node) == "log_steps += 1")
    return code_of(preparation, script), code_of(body[:end], script)


def our_state(model: torch.nn.Module, config: ConfigDict, models: Models) -> TrainState:
    """The state of our `models` at their model's weights."""
    rules = lightningdit_rules(models.backbone.patch_size)
    shapes = headless_shapes(models.backbone)
    variables = tables.load(rules, state_of(model), shapes, ignore=ROTARY)
    state = create_state(
        {"backbone": variables["params"], "tokenizer": {}},  # of which cached latents use nothing
        {"latent_norm": latent_statistics(models)},
        {"backbone": {"constants": variables["constants"]}},
        build_optimizers(config),
    )
    return jax.tree.map(jnp.asarray, state)


def latent_statistics(models: Models) -> dict[str, np.ndarray]:
    """Random means and variances of the latents' channels."""
    rng, channels = np.random.default_rng(0), models.backbone.latent_channels
    statistics = {"mean": rng.normal(size=channels), "var": rng.uniform(0.5, 2.0, channels)}
    return {name: array.astype(np.float32) for name, array in statistics.items()}


def make_batch(config: ConfigDict, models: Models, seed: int = 0) -> tuple[dict, Draws]:
    """A batch of cached latents and its draws, in our layout; the first label is dropped."""
    rng = np.random.default_rng(seed)
    count = config.batch_size
    shape = (count, *latent_shape(config, models))

    def normal():
        return rng.normal(size=shape).astype(np.float32)

    batch = {
        "latent_mean": normal(),
        "latent_std": rng.uniform(0.1, 0.5, shape).astype(np.float32),
        "label": rng.integers(0, config.data.num_classes, count).astype(np.int32),
    }
    time = (1 / (1 + np.exp(-rng.normal(size=count)))).astype(np.float32)
    return batch, Draws(normal(), time, normal(), np.arange(count) == 0)


def their_inputs(
    batch: Mapping, draws: Draws, statistics: Mapping, null: int, device: str = "cpu"
) -> tuple[torch.Tensor, ...]:
    """The arguments of `Training.step` for a batch of ours."""
    latents = batch["latent_mean"] + batch["latent_std"] * draws.posterior_noise
    latents = normalize(latents, statistics["mean"], statistics["var"])
    labels = np.where(draws.condition_drop, null, batch["label"])
    given = (
        to_nchw(latents), torch.tensor(labels).long(), torch.tensor(1 - draws.time),
        to_nchw(draws.noise),
    )  # fmt: skip
    return tuple(tensor.to(device) for tensor in given)
