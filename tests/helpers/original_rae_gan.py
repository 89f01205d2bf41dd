"""RAE's discriminator, augmentation and losses by its authors' own code, on a CPU."""

import functools
import importlib
import os
import pathlib
import sys
import types
from unittest import mock

import torch
from checkouts import define
from parity import randomise
from torch_dino_discriminator import randomise_heads

from repae_jax.models.dino_discriminator import DinoDiscriminator

ROOT = os.environ.get("RAE_ORIGINAL")
SKIP_REASON = "set RAE_ORIGINAL to a checkout of bytetriper/RAE"
_PACKAGE = "rae_original_disc"


@functools.cache
def module(name: str):
    """A file of its `src/disc`, without the package's `__init__`, which needs LPIPS's weights."""
    if _PACKAGE not in sys.modules:
        package = types.ModuleType(_PACKAGE)
        package.__path__ = [str(pathlib.Path(ROOT) / "src" / "disc")]
        sys.modules[_PACKAGE] = package
    return importlib.import_module(f"{_PACKAGE}.{name}")


def calculate_adaptive_weight(*arguments):
    """The function of its training script."""
    scope = {"torch": torch}
    file = pathlib.Path(ROOT) / "src" / "train_stage1.py"
    return define(file, ["calculate_adaptive_weight"], scope)["calculate_adaptive_weight"](
        *arguments
    )


def make_discriminator(folder: pathlib.Path, model: DinoDiscriminator) -> torch.nn.Module:
    """Its discriminator with the sizes of ours, at its 224 pixels.

    The random DINO goes through a file, as the published one does.
    """
    disc = module("dinodisc")
    depths = tuple(block - 1 for block in model.blocks)
    sizes = {
        "depth": model.depth, "key_depths": depths, "norm_eps": 1e-6, "in_chans": 3,
        "patch_size": model.patch_size, "embed_dim": model.dim, "num_heads": model.num_heads,
        "mlp_ratio": 4.0,
    }  # fmt: skip
    assert sizes.keys() == disc.recipes["S_8"].keys()
    dino = randomise(disc.FrozenDINONoDrop(**sizes))
    dino.cls_token.data.normal_(generator=torch.Generator().manual_seed(1))
    dino.pos_embed.data.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(2))
    state = {name: t for name, t in dino.state_dict().items() if not name.startswith("x_s")}
    torch.save(state, folder / "dino.pth")
    with mock.patch.dict(disc.recipes, {"own": sizes}):
        judge = module("discriminator").DinoDiscriminator(
            torch.device("cpu"), dino_ckpt_path=folder / "dino.pth", ks=model.kernel,
            key_depths=depths, recipe="own",
        )  # fmt: skip
    return randomise_heads(judge)
