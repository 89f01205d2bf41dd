"""Published sizes and default arguments: the originals' tensors, names and values."""

import functools
from unittest import mock

import original_exchange as exchange
import original_loop as loop
import original_networks as original
import pytest
import torch
from original_exchange import (
    NEEDS_ORIGINAL,
    NEEDS_REPA,
)

from repae_jax.config import base, teacher
from repae_jax.interop.original import sit_part, vae_part
from repae_jax.runs.build import build_models
from repae_jax.runs.original_args import args_from_config, config_from_args


def assert_same_tensors(part, module):
    """Names, order and shapes of a state dict, its counters, and what an optimizer numbers."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    counters = [name for name in shapes if name.endswith("num_batches_tracked")]
    assert list(part.counters) == counters
    for name in counters:
        del shapes[name]
    assert list(part.shapes.items()) == list(shapes.items())
    assert list(part.slots) == [name for name, _ in module.named_parameters()]


def published_models(arch, vae="f8d4", qk_norm=False):
    """Our networks, and the keywords that the originals' scripts give their SiT."""
    config = base()
    config.backbone.update(arch=arch, qk_norm=qk_norm)
    config.tokenizer.arch = vae
    config.teachers.dinov2 = teacher("dinov2-b")
    models = build_models(config)
    keywords = {"input_size": models.backbone.latent_size, "num_classes": 1000, "z_dims": [768]}
    return models, {**keywords, "encoder_depth": 8, "fused_attn": True, "qk_norm": qk_norm}


@NEEDS_ORIGINAL
@pytest.mark.parametrize(
    ("arch", "vae", "qk_norm"), [("SiT-XL/2", "f8d4", False), ("SiT-XL/1", "f16d32", True)]
)
def test_published_sizes_have_the_originals_tensors(arch, vae, qk_norm):
    models, keywords = published_models(arch, vae, qk_norm)
    theirs = original.modules()
    # timm once had this default for the norm of queries and keys
    attention = functools.partial(theirs.sit.Attention, norm_layer=torch.nn.LayerNorm)
    with torch.device("meta"), mock.patch.object(theirs.sit, "Attention", attention):
        sit = theirs.sit.SiT_models[arch](
            in_channels=models.backbone.latent_channels, class_dropout_prob=0.1, **keywords
        )
        autoencoder = theirs.autoencoder.vae_models[vae]()
    assert_same_tensors(sit_part(models.backbone), sit)
    assert_same_tensors(vae_part(models.tokenizer), autoencoder)


@NEEDS_REPA
def test_published_sizes_have_repas_tensors():
    models, keywords = published_models("SiT-XL/2")
    with torch.device("meta"):
        sit = exchange.repa_module("models/sit.py").SiT_models["SiT-XL/2"](use_cfg=True, **keywords)
    assert_same_tensors(sit_part(models.backbone, statistics=False), sit)


@NEEDS_ORIGINAL
@pytest.mark.parametrize(("script", "kind"), [(loop.REPAE, "repae"), (loop.LDM_ONLY, "ldm")])
def test_the_originals_default_arguments_are_understood(script, kind):
    """And what we write as arguments are ones that the original has, with its values."""
    theirs = vars(loop.default_args(script))
    config = config_from_args(theirs, kind, source="X")
    assert (config.backbone.arch, config.tokenizer.arch) == (theirs["model"], theirs["vae"])
    ours = args_from_config(config)
    del ours["repae_jax"]
    assert ours.pop("mixed_precision") == "bf16"  # in place of fp16
    if kind == "repae":  # whose checkpoint holds its VAE, so that no file need be named
        assert ours.pop("vae_ckpt") == ""
    both = ours.keys() & theirs.keys()
    assert {name: ours[name] for name in both} == {name: theirs[name] for name in both}
    if kind == "repae":
        assert both == set(ours)


@NEEDS_REPA
def test_repas_default_arguments_are_understood():
    args = vars(exchange.repa_args())
    config = config_from_args(args, "repa", source="X")
    assert (config.backbone.arch, config.tokenizer.arch) == (args["model"], "f8d4")
    assert tuple(config.train) == ("backbone",)
    ours = args_from_config(config)
    for name in ours.keys() & args.keys() - {"exp_name", "mixed_precision"}:
        assert ours[name] == args[name], name
