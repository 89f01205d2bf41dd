"""The original implementation's networks from a checkout of it, small and with random weights.

Needs timm and torchvision; other packages that its modules import are replaced where missing.
"""

import functools
import importlib
import importlib.util
import pathlib
import sys
import types
from unittest import mock

import torch
from parity import ORIGINAL, randomise

IMAGE_SIZE, NUM_CLASSES, LATENT_CHANNELS = 32, 7, 4
LATENT_SIZE, NUM_TOKENS, TEACHER_DIMS = 16, 16, (24, 12)
SIT = dict(patch_size=4, hidden_size=64, depth=3, num_heads=4, encoder_depth=2, projector_dim=48)
# Attention at the last level comes from the nominal resolution there: 256 / 2.
VAE = dict(ch=64, num_res_blocks=1, attn_resolutions=(128,))
VAE_MULTIPLIERS = (1, 2)
DISCRIMINATOR_FILTERS = 16
VGG_SHRINK = 8  # VGG16's widths are divided by it


class AttributeDict(dict):
    """A dict whose items are attributes too, as OmegaConf's and dictdot's are."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def reason_to_skip() -> str | None:
    """Why nothing can be compared with the original here, or None."""
    if not ORIGINAL:
        return "set REPAE_ORIGINAL to a checkout of the original implementation"
    missing = [name for name in ("timm", "torchvision") if not importlib.util.find_spec(name)]
    return f"the original's modules need {' and '.join(missing)}" if missing else None


@functools.cache
def modules() -> types.SimpleNamespace:
    """The checkout's modules `sit`, `autoencoder`, `losses` and `lpips`."""
    _stub_missing("dictdot", dictdot=AttributeDict)
    _stub_missing("einops", rearrange=None)
    _stub_missing("requests")
    # As a package of its own: `models` and `loss` are too general names to put on the path.
    package = types.ModuleType("repae_original")
    package.__path__ = [ORIGINAL]
    sys.modules["repae_original"] = package
    paths = ("models.sit", "models.autoencoder", "loss.losses", "loss.lpips")
    found = [importlib.import_module(f"repae_original.{path}") for path in paths]
    return types.SimpleNamespace(**{module.__name__.split(".")[-1]: module for module in found})


def make_sit(seed: int) -> torch.nn.Module:
    """A small SiT, every weight random, with random latent statistics in its BatchNorm."""
    model = modules().sit.SiT(
        input_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        decoder_hidden_size=SIT["hidden_size"],
        num_classes=NUM_CLASSES,
        class_dropout_prob=0.1,
        z_dims=list(TEACHER_DIMS),
        qk_norm=False,
        fused_attn=True,
        **SIT,
    )
    randomise(model, seed)
    for head in model.projectors:
        # Teachers' tokens have a mean as well: cosines away from 0 can be compared relatively.
        head[-1].bias.data += 0.5
    scale, bias = _statistics(LATENT_CHANNELS, seed)
    model.init_bn(latents_scale=scale, latents_bias=bias)
    return model


def make_vae(seed: int) -> torch.nn.Module:
    """A small AutoencoderKL, every weight random."""
    autoencoder = modules().autoencoder
    small = {n: functools.partial(getattr(autoencoder, n), **VAE) for n in ("Encoder", "Decoder")}
    with mock.patch.multiple(autoencoder, **small):
        vae = autoencoder.AutoencoderKL(embed_dim=LATENT_CHANNELS, ch_mult=VAE_MULTIPLIERS)
    return randomise(vae, seed)


def make_vae_loss(
    seed: int,
    *,
    filters: int = DISCRIMINATOR_FILTERS,
    vgg_shrink: int = VGG_SHRINK,
    **changes,
) -> torch.nn.Module:
    """The VAE's loss with discriminator and LPIPS, all weights random; configured by its yaml file.

    Args:
      seed: of the weights.
      filters: the discriminator's; 64 is its size.
      vgg_shrink: VGG16's widths are divided by it; 1 is its size.
      changes: values of the file's `losses` to replace.
    """
    import yaml

    losses, lpips = modules().losses, modules().lpips
    config = yaml.safe_load((pathlib.Path(ORIGINAL) / "configs/l1_lpips_kl_gan.yaml").read_text())
    config["losses"]["kl_weight"] = float(config["losses"]["kl_weight"])  # "1e-6" is a string there
    assert set(changes) <= set(config["losses"]), changes
    config["losses"] |= changes
    config["model"]["vq_model"] = AttributeDict(config["model"]["vq_model"])
    config = AttributeDict({name: AttributeDict(part) for name, part in config.items()})

    with (
        mock.patch.object(lpips.models, "vgg16", functools.partial(_vgg16, vgg_shrink)),
        mock.patch.object(lpips.LPIPS, "load_pretrained"),
        mock.patch.object(
            losses,
            "NLayerDiscriminator",
            functools.partial(losses.NLayerDiscriminator, ndf=filters),
        ),
    ):
        loss = losses.ReconstructionLoss_Single_Stage(config)
    distance = loss.perceptual_loss.lpips
    for k, width in enumerate(distance.chns):
        setattr(distance, f"lin{k}", lpips.NetLinLayer(width // vgg_shrink, use_dropout=True))
    _randomise_vae_loss(loss, seed)
    return loss


def _randomise_vae_loss(loss, seed):
    randomise(loss.discriminator, seed)
    loss.discriminator.main[-1].bias.data += 0.5  # mean logits away from 0, as with the heads
    for part in loss.discriminator.main:
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_var, part.running_mean = _statistics(part.num_features, seed)
    randomise(loss.perceptual_loss, seed)
    for name, parameter in loss.perceptual_loss.named_parameters():
        parameter.requires_grad = False
        if ".lin" in name:
            # Positive, as the published ones, and as small: each ReLU that rounding flips in VGG
            # moves the gradient by a jump, and Adam takes the sign of what is near 0.
            parameter.data = parameter.data.abs() / parameter.numel() ** 0.5
    if loss.lecam_regularization_weight > 0:
        # Away from their start at 0, so that both halves of the regularisation act.
        loss.ema_real_logits_mean.fill_(0.9)
        loss.ema_fake_logits_mean.fill_(0.1)


def _statistics(channels, seed):
    """A positive and another random number for each channel."""
    generator = torch.Generator().manual_seed(seed)
    positive = 0.5 + torch.rand(channels, generator=generator)
    return positive, torch.randn(channels, generator=generator)


def _vgg16(shrink, weights):
    from torchvision.models import vgg

    widths = [n if n == "M" else n // shrink for n in vgg.cfgs["D"]]
    return types.SimpleNamespace(features=vgg.make_layers(widths))


def _stub_missing(name, **attributes):
    try:
        importlib.import_module(name)
    except ImportError:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(attributes)
