"""The originals' trainings with their own code that saves and resumes, and what to compare them by.

REPA-E's come from a checkout in REPAE_ORIGINAL (see original_loop.py), REPA's own from one in
REPA_ORIGINAL. Of REPA too, what computes is the checkout's code, taken from the source.
"""

import argparse
import ast
import contextlib
import copy
import functools
import importlib.util
import os
import pathlib
from collections import OrderedDict
from collections.abc import Mapping
from unittest import mock

import original_loop as loop
import original_networks as original
import pytest
import torch
from checkouts import code_of, define, function_of, module_of
from parity import ORIGINAL, randomise

from repae_jax.config import apply_recipe, base, teacher
from repae_jax.models.networks import Models

REPA = os.environ.get("REPA_ORIGINAL")
NEEDS_ORIGINAL = pytest.mark.skipif(
    original.reason_to_skip() is not None, reason=str(original.reason_to_skip())
)
NEEDS_REPA = pytest.mark.skipif(
    not REPA or not importlib.util.find_spec("timm"),
    reason="set REPA_ORIGINAL to a checkout of sihyun-yu/REPA (its modules need timm)",
)

EMA_DECAY = 0.5  # the default, 0.9999, would leave next to no difference to the parameters
SAVES = "global_step % args.checkpointing_steps == 0 and global_step > 0"
RESUMES = "args.resume_step > 0"


def small_config(recipe: str = "repae", **vae):
    """The configuration of the networks in original_networks.py; `vae` are further keys."""
    config = base()
    config.ema_decay = EMA_DECAY
    config.batch_size = 4
    config.data.update(resolution=original.IMAGE_SIZE, num_classes=original.NUM_CLASSES)
    config.tokenizer.update(
        arch="", channels=original.VAE["ch"], multipliers=original.VAE_MULTIPLIERS,
        latent_channels=original.LATENT_CHANNELS, num_res_blocks=original.VAE["num_res_blocks"],
        attention_levels=(1,), **vae,
    )  # fmt: skip
    sizes = dict(original.SIT)
    config.projector.hidden = sizes.pop("projector_dim")
    config.backbone.update(arch="", **sizes)
    config.discriminator.filters = original.DISCRIMINATOR_FILTERS
    for number, dim in enumerate(original.TEACHER_DIMS):
        config.teachers[f"t{number}"] = teacher(
            patch_size=8, hidden_size=dim, depth=1, num_heads=2, preprocessing="native"
        )
    return apply_recipe(config, recipe)


class Training(loop.Training):
    """The original's loop, with its own code to save a checkpoint and to resume from one.

    Args:
      script: `loop.REPAE` or `loop.LDM_ONLY`.
      networks: as in `loop.Training`.
      table_moves: leave the position table trainable, as the original does by accident.
    """

    def __init__(self, script: str, networks: Mapping, *, table_moves: bool = False):
        self._table_moves = table_moves
        args = loop.default_args(script, compile=False, checkpointing_steps=1)
        super().__init__(script, args, networks, EMA_DECAY)
        self.scope["accelerator"].is_main_process = True
        self.scope["logger"] = mock.Mock()
        path = pathlib.Path(ORIGINAL) / script
        self._saves, self._resumes = (_conditional(path, test) for test in (SAVES, RESUMES))

    def save(self, folder: pathlib.Path) -> pathlib.Path:
        """Write `folder`/checkpoints/{step}.pt as the script does."""
        return _save(self._saves, self.scope, folder)

    def resume(self, path: pathlib.Path) -> "Training":
        """Go on from `path` (EXP/checkpoints/{step}.pt) as the script does; returns itself."""
        args, experiment = self.scope["args"], str(path.parent.parent)
        # one of the scripts reads an argument here that its parser does not have
        folders = dict.fromkeys(("cont_dir", "continue_train_exp_dir"), experiment)
        _resume(self._resumes, self.scope, args, path, **folders)
        return self

    def _requires_grad(self, function, model, flag=True):
        if self._table_moves:
            function(model, flag)
        else:
            super()._requires_grad(function, model, flag)


