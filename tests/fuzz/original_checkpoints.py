"""Targets: the original's training checkpoints; and a run to make them of."""

import argparse

import numpy as np
import tiny
from exported import load_sit

from fuzz.saving import convert, inspect, torch_save
from fuzz.target import Target, eighths
from repae_jax.interop.detect_format import detect


def small_config(recipe="repae"):
    """As few arrays as there can be."""
    config = tiny.get_config(recipe)
    config.tokenizer.multipliers = (1,)
    config.backbone.update(depth=1, patch_size=8)
    if "tokenizer" not in config.train:
        config.tokenizer.weights = "somewhere"
    config.discriminator.layers = 1
    return config


def sit_model():
    from repae_jax.runs.build import build_models

    return build_models(small_config()).backbone


def random_state(config):
    """A state of multiples of 1/8 at step 3; nothing is compiled."""
    import jax

    from repae_jax.runs.build import build_models, state_template

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = eighths(state_template(config, build_models(config), sharding))
    count = np.asarray(3, np.int32)
    adam = jax.tree.map(lambda a: a if a.ndim else count, state.opt_state)
    return state.replace(step=count, opt_state=adam)


def make_run(folder, recipe="repae", *, config=None):
    """A work directory of step 3."""
    from repae_jax.runs.checkpoints import Checkpoints
    from repae_jax.runs.workdir import claim

    config = small_config(recipe) if config is None else config
    claim(folder, config)
    checkpoints = Checkpoints(folder)
    checkpoints.save(3, random_state(config), {"global_next_index": 24})
    checkpoints.close()


def _checkpoint(folder):
    """As the original's train_repae.py writes it, with args.json beside it."""
    import shutil

    from repae_jax.runs.original_export import export_run

    make_run(folder / "run")
    export_run(folder / "run", folder / "exp" / "checkpoints" / "0000003.pt", progress=False)
    shutil.rmtree(folder / "run")


_ARGUMENTS = {
    "seed": 0, "batch_size": 8, "num_classes": 10, "resolution": 256, "encoder_depth": 1,
    "qk_norm": False, "cfg_prob": 0.1, "bn_momentum": 0.1, "path_type": "linear",
    "proj_coeff": 0.5, "vae_align_proj_coeff": 1.5, "weighting": "uniform",
    "learning_rate": 1e-4, "vae_learning_rate": 1e-4, "disc_learning_rate": 1e-4,
    "max_train_steps": 4, "checkpointing_steps": 2, "sampling_steps": 1000,
    "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "adam_weight_decay": 0.0,
    "max_grad_norm": 1.0, "model": "SiT-B/2", "vae": "f8d4", "enc_type": "dinov2-vit-b",
    "mixed_precision": "no", "exp_name": "x", "vae_ckpt": "vae.pt", "prediction": "v",
}  # fmt: skip


def _foreign_args_file(folder):
    """A checkpoint of another's run, of one tensor, which has no configuration of ours in it."""
    model = {
        "bn.running_mean": np.zeros(4, np.float32),
        "x_embedder.proj.weight": np.zeros((2, 4, 2, 2), np.float32),
    }
    content = {"model": model, "ema": {}, "opt": {}, "steps": 3}
    torch_save(folder / "args.pt", {**content, "args": argparse.Namespace(**_ARGUMENTS)})


def _read_foreign_args(folder):
    """The configuration that another's arguments give, checked as `convert` checks it."""
    from repae_jax.config.validate import validate
    from repae_jax.runs.original_import import config_of

    config = config_of(detect(folder / "args.pt").content, source="args.pt")
    validate(config)
    return config.to_dict()


def _second_stage(folder):
    """As train_ldm_only.py writes it: no VAE."""
    import torch

    _checkpoint(folder)
    path = folder / "exp" / "checkpoints" / "0000003.pt"
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, weights_only=True)
    torch.save({key: content[key] for key in ("model", "ema", "opt", "steps", "args")}, path)


def _read_checkpoint(folder):
    """`inspect`, then everything of `convert` but the writing of the run."""
    from repae_jax.runs.inspection import describe
    from repae_jax.runs.original_import import config_of, import_run

    path = folder / "exp"
    describe(path)
    found = detect(path)
    config = config_of(found.content, source=str(found.path))
    state = import_run(
        found.content, folder / "imported", config, source=str(found.path), progress=False
    )
    return {"format": found.format, "state": state}


def _read_second_stage(folder):
    from repae_jax.runs.inspection import describe
    from repae_jax.runs.original_import import config_of

    path = folder / "exp"
    describe(path)
    found = detect(path)
    config = config_of(found.content, source=str(found.path))
    tensors = found.content["ema"]
    return {
        "format": found.format,
        "ema": load_sit(tensors, sit_model()),
        "classes": config.data.num_classes,
    }


_BACKBONES = {
    "lightningdit": {},
    "ditdh": dict(head_size=16, head_depth=1, head_heads=2),
    "ddt": dict(head_size=16, head_depth=1, head_heads=2, time_tokens=1, class_tokens=1),
    "jit": dict(bottleneck=4, context_tokens=1, context_start=0),
}


def _other_config(family):
    """As few arrays as a backbone of another code can have."""
    from repae_jax.config import backbone, tokenizer

    config = small_config("vanilla")
    config.backbone = backbone(
        family=family, patch_size=8, hidden_size=16, depth=1, num_heads=2, encoder_depth=1,
        **_BACKBONES[family],
    )  # fmt: skip
    if family == "jit":
        config.tokenizer = tokenizer(family="pixels")
        config.objective.update(latent_norm="fixed", least_time=0.05)
    return config


def _other_checkpoint(family):
    """A checkpoint of another code, as that code writes it."""

    def make(folder):
        import shutil

        from repae_jax.runs.original_export import export_run

        make_run(folder / "run", config=_other_config(family))
        export_run(folder / "run", folder / "x.pt", progress=False)
        shutil.rmtree(folder / "run")

    return make


def _read_other_checkpoint(family):
    def read(folder):
        from repae_jax.interop.original import import_part
        from repae_jax.runs.build import build_models
        from repae_jax.runs.foreign_backbones import FOREIGN
        from repae_jax.runs.inspection import describe
        from repae_jax.runs.original_import import config_of

        path = folder / "x.pt"
        describe(path)
        found = detect(path)
        config = config_of(found.content, source=str(path))
        part = FOREIGN[family].part(build_models(_other_config(family)).backbone)
        networks = {key: found.content[key] for key in ("model", "ema")}
        return {
            "format": found.format,
            "classes": config.data.num_classes,
            **{key: import_part(a, part, source=str(path)) for key, a in networks.items()},
        }

    return read


_FOLLOWS_ARGS = r"args/.*"
CHECKPOINT = "exp/checkpoints/0000003.pt"


TARGETS = (
    Target("checkpoint of REPA-E", _checkpoint, _read_checkpoint, files=r".*\.pt",
           follows=_FOLLOWS_ARGS, words=inspect("exp")),
    Target("checkpoint of the second stage", _second_stage, _read_second_stage, files=r".*\.pt",
           follows=_FOLLOWS_ARGS, words=convert("exp", "run", "--quiet")),
    Target("arguments of the original", _foreign_args_file, _read_foreign_args,
           follows=_FOLLOWS_ARGS, names="args/(exp_name|vae_ckpt|max_grad_norm)"),
    *(
        Target(f"checkpoint of {family}", _other_checkpoint(family),
               _read_other_checkpoint(family), files=r".*\.pt", follows=r"(args|config)/.*",
               words=inspect("x.pt"))
        for family in _BACKBONES
    ),
)  # fmt: skip
