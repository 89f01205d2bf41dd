"""Reconstruction measures of a VAE, and the moments of its latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from repae_jax.errors import UserError
from repae_jax.evaluation.frechet import Moments, frechet_distance
from repae_jax.evaluation.image_sets import ImageSet, pad_batch
from repae_jax.evaluation.inception_features import Features
from repae_jax.evaluation.latents import LatentStatistics
from repae_jax.evaluation.reconstruction import SSIM_WINDOW, psnr, ssim
from repae_jax.interop.vae_files import StoredVAE
from repae_jax.models.lpips import SMALLEST
from repae_jax.parallel.mesh import batch_sharding, place, replicated
from repae_jax.sampling.noise import image_noise
from repae_jax.utils.finite import NotFinite, finite_rows
from repae_jax.utils.images import to_float, to_uint8

# (images, reconstructions), float (B, H, W, 3) in [-1, 1] -> distances (B,)
Distance = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class AutoencoderScores:
    """The measures of a VAE on a set of images; None without the network for a measure.

    Attributes:
      count: number of images.
      psnr: mean over images of the PSNR in dB, on uint8 pixels.
      ssim: mean over images of the SSIM, at most 1, on uint8 pixels.
      rfid: Fréchet distance between images and reconstructions, 0 or more.
      lpips: mean perceptual distance, 0 or more.
      latents: moments of the latents before normalization.
    """

    count: int
    psnr: float
    ssim: float
    rfid: float | None
    lpips: float | None
    latents: LatentStatistics


def measure_autoencoder(
    vae: StoredVAE,
    images: ImageSet,
    mesh: Mesh,
    *,
    batch_size: int,
    key: jax.Array | None = None,
    features: Features | None = None,
    distance: Distance | None = None,
    progress: bool = False,
) -> AutoencoderScores:
    """Reconstruct images with a VAE and measure the result; memory holds running sums only.

    Args:
      vae: the VAE with its weights.
      images: the set; the VAE's factor divides the images' sides.
      mesh: the devices, which share every batch.
      batch_size: images per batch, a multiple of the number of devices.
      key: samples the posterior, as LightningDiT's evaluation does; the noise of image i depends on
        the key and i alone. None takes the posterior mean.
      features: Inception's features, for rFID.
      distance: LPIPS.
      progress: show a bar.

    Raises:
      UserError: the VAE's factor does not divide the images' sides, they are too small for SSIM or
        LPIPS, or rFID has a single image.
      NotFinite: latents or reconstruction of an image are NaN or infinite.
    """
    from tqdm import tqdm

    if images.resolution % vae.module.factor:
        raise UserError(
            f"{images.name} has images of {images.resolution} x {images.resolution} pixels, which "
            f"the VAE's factor {vae.module.factor} does not divide: give --resolution"
        )
    smallest, name = (SSIM_WINDOW, "SSIM") if distance is None else (SMALLEST, "LPIPS")
    if images.resolution < smallest:
        raise UserError(
            f"{images.name} has images of {images.resolution} x {images.resolution} pixels, {name} "
            f"needs at least {smallest}: give --resolution"
        )
    count = images.count
    if features is not None and count < 2:
        raise UserError("rFID needs at least 2 images")
    placed = place({"params": vae.params, "constants": vae.constants}, replicated(mesh))
    vae = dataclasses.replace(vae, **placed)
    sums = _Sums(vae.module.latent_channels)
    bar = tqdm(total=count, unit="image", desc=images.name, disable=not progress)
    with bar, jax.default_matmul_precision("highest"):
        for number, batch in enumerate(images.batches(batch_size)):
            shown = place(pad_batch(batch, batch_size), batch_sharding(mesh))
            posterior = vae.encode(shown)
            latents = posterior.mean
            if key is not None:
                indexes = np.arange(batch_size) + number * batch_size
                noise = image_noise(key, indexes, latents.shape[1:])
                latents = latents + posterior.std * noise
            decoded = vae.decode(latents)
            _check_finite(images.name, sums.count, latents, decoded, len(batch))
            sums.latents.update(_rows(latents, len(batch)))
            again = to_uint8(decoded)
            if features is not None:
                sums.real.update(_rows(features(shown)["pool"], len(batch)))
                sums.made.update(_rows(features(again)["pool"], len(batch)))
            if distance is not None:
                apart = distance(to_float(shown), decoded.clip(-1, 1))
                sums.lpips += float(np.asarray(apart, np.float64)[: len(batch)].sum())
            again = np.asarray(again)[: len(batch)]
            sums.psnr += float(psnr(batch, again).sum())
            sums.ssim += float(ssim(batch, again).sum())
            sums.count += len(batch)
            bar.update(len(batch))
    return AutoencoderScores(
        count=count,
        psnr=sums.psnr / count,
        ssim=sums.ssim / count,
        rfid=None if features is None else frechet_distance(sums.real, sums.made),
        lpips=None if distance is None else sums.lpips / count,
        latents=_statistics(sums.latents),
    )


class _Sums:
    """Running sums over batches."""

    def __init__(self, channels):
        self.psnr = self.ssim = self.lpips = 0.0
        self.count = 0
        self.latents, self.real, self.made = Moments(channels), Moments(2048), Moments(2048)


def _check_finite(name, start, latents, decoded, count):
    """Raise NotFinite for the first of a batch's `count` images with NaN or infinite values."""
    for what, values in (("latents", latents), ("reconstruction", decoded)):
        broken = np.flatnonzero(~np.asarray(finite_rows(values))[:count])
        if broken.size:
            raise NotFinite(
                f"{name}: the VAE's {what} of image {start + broken[0]} is NaN or infinite: its "
                "weights are damaged, or of a run that has diverged"
            )


def _rows(values, count):
    values = np.asarray(values)[:count]
    return values.reshape(-1, values.shape[-1])


def _statistics(moments):
    variances = np.diag(moments.covariance) * (moments.count - 1) / moments.count
    whole = variances.mean() + moments.mean.var()
    return LatentStatistics(moments.mean, np.sqrt(variances), float(whole))
