"""Arguments of the commands that measure."""

import pathlib

from repae_jax.commands.common_arguments import add_processes, add_quiet, add_workdir
from repae_jax.commands.sampling_arguments import LABELS_HELP, Command, add_sampler

DEFAULT = "(default: %(default)s)"


def add_evaluation(command: Command) -> None:
    """Add the commands' parsers, which `command` makes."""
    _add_evaluate(command)
    _add_evaluate_vae(command)
    _add_evaluate_latents(command)
    _add_evaluate_alignment(command)


def _add_evaluate(command):
    evaluate = command(
        "evaluate",
        "measure generated images against real ones: FID, sFID, IS, precision, recall",
        "SAMPLES is an .npz as `generate` and ADM's scripts write it, a folder of pictures, or\n"
        "one that `prepare` wrote. The reference is any of these, or one of ADM's reference\n"
        "batches, such as VIRTUAL_imagenet256_labeled.npz. The figures are ADM's evaluator's.\n"
        "SAMPLES may also be a run's work directory: what `generate` would write is then measured\n"
        "while it is made, and goes through no disk.\n\n"
        "examples:\n"
        "  evaluate runs/x --reference VIRTUAL_imagenet256_labeled.npz --guidance-scale 2.2\n"
        "  evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz\n"
        "  evaluate samples/ --reference data/mine/heldout --save-reference mine.npz",
    )
    evaluate.add_argument("samples", metavar="SAMPLES", help="generated images, or a run")
    evaluate.add_argument("--reference", required=True, help="real images, or their statistics")
    evaluate.add_argument(
        "--inception",
        default="pretrained/inception/pt_inception-2015-12-05-6726825d.pth",
        help="InceptionV3's weights (default: %(default)s; if they are not there, an error tells "
        "where they are)",
    )
    evaluate.add_argument(
        "--count", type=int, help="measure the first so many samples (default: all; a run's: 50000)"
    )
    evaluate.add_argument("--resolution", type=int, help="crop pictures to so many pixels a side")
    evaluate.add_argument(
        "--batch-size", type=int, help="images at a time (default: 64 a device; a run's: 32)"
    )
    evaluate.add_argument("--output", type=pathlib.Path, help="also write the figures there, JSON")
    evaluate.add_argument(
        "--save-reference", type=pathlib.Path, help="write the reference's statistics as .npz"
    )
    run = evaluate.add_argument_group("where SAMPLES is a run", "As `generate` takes them.")
    run.add_argument("--labels", help=LABELS_HELP)
    add_sampler(run)
    add_processes(evaluate)
    add_quiet(evaluate)


def _add_evaluate_vae(command):
    evaluate = command(
        "evaluate-vae",
        "measure what a VAE keeps of images: PSNR, SSIM, rFID, LPIPS, its latents",
        "VAE is a work directory, a folder that diffusers wrote, a file under LDM's names, or a\n"
        "repository of the hub. IMAGES is a folder of pictures, one that `prepare` wrote, or an "
        ".npz.\n\n"
        "examples:\n"
        "  evaluate-vae runs/sdvae data/imagenet256/heldout\n"
        "  evaluate-vae REPA-E/e2e-sdvae-hf imagenet/val --resolution 256 \\\n"
        "      --inception pt_inception-2015-12-05-6726825d.pth",
    )
    evaluate.add_argument("vae", metavar="VAE", help="what is measured")
    evaluate.add_argument("images", metavar="IMAGES", help="to be encoded and decoded")
    evaluate.add_argument("--inception", help="InceptionV3's weights, for rFID")
    evaluate.add_argument("--lpips", help="LPIPS's heads (vgg.pth), for LPIPS")
    evaluate.add_argument("--vgg", help="VGG16's weights (vgg16-397923af.pth), for LPIPS")
    evaluate.add_argument(
        "--seed", type=int, help="sample the posterior (default: its mean is decoded)"
    )
    evaluate.add_argument("--count", type=int, help="take the first so many images")
    evaluate.add_argument("--resolution", type=int, help="crop pictures to so many pixels a side")
    evaluate.add_argument("--batch-size", type=int, help="images at a time (default: 16 a device)")
    evaluate.add_argument("--output", type=pathlib.Path, help="also write the figures there, JSON")
    add_quiet(evaluate)


def _add_evaluate_latents(command):
    evaluate = command(
        "evaluate-latents",
        "show the latent spaces of VAEs side by side: colours, spectra, statistics",
        "IMAGES and VAE are what `evaluate-vae` takes; NAME=VAE names one in the pictures. Writes\n"
        "report.html and its pictures.\n\n"
        "example:\n"
        "  evaluate-latents data/heldout before=sdvae.pt after=runs/sdvae --output latents",
    )
    evaluate.add_argument("images", metavar="IMAGES", help="to be encoded")
    evaluate.add_argument("vaes", metavar="[NAME=]VAE", nargs="+", help="one or more")
    evaluate.add_argument("--output", required=True, type=pathlib.Path, help="a folder")
    evaluate.add_argument("--shown", type=int, default=10, help="images in the pictures " + DEFAULT)
    evaluate.add_argument("--count", type=int, default=256, help="most images " + DEFAULT)
    evaluate.add_argument("--resolution", type=int, help="crop pictures to so many pixels a side")
    evaluate.add_argument("--batch-size", type=int, default=16, help="images at a time " + DEFAULT)
    add_quiet(evaluate)


def _add_evaluate_alignment(command):
    evaluate = command(
        "evaluate-alignment",
        "measure how near a run's SiT is to its teacher, block by block: CKNNA, linear probes",
        "The averaged SiT sees noisy latents of held-out images, without their classes. Writes\n"
        "alignment.png and alignment.json.\n\n"
        "example:\n"
        "  evaluate-alignment --workdir runs/sdvae --count 10000 --times 0.2,0.5,0.8",
    )
    add_workdir(evaluate, "a trained run with a teacher")
    evaluate.add_argument("--split", default="heldout", help="of the run's data " + DEFAULT)
    evaluate.add_argument("--count", type=int, default=1000, help="most images " + DEFAULT)
    evaluate.add_argument(
        "--times", default="0.1,0.3,0.5,0.7,0.9", help="noise levels, 1 is noise " + DEFAULT
    )
    evaluate.add_argument("--topk", type=int, default=10, help="neighbours of CKNNA " + DEFAULT)
    evaluate.add_argument("--batch-size", type=int, default=50, help="images at a time " + DEFAULT)
    evaluate.add_argument(
        "--output", type=pathlib.Path, help="a folder (default: WORKDIR/alignment)"
    )
    add_quiet(evaluate)
