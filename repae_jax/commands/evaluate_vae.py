"""The `evaluate-vae` command: the quality of a VAE's reconstructions."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from repae_jax.commands.options import add_quiet, check_seed
from repae_jax.errors import UserError, advise_batch_size

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from repae_jax.evaluation.autoencoder import AutoencoderScores, Distance

SUMMARY = "measure a VAE's reconstructions and latents: PSNR, SSIM, rFID, LPIPS"
EPILOG = """\
VAE is a work directory, a folder that diffusers wrote, a file under LDM's names, or a
repository of the hub. IMAGES is a folder of pictures, one that `prepare` wrote, or an .npz.

examples:
  evaluate-vae runs/sdvae data/imagenet256/heldout
  evaluate-vae REPA-E/e2e-sdvae-hf imagenet/val --resolution 256 \\
      --inception pt_inception-2015-12-05-6726825d.pth"""
_PER_DEVICE = 16  # images per batch and device, unless --batch-size is given


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("vae", metavar="VAE", help="the VAE to measure")
    parser.add_argument("images", metavar="IMAGES", help="the images to encode and decode")
    parser.add_argument("--inception", help="InceptionV3's weights, for rFID")
    parser.add_argument("--lpips", help="LPIPS's heads (vgg.pth), for LPIPS")
    parser.add_argument("--vgg", help="VGG16's weights (vgg16-397923af.pth), for LPIPS")
    parser.add_argument(
        "--seed", type=int, help="decode samples of the posterior (default: its mean)"
    )
    parser.add_argument("--count", type=int, help="measure only the first N images")
    parser.add_argument("--resolution", type=int, help="crop pictures to N pixels per side")
    parser.add_argument("--batch-size", type=int, help="images per batch (default: 16 per device)")
    parser.add_argument(
        "--output", type=pathlib.Path, help="also write the figures to this JSON file"
    )
    add_quiet(parser)


@advise_batch_size()
def run(options: argparse.Namespace) -> int:
    """Measure the VAE's reconstructions of the images; returns 0.

    Raises:
      UserError: the options, images, VAE or weights are wrong.
    """
    import jax

    from repae_jax.evaluation.autoencoder import measure_autoencoder
    from repae_jax.evaluation.image_sets import open_images
    from repae_jax.evaluation.inception_features import make_features
    from repae_jax.evaluation.report import write_figures
    from repae_jax.interop.inception import read_inception
    from repae_jax.parallel.mesh import make_mesh, padded_batch_size
    from repae_jax.runs.pretrained import PretrainedVAE

    mesh = make_mesh()
    _check_options(options)
    images = open_images(options.images, options.resolution).first(options.count)
    batch_size = padded_batch_size(mesh, options.batch_size, _PER_DEVICE, images.count)
    distance = _read_lpips(options.lpips, options.vgg, mesh) if options.lpips else None
    vae = PretrainedVAE.from_pretrained(options.vae)
    scores = measure_autoencoder(
        vae,
        images,
        mesh,
        batch_size=batch_size,
        key=None if options.seed is None else jax.random.key(options.seed),
        features=make_features(read_inception(options.inception), mesh=mesh)
        if options.inception
        else None,
        distance=distance,
        progress=not options.quiet,
    )
    print(describe(scores, images.name))
    if options.output:
        named = {"vae": str(options.vae), "images": images.name}
        write_figures(options.output, named | _figures(scores))
        print(f"figures: {options.output}")
    return 0


def _check_options(options: argparse.Namespace) -> None:
    """Raise UserError for bad options, for missing files, and for an unwritable --output."""
    from repae_jax.config.needs import check_nothing_missing, missing_paths, missing_vaes
    from repae_jax.utils.atomic_files import check_writable

    if options.seed is not None:
        check_seed(options.seed)
    if bool(options.lpips) != bool(options.vgg):
        raise UserError("LPIPS needs both --lpips (its heads) and --vgg (VGG16)")
    named = {f"--{name}": getattr(options, name) for name in ("lpips", "vgg", "inception")}
    missing = missing_paths({"IMAGES": options.images, **named})
    check_nothing_missing([*missing_vaes(options.vae), *missing])
    if options.output:
        check_writable(options.output)


def describe(scores: AutoencoderScores, name: str) -> str:
    """Format the figures as text."""
    latents = scores.latents
    lines = [
        f"{scores.count} images of {name}",
        f"  PSNR    {scores.psnr:10.2f} dB",
        f"  SSIM    {scores.ssim:10.4f}",
        f"  rFID    {_shown(scores.rfid)}",
        f"  LPIPS   {_shown(scores.lpips)}",
        f"  latents: variance {latents.variance:.4f}; by channel mean {latents.mean.min():.3f} to "
        f"{latents.mean.max():.3f}, deviation {latents.std.min():.3f} to {latents.std.max():.3f}",
    ]
    return "\n".join(lines)


def _shown(value):
    return f"{value:10.4f}" if value is not None else "         -  its network was not given"


def _figures(scores: AutoencoderScores) -> dict[str, Any]:
    figures = dataclasses.asdict(scores)
    latents = figures.pop("latents")
    figures = {name: value for name, value in figures.items() if value is not None}
    figures["latent_variance"] = latents["variance"]
    return figures | {f"latent_{key}": latents[key].tolist() for key in ("mean", "std")}


def _read_lpips(heads: str, vgg: str, mesh: Mesh) -> Distance:
    """Load LPIPS from its two files of weights to all devices."""
    import jax

    from repae_jax.interop.lpips import load_lpips, read_lpips
    from repae_jax.models.lpips import LPIPS
    from repae_jax.parallel.mesh import place, replicated

    model = LPIPS(rescale_inputs=False)
    tensors = read_lpips(heads, vgg)
    variables = place(load_lpips(tensors, model, source=f"{vgg} and {heads}"), replicated(mesh))
    apply = jax.jit(model.apply)
    return lambda a, b: apply(variables, a, b)
