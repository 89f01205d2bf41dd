"""Perception Encoder by its authors' own code (facebookresearch/perception_models)."""

import dataclasses
import functools
import importlib
import os
import sys
import types

import pytest
import torch

ROOT = os.environ.get("PERCEPTION_ORIGINAL")
NEEDS_ORIGINAL = pytest.mark.skipif(
    not ROOT, reason="set PERCEPTION_ORIGINAL to a checkout of facebookresearch/perception_models"
)


@functools.cache
def _modules():
    """Its modules `pe` and `config`; the packages above them import nothing."""
    before = set(sys.modules)
    for name in ("core", "core.vision_encoder"):
        package = types.ModuleType(name)
        package.__path__ = [os.path.join(ROOT, *name.split("."))]
        sys.modules[name] = package
    try:
        names = ("core.vision_encoder.pe", "core.vision_encoder.config")
        return tuple(importlib.import_module(name) for name in names)
    finally:
        for name in set(sys.modules) - before:
            if name.split(".")[0] == "core":
                del sys.modules[name]


def small_tower(published: str, text: bool, **sizes) -> tuple[torch.nn.Module, torch.nn.Module]:
    """(the module that is saved, its image tower) of a published configuration in small."""
    pe, configs = _modules()
    config = dataclasses.replace(configs.PE_VISION_CONFIG[published], **sizes)
    if not text:
        tower = pe.VisionTransformer(**dataclasses.asdict(config))
        return tower, tower
    words = dataclasses.replace(
        configs.PE_TEXT_CONFIG[published], width=8, heads=2, layers=3, vocab_size=7,
        context_length=5, output_dim=sizes["output_dim"],
    )  # fmt: skip
    module = pe.CLIP(config, words)
    for parameter in module.parameters():  # of the text tower some are uninitialized
        parameter.data = torch.zeros_like(parameter)
    return module, module.visual


def full_size(published: str) -> torch.nn.Module:
    """The image tower of a published size, without memory."""
    pe, _ = _modules()
    with torch.device("meta"):
        return pe.VisionTransformer.from_config(published)


def published_names() -> list[str]:
    """The names of the published image towers."""
    return sorted(_modules()[1].PE_VISION_CONFIG)