class RepaTraining:
    """The same of REPA's train.py, on latents that are given."""

    def __init__(self, model: torch.nn.Module):
        path = pathlib.Path(REPA) / "train.py"
        args = repa_args(checkpointing_steps=1)
        scope = {"torch": torch, "OrderedDict": OrderedDict}
        scope |= define(path, ("update_ema", "requires_grad"), scope)
        ema = copy.deepcopy(model)
        scope["requires_grad"](ema, False)
        loss = repa_module("loss.py").SILoss(
            prediction=args.prediction, path_type=args.path_type, weighting=args.weighting
        )
        self.scope = scope | {
            "os": os,
            "args": args,
            "model": model,
            "ema": ema,
            "loss_fn": loss,
            "accelerator": loop.PlainAccelerator(),
            "progress_bar": mock.Mock(),
            "logger": mock.Mock(),
            "global_step": 0,
        }
        self.scope["accelerator"].is_main_process = True
        self.scope["update_ema"] = functools.partial(scope["update_ema"], decay=EMA_DECAY)
        main = function_of(path, "main")
        optimizer = [node for node in main.body if "torch.optim.AdamW" in ast.unparse(node)]
        exec(code_of(optimizer, path), self.scope)
        self._step = code_of(_repa_step(main), path)
        self._saves, self._resumes = (_conditional(path, test) for test in (SAVES, RESUMES))

    def step(self, latents, labels, zs, draws) -> dict[str, float]:
        """One pass of the loop's body from `accumulate` on; returns losses and gradient norm.

        Args:
          latents: (B, 4, h, w), scaled.
          labels: (B,).
          zs: teachers' tokens, (B, N, D_k) each.
          draws: as in `loop.Training.step`.
        """
        self.scope.update(x=latents, labels=labels, zs=zs)
        self.scope["model"].train()
        with self._wrapped(), loop._injected(draws):
            exec(self._step, self.scope)
        names = {"denoising_loss": "loss_mean", "proj_loss": "proj_loss_mean"}
        names |= {"sit_loss": "loss", "grad_norm_sit": "grad_norm"}
        return {ours: self.scope[theirs].item() for ours, theirs in names.items()}

    def save(self, folder: pathlib.Path) -> pathlib.Path:
        """Write `folder`/checkpoints/{step}.pt as the script does."""
        with self._wrapped():
            return _save(self._saves, self.scope, folder)

    def resume(self, path: pathlib.Path) -> "RepaTraining":
        """Go on from `path` (OUTPUT/NAME/checkpoints/{step}.pt) as the script does."""
        output, name = path.parent.parent.parent, path.parent.parent.name
        args = self.scope["args"]
        _resume(self._resumes, self.scope, args, path, output_dir=str(output), exp_name=name)
        return self

    @contextlib.contextmanager
    def _wrapped(self):
        """The model as `accelerator.prepare` leaves it on several GPUs, which the loop expects."""
        model = self.scope["model"]
        self.scope["model"] = _Wrapped(model)
        yield
        self.scope["model"] = model


