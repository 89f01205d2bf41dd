"""The `evaluate-vae` command: what a VAE keeps of images."""

import argparse
import dataclasses

import jax

from repae_jax.commands.sample import check_seed
from repae_jax.config.needs import check_nothing_missing, missing_paths, missing_vaes
from repae_jax.errors import UserError, batch_size_advised
from repae_jax.evaluation.autoencoder import AutoencoderScores, Distance, measure_autoencoder
from repae_jax.evaluation.image_sets import open_images
from repae_jax.evaluation.inception_features import make_features
from repae_jax.evaluation.report import write_figures
from repae_jax.interop.inception import read_inception
from repae_jax.interop.lpips import load_lpips, read_lpips
from repae_jax.models.lpips import LPIPS
from repae_jax.parallel.mesh import make_mesh, put, replicated, whole_batches
from repae_jax.runs.pretrained import PretrainedVAE
from repae_jax.utils.atomic_files import check_writable

PER_DEVICE = 16  # images at a time, unless --batch-size tells


@batch_size_advised()
def evaluate_vae_command(options: argparse.Namespace) -> int:
    """Measure how `options.vae` reconstructs `options.images`; returns 0.

    Raises:
      UserError: bad options, images, VAE or weights.
    """
    mesh = make_mesh()
    if options.seed is not None:
        check_seed(options.seed)
    if bool(options.lpips) != bool(options.vgg):
        raise UserError("LPIPS needs both --lpips (its heads) and --vgg (VGG16)")
    named = {f"--{name}": getattr(options, name) for name in ("lpips", "vgg", "inception")}
    missing = missing_paths({"IMAGES": options.images, **named})
    check_nothing_missing([*missing_vaes(options.vae), *missing])
    if options.output:
        check_writable(options.output)
    images = open_images(options.images, options.resolution).first(options.count)
    batch_size = whole_batches(mesh, options.batch_size, PER_DEVICE, images.count)
    distance = _read_lpips(options, mesh)
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
        told = {"vae": str(options.vae), "images": images.name, **_figures(scores)}
        write_figures(options.output, told)
        print(f"figures: {options.output}")
    return 0


def describe(scores: AutoencoderScores, name: str) -> str:
    """The figures as text."""
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


def _figures(scores):
    figures = dataclasses.asdict(scores)
    latents = figures.pop("latents")
    figures = {name: value for name, value in figures.items() if value is not None}
    figures["latent_variance"] = latents["variance"]
    return figures | {f"latent_{key}": latents[key].tolist() for key in ("mean", "std")}


def _read_lpips(options, mesh) -> Distance | None:
    if not options.lpips:
        return None
    model = LPIPS(rescale_inputs=False)
    tensors = read_lpips(options.lpips, options.vgg)
    variables = put(
        load_lpips(tensors, model, source=f"{options.vgg} and {options.lpips}"), replicated(mesh)
    )
    apply = jax.jit(model.apply)
    return lambda a, b: apply(variables, a, b)
