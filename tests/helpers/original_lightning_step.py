"""The original's SiT with a LightningDiT in its place: the model and its loss, nothing else.

REPA-E's loop calls `SiT.forward`, which normalizes, interpolates, projects and computes the losses.
Here that code runs a LightningDiT's blocks, and its cosine loss joins the denoising loss.
"""

import functools

import numpy as np
import original_networks as original
import torch
import torch_lightningdit
from parity import randomise
from torch.nn import functional

from repae_jax.interop import tables
from repae_jax.interop.lightningdit import lightningdit_rules
from repae_jax.interop.sit import sit_rules
from repae_jax.models.backbones.lightningdit import LightningDiT
from repae_jax.models.conditioning.class_label import ClassLabel
from repae_jax.models.projectors import MLP

BACKBONE = LightningDiT(
    latent_size=original.LATENT_SIZE,
    latent_channels=original.LATENT_CHANNELS,
    conditioner=ClassLabel(original.NUM_CLASSES),
    teacher_dims=original.TEACHER_DIMS,
    projector=MLP(original.SIT["projector_dim"]),
    **{name: value for name, value in original.SIT.items() if name != "projector_dim"},
)


class Block(torch_lightningdit.Block):
    """A block that knows its rotation, as SiT's loop over blocks passes none."""

    def forward(self, x, condition):
        grid, head = int(x.shape[1] ** 0.5), x.shape[-1] // self.attn.heads
        return super().forward(x, condition, torch_lightningdit.Rotary(grid, head))


def make_model(seed: int) -> torch.nn.Module:
    """The original's small SiT with a LightningDiT's blocks, all weights random."""
    model = original.make_sit(seed)
    width, heads = original.SIT["hidden_size"], original.SIT["num_heads"]
    options = (width, heads, False, True, True, True)
    model.blocks = torch.nn.ModuleList(Block(*options) for _ in model.blocks)
    features = original.SIT["patch_size"] ** 2 * original.LATENT_CHANNELS
    model.final_layer = torch_lightningdit.FinalLayer(width, features, True)
    for part in (model.blocks, model.final_layer):
        randomise(part, seed + 1)
        for norm in part.modules():
            if isinstance(norm, torch_lightningdit.RMSNorm):
                norm.weight.data += 1.0
    # Classes in place of instances' methods, since the loop copies the model.
    model.__class__, model.t_embedder.__class__ = _classes()
    model.bn.__class__ = recording_norm()
    return model


@functools.cache
def recording_norm():
    """The class of a BatchNorm that keeps its last output."""

    class RecordingNorm(torch.nn.BatchNorm2d):
        def forward(self, x):
            self.last = super().forward(x)
            return self.last

    return RecordingNorm


@functools.cache
def _classes():
    sit = original.modules().sit

    class ReversedTime(sit.TimestepEmbedder):
        def forward(self, t):
            return super().forward(1 - t)

    class Model(sit.SiT):
        def unpatchify(self, x, patch_size=None):
            return -super().unpatchify(x, patch_size)

        def forward(self, x, y, zs, loss_kwargs, time_input=None, noises=None):
            out = super().forward(x, y, zs, loss_kwargs, time_input, noises)
            normalized, self.bn.last = self.bn.last, None
            if not loss_kwargs["align_only"]:
                _, _, d_alpha, d_sigma = self.interpolant(
                    out["time_input"], path_type=loss_kwargs["path_type"]
                )
                target = d_alpha * normalized + d_sigma * out["noises"]
                cosine = functional.cosine_similarity(out["model_output"], target, dim=1)
                apart = sit.mean_flat(1 - cosine)
                out["denoising_loss"] = out["denoising_loss"] + apart
            return out

    return Model, ReversedTime


def load_lightningdit(tensors, model: LightningDiT) -> dict:
    """The variables of its state dict, those of heads and latent statistics included."""
    others = ("params/projectors_", "batch_stats/")
    heads = [rule for rule in sit_rules(model.patch_size) if rule.ours.startswith(others)]
    rules = [*lightningdit_rules(model.patch_size), *heads]
    given = {name: array for name, array in tensors.items() if name != "bn.num_batches_tracked"}
    return tables.unflatten(tables.to_ours(rules, {n: np.asarray(a) for n, a in given.items()}))