class _Wrapped(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def networks_like(models: Models) -> dict[str, torch.nn.Module]:
    """The original's modules with the dimensions of ours, under the names of its loop."""
    sit, losses = models.backbone, original.modules().losses
    assert sit.mlp_ratio == 4.0
    model = original.modules().sit.SiT(
        input_size=sit.latent_size, patch_size=sit.patch_size, in_channels=sit.latent_channels,
        hidden_size=sit.hidden_size, decoder_hidden_size=sit.hidden_size, depth=sit.depth,
        num_heads=sit.num_heads, encoder_depth=sit.encoder_depth,
        num_classes=sit.conditioner.num_classes, z_dims=list(sit.teacher_dims),
        class_dropout_prob=0.1 if sit.conditioner.null_class else 0.0, fused_attn=True,
        projector_dim=sit.projector.hidden, qk_norm=sit.qk_norm,
    )  # fmt: skip
    dims = dict(ndf=models.discriminator.filters, n_layers=models.discriminator.num_layers)
    full = losses.NLayerDiscriminator
    with mock.patch.object(
        losses, "NLayerDiscriminator", lambda **given: full(**{**given, **dims})
    ):
        loss = original.make_vae_loss(seed=0)
    return {"model": model, "vae": _vae_like(models.tokenizer), "vae_loss_fn": loss}


def _vae_like(vae):
    """The original's autoencoder, with what it has no argument for put into its module."""
    autoencoder = original.modules().autoencoder
    assert vae.attention_levels == ()
    sizes = dict(ch=vae.channels, num_res_blocks=vae.num_res_blocks, attn_resolutions=())
    changes = {
        "Encoder": functools.partial(autoencoder.Encoder, **sizes),
        "Decoder": functools.partial(autoencoder.Decoder, **sizes),
        "Normalize": functools.partial(autoencoder.Normalize, num_groups=vae.groups),
    }
    if not vae.middle_attention:
        changes["AttnBlock"] = torch.nn.Identity
    with mock.patch.multiple(autoencoder, **changes):
        return autoencoder.AutoencoderKL(embed_dim=vae.latent_channels, ch_mult=vae.multipliers)


class NullClass:
    """A model for the original's samplers, which know no null class but 1000."""

    def __init__(self, model: torch.nn.Module):
        self._model = model

    def inference(self, x, t, y):
        """The velocity."""
        return self._model.inference(x, t, torch.where(y == 1000, self._model.num_classes, y))


def repa_args(**changes) -> argparse.Namespace:
    """The defaults of REPA's command line, for the published size."""
    parse = define(pathlib.Path(REPA) / "train.py", ("parse_args",), {"argparse": argparse})
    args = parse["parse_args"](["--exp-name", "none", "--model", "SiT-XL/2"])
    return argparse.Namespace(**{**vars(args), **changes})


@functools.cache
def repa_module(path: str):
    """One file of REPA's checkout as a module."""
    file = pathlib.Path(REPA) / path
    return module_of(file, f"repa_original_{file.stem}")


def make_repa_sit(seed: int) -> torch.nn.Module:
    """REPA's SiT, small and with every weight random; it knows no latent statistics."""
    model = repa_module("models/sit.py").SiT(
        input_size=original.LATENT_SIZE,
        in_channels=original.LATENT_CHANNELS,
        decoder_hidden_size=original.SIT["hidden_size"],
        num_classes=original.NUM_CLASSES,
        use_cfg=True,
        z_dims=list(original.TEACHER_DIMS),
        fused_attn=True,
        qk_norm=False,
        **original.SIT,
    )
    return randomise(model, seed)


def repa_unified(tensors: Mapping[str, torch.Tensor], encoder_depth: int) -> dict:
    """REPA's first names of tensors as those of today, by its own function."""
    rename = define(pathlib.Path(REPA) / "utils.py", ("load_legacy_checkpoints",), {})
    return rename["load_legacy_checkpoints"](tensors, encoder_depth)


def _save(code, scope, folder):
    scope["checkpoint_dir"] = folder / "checkpoints"
    scope["checkpoint_dir"].mkdir(parents=True)
    exec(code, scope)
    return folder / "checkpoints" / f"{scope['global_step']:07d}.pt"


def _resume(code, scope, args, path, **folders):
    """Run the script's resuming with the arguments that lead to `path`, then put back its own."""
    resuming = {**vars(args), **folders, "resume_step": int(path.stem)}
    scope["args"] = argparse.Namespace(**resuming)
    with torch.serialization.safe_globals([argparse.Namespace]):  # which torch 2.6 asks for
        exec(code, scope)
    scope["args"] = args


def _conditional(path, test):
    """The script's `if` with this condition, as code."""
    (found,) = (
        n
        for n in ast.walk(function_of(path, "main"))
        if isinstance(n, ast.If) and ast.unparse(n.test) == test
    )
    return code_of([found], path)


def _repa_step(main):
    """The statements of the loop's body from the loss to the count of steps."""
    (body,) = (
        node.body
        for node in ast.walk(main)
        if isinstance(node, ast.For) and ast.unparse(node.iter) == "train_dataloader"
    )
    text = [ast.unparse(node) for node in body]
    (start,) = (i for i, line in enumerate(text) if line.startswith("with accelerator.accumulate"))
    (end,) = (i for i, line in enumerate(text) if line.startswith("if accelerator.sync_gradients:"))
    return body[start : end + 1]
