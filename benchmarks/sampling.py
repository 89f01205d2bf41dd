r"""Images per second of the samplers here and of the original's, side by side in one run.

    python benchmarks/sampling.py --original PATH/TO/REPA-E

    python benchmarks/sampling.py --original PATH/TO/REPA-E --device cuda --dtype bfloat16 \
        --arch SiT-XL/2 --resolution 256 --batch-size 64 --method euler-maruyama --steps 250

The same random weights, noise and classes on both sides, float32: from noise to bytes, 50 guided
Euler steps of SiT-B/2 and the decoder of the full-size f8d4 VAE, 128 x 128. The original's side is
its own modules and sampler, with the lines of its generate.py around them; ours is the program that
`generate` runs. Each side has a process of its own; the images must agree before anything is timed.
"""

import argparse
import os

import numpy as np
import original as originals
from side_by_side import alternate, at_once, processes, report

from repae_jax.utils import process_env

METHODS = {"euler": (False, "euler_sampler"), "heun": (True, "euler_sampler"),
           "euler-maruyama": (False, "euler_maruyama_sampler")}  # fmt: skip


def make_theirs(original, model, vae, noise: np.ndarray, labels: np.ndarray, options):
    """The original's way from noise (B, h, w, c) to uint8 (B, H, W, 3), as a call."""
    import torch

    model, vae = model.to(options.device), vae.to(options.device)
    torch.backends.cuda.matmul.allow_tf32 = options.device == "cuda"  # as it ships
    heun, name = METHODS[options.method]
    run = getattr(original.parity.original_module("samplers.py"), name)
    scale = model.bn.running_var.rsqrt().view(1, -1, 1, 1)
    bias = model.bn.running_mean.view(1, -1, 1, 1)
    z, y = original.parity.to_nchw(noise).to(options.device), torch.tensor(labels)
    y = y.to(options.device)

    def call():
        with torch.no_grad():
            latents = run(
                model, z, y, num_steps=options.steps, heun=heun, cfg_scale=options.guidance_scale
            ).to(torch.float32)
            images = (vae.decode(latents / scale + bias).sample + 1) / 2.0
            images = torch.clamp(255.0 * images, 0, 255).permute(0, 2, 3, 1)
            return images.to("cpu", dtype=torch.uint8).numpy()

    return call


def make_ours(original, model, vae, noise_key, labels: np.ndarray, options):
    """Ours with the same weights, as a call."""
    import jax
    import jax.numpy as jnp

    from repae_jax.interop.autoencoder_kl import load_vae
    from repae_jax.interop.original import import_part, sit_part
    from repae_jax.models.backbones.sit import SIT_CONFIGS, SiT
    from repae_jax.models.conditioning.class_label import ClassLabel
    from repae_jax.models.networks import Models
    from repae_jax.models.tokenizers.autoencoder_kl import VAE_CONFIGS, AutoencoderKL
    from repae_jax.sampling.generate import make_generate
    from repae_jax.sampling.sampler import Sampler

    dtype = jnp.dtype(options.dtype)
    sit = SiT(
        **SIT_CONFIGS[options.arch], latent_size=options.resolution // 8, latent_channels=4,
        conditioner=ClassLabel(1000), teacher_dims=(768,), dtype=dtype,
    )  # fmt: skip
    variables = import_part(original.parity.state_of(model), sit_part(sit), source="original")
    module = AutoencoderKL(**VAE_CONFIGS["f8d4"], dtype=dtype)
    weights = {
        "backbone": {name: variables[name] for name in ("params", "constants")},
        "latent_norm": variables["batch_stats"],
        "tokenizer": {"params": load_vae(original.parity.state_of(vae), module)},
    }
    weights = jax.device_put(weights)
    sampler = Sampler(options.method, options.steps, "linear", options.guidance_scale)
    generate = make_generate(Models(module, sit), sampler)
    indices = np.arange(len(labels))
    return lambda: np.asarray(generate(weights, noise_key, indices, {"label": labels}).images)


def make_side(name: str, options: argparse.Namespace):
    """One of the sides, with the same weights, noise and classes as the other; in its process."""
    if name == "ours":
        process_env.prepare()  # as the command line does
    else:
        os.environ["JAX_PLATFORMS"] = "cpu"  # it draws the noise; the GPU is the original's
    original = originals.load(options.original)
    import jax

    from repae_jax.sampling.noise import image_noise

    side = options.resolution // 8
    model = originals.sit(original, options.arch, latent_size=side, latent_channels=4).eval()
    vae = originals.vae(original, "f8d4").eval()
    key = jax.random.key(0)
    labels = np.arange(options.batch_size) * 100 % 1000
    if name == "ours":
        return make_ours(original, model, vae, key, labels, options)
    noise = np.asarray(image_noise(key, np.arange(options.batch_size), (side, side, 4)))
    return make_theirs(original, model, vae, noise, labels, options)


def agreement(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """How far the images are from each other, in levels of 255."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    difference = np.abs(ours.astype(int) - theirs)
    return {"largest": int(difference.max()), "other pixels": float((difference > 0).mean())}


def main() -> None:
    """Check that both make the same images, time them in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    originals.add_original(parser)
    parser.add_argument("--arch", default="SiT-B/2")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--method", default="euler", choices=METHODS)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"],
        help="of our networks; the original samples in float32, on a GPU with TF32",
    )  # fmt: skip
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.device == "cuda":  # the sides share its memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with processes(["original", "ours"], make_side, options) as sides:
        print("made once each, to compare", flush=True)
        images = at_once(sides)
        apart = agreement(images["ours"], images["original"])
        print(f"levels apart: {apart}; their standard deviation {images['original'].std():.0f}")
        comparable = options.method != "euler-maruyama" and options.dtype == "float32"
        if comparable and options.device == "cpu" and apart["largest"] > 1:
            raise SystemExit("the images differ: nothing to be compared")
        seconds = alternate(sides, options.repeats, warm_up=0)  # that was it
    report(
        f"{options.arch}, {options.steps} steps of {options.method}, guidance "
        f"{options.guidance_scale:g}, f8d4 to {options.resolution} x {options.resolution}, "
        f"batch {options.batch_size}",
        seconds,
        options.batch_size,
        apart=apart,
    )


if __name__ == "__main__":
    main()
