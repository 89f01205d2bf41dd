"""The original's arguments and published sizes as configurations, and these as arguments."""

import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from sits import sit_of

from repae_jax.config import base
from repae_jax.errors import UserError
from repae_jax.interop.original import sit_part
from repae_jax.models.backbones.sit import SIT_CONFIGS
from repae_jax.runs.original_args import args_from_config, config_from_args
from repae_jax.runs.original_import import bare_checkpoint, config_of

ARGS = dict(  # a run of the original's train_repae.py, as its args.json has it
    output_dir="exps", exp_name="sdvae", model="SiT-XL/2", num_classes=1000, encoder_depth=8,
    qk_norm=False, bn_momentum=0.1, resolution=256, batch_size=256, mixed_precision="fp16",
    max_train_steps=400000, checkpointing_steps=50000, learning_rate=1e-4, adam_beta1=0.9,
    adam_beta2=0.999, adam_weight_decay=0.0, adam_epsilon=1e-08, max_grad_norm=1.0, seed=0,
    path_type="linear", prediction="v", cfg_prob=0.1, enc_type="dinov2-vit-b", proj_coeff=0.5,
    weighting="uniform", vae="f8d4", vae_learning_rate=1e-4, disc_learning_rate=1e-4,
    vae_align_proj_coeff=1.5,
)  # fmt: skip


def test_arguments_become_the_published_configuration():
    config = config_from_args(ARGS, "repae", source="X")
    assert (config.backbone.arch, config.tokenizer.arch, config.data.resolution) == (
        "SiT-XL/2",
        "f8d4",
        256,
    )
    assert config.teachers.dinov2_b.arch == "dinov2-b"
    assert set(config.train) == {"backbone", "tokenizer", "discriminator"}
    changed = ARGS | {
        "enc_type": "mocov3-vit-l,clip-vit-L", "cfg_prob": 0.0, "path_type": "cosine",
        "vae_learning_rate": 2e-5, "weighting": "lognormal", "adam_beta2": 0.95, "qk_norm": True,
    }  # fmt: skip
    config = config_from_args(changed, "repae", source="X")
    assert [entry.arch for entry in config.teachers.values()] == ["mocov3-l", "clip-l"]
    assert [entry.preprocessing for entry in config.teachers.values()] == ["imagenet", "clip"]
    assert (config.condition.drop, config.objective.interpolant) == (0.0, "cosine")
    assert config.optimizer.tokenizer.learning_rate == 2e-5
    assert config.optimizer.backbone.learning_rate == 1e-4
    assert {config.optimizer[name].b2 for name in config.optimizer} == {0.95}
    assert (config.time.weighting, config.backbone.qk_norm) == ("lognormal", True)
    # REPA's train.py never hands --cfg-prob to the SiT, whose dropout stays 0.1
    assert config_from_args(ARGS | {"cfg_prob": 0.0}, "repa", source="X").condition.drop == 0.1
    frozen = ARGS | {"model": "SiT-XL/1", "vae": "f16d32", "vae_ckpt": "pretrained/x.pt"}
    frozen = config_from_args(frozen, "ldm", source="X")
    assert (frozen.tokenizer.weights, frozen.name) == ("pretrained/x.pt", "sdvae")
    assert tuple(frozen.train) == ("backbone",)
    assert frozen.objective.latent_norm == "fixed"


def test_arguments_and_configuration_are_each_others_inverse():
    config = config_from_args(ARGS, "repae", source="X")
    args = args_from_config(config)
    del args["repae_jax"]
    args["mixed_precision"] = "fp16"
    assert {key: value for key, value in args.items() if key in ARGS} == {
        key: value for key, value in ARGS.items() if key in args
    }
    assert set(ARGS) - set(args) == {"output_dir"}
    custom = base()
    custom.backbone.depth = 3
    assert isinstance(custom, ConfigDict)
    assert config_from_args(args_from_config(custom), "repae", source="X").backbone.depth == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "SiT-H/3"}, "'model' is 'SiT-H/3'"),
        ({"vae": "f4"}, "'vae' is 'f4'"),
        ({"enc_type": "vicreg-vit-b"}, "teacher 'vicreg-vit-b'"),
        ({"enc_type": "dinov2-vit-b.pth"}, "unknown teacher 'dinov2-vit-b.pth'.*, dinov2-vit-b,"),
    ],
)
def test_unknown_architectures_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        config_from_args(ARGS | changes, "repae", source="X")


def test_a_published_size_needs_no_configuration():
    sit = sit_of(
        latent_size=32, latent_channels=4, num_classes=1000, teacher_dims=(768,),
        **SIT_CONFIGS["SiT-XL/2"],
    )  # fmt: skip
    shapes = sit_part(sit, statistics=False).shapes
    blank = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    config = config_of(bare_checkpoint(blank), source="last.pt")
    assert (config.backbone.arch, config.tokenizer.arch, config.data.resolution) == (
        "SiT-XL/2",
        "f8d4",
        256,
    )
    assert [entry.arch for entry in config.teachers.values()] == ["dinov2-b"]
    assert (config.data.num_classes, tuple(config.train)) == (1000, ("backbone",))


def test_a_teachers_name_is_none_of_the_originals():
    config = tiny.get_config()
    config.teachers["clip-l"] = config.teachers.small.copy_and_resolve_references()
    config.teachers.small.arch = "clip-l"
    assert args_from_config(config)["enc_type"] == "clip-l,clip-vit-L"
