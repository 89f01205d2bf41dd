"""DC-AE by its authors' own code (mit-han-lab/efficientvit), on a CPU.

Two of its imports are replaced: omegaconf, which only fills its configurations, and the Triton
kernel of its norm, which needs a GPU.
"""

import contextlib
import importlib
import os
import pathlib
import sys
import types

import torch

ROOT = os.environ.get("EFFICIENTVIT_ORIGINAL")
SKIP_REASON = "set EFFICIENTVIT_ORIGINAL to a checkout of mit-han-lab/efficientvit"
_EPSILON = 1e-5


class _Norm:
    """In place of the kernel: an RMS norm over channels of (B, C, H, W)."""

    @staticmethod
    def apply(x, weight, bias, eps):
        assert eps == _EPSILON
        x = x / torch.sqrt((x**2).mean(1, keepdim=True) + eps)
        return x * weight[:, None, None] + bias[:, None, None]


@contextlib.contextmanager
def _replaced():
    """The packages without their `__init__`, and the two imports."""
    before = dict(sys.modules)
    root = pathlib.Path(ROOT) / "efficientvit"
    for name in ("", ".models", ".models.efficientvit", ".models.nn"):
        package = types.ModuleType(f"efficientvit{name}")
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[package.__name__] = package
    kernel = types.ModuleType("efficientvit.models.nn.triton_rms_norm")
    kernel.TritonRMSNorm2dFunc = _Norm
    omegaconf = types.ModuleType("omegaconf")
    omegaconf.MISSING, omegaconf.OmegaConf = None, None
    sys.modules |= {kernel.__name__: kernel, "omegaconf": omegaconf}
    try:
        yield
    finally:
        for name in set(sys.modules) - set(before):
            if name.split(".")[0] in ("efficientvit", "omegaconf"):
                del sys.modules[name]
        sys.modules.update(before)


def make_dc_ae(model) -> torch.nn.Module:
    """The authors' network with the dimensions of ours; heads are 32 wide, scales () or (5,)."""
    assert model.head_width == 32
    kind = {(): "EViT_GLU", (5,): "EViTS5_GLU"}[model.scales]
    levels = range(len(model.widths))
    kinds = [kind if i in model.attention_levels else "ResBlock" for i in levels]
    batch = [i in model.batch_norm_levels for i in levels]
    sizes = dict(in_channels=model.image_channels, latent_channels=model.latent_channels,
                 width_list=model.widths, block_type=kinds)  # fmt: skip
    with _replaced():
        code = importlib.import_module("efficientvit.models.efficientvit.dc_ae")
        encoder = code.EncoderConfig(
            **sizes, depth_list=model.encoder_layers,
            downsample_block_type="ConvPixelUnshuffle" if model.shuffle else "Conv",
        )  # fmt: skip
        decoder = code.DecoderConfig(
            **sizes, depth_list=model.decoder_layers,
            norm=["bn2d" if here else "trms2d" for here in batch],
            act=["relu" if here else "silu" for here in batch],
            upsample_block_type="ConvPixelShuffle" if model.shuffle else "InterpolateConv",
        )  # fmt: skip
        config = code.DCAEConfig(encoder=encoder, decoder=decoder)
        return code.DCAE(config).eval()
