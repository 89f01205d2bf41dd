"""Memory and time of converting a full-size checkpoint: SiT-XL/2, f8d4, PatchGAN, moments.

    PYTHONPATH=.:tests/helpers python benchmarks/conversion.py FOLDER

makes a checkpoint of random weights in FOLDER (12 GB; 40 GB are needed in all), converts it to a
run and back in processes of their own, compares the two files tensor by tensor, and prints what it
took.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import time

import torch
from sits import sit_of

from repae_jax.interop import original
from repae_jax.interop.adamw import parameter_groups
from repae_jax.models.backbones.sit import SIT_CONFIGS
from repae_jax.models.discriminator import PatchDiscriminator
from repae_jax.models.tokenizers.autoencoder_kl import VAE_CONFIGS, AutoencoderKL

ARGS = dict(
    model="SiT-XL/2", vae="f8d4", enc_type="dinov2-vit-b", num_classes=1000, encoder_depth=8,
    resolution=256, cfg_prob=0.1, qk_norm=False, exp_name="random",
)  # fmt: skip


def make(path: pathlib.Path) -> None:
    """Write a random checkpoint as the original's train_repae.py does."""
    sit = sit_of(
        latent_size=32, latent_channels=4, num_classes=1000, teacher_dims=(768,),
        **SIT_CONFIGS["SiT-XL/2"],
    )  # fmt: skip
    parts = {
        "backbone": original.sit_part(sit),
        "tokenizer": original.vae_part(AutoencoderKL(**VAE_CONFIGS["f8d4"])),
        "discriminator": original.discriminator_part(PatchDiscriminator()),
    }
    generator = torch.Generator().manual_seed(0)

    def random(shape):
        return torch.rand(shape, generator=generator)  # positive, so that it serves a variance

    def weights(part):
        tensors = {name: random(shape) for name, shape in part.shapes.items()}
        return tensors | {name: torch.tensor(10) for name in part.counters}

    def optimizer(part):
        state = {
            number: {
                "step": torch.tensor(10.0),
                "exp_avg": random(part.shapes[name]),
                "exp_avg_sq": random(part.shapes[name]),
            }
            for number, name in enumerate(part.slots)
            if name is not None
        }
        return {"state": state, "param_groups": parameter_groups(len(part.slots), lr=1e-4)}

    checkpoint = {"model": weights(parts["backbone"]), "ema": weights(parts["backbone"])}
    checkpoint["vae"] = weights(parts["tokenizer"])
    checkpoint["discriminator"] = weights(parts["discriminator"])
    checkpoint |= {original.OPTIMIZERS[name]: optimizer(part) for name, part in parts.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint | {"args": argparse.Namespace(**ARGS), "steps": 10}, path)


def convert(source: pathlib.Path, target: pathlib.Path) -> tuple[float, float]:
    """(peak resident memory in bytes, seconds) of one `convert` in a process of its own."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "repae_jax", "convert", str(source), str(target)]
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, status
    return usage.ru_maxrss * 1024, time.perf_counter() - started


def assert_same(one: pathlib.Path, other: pathlib.Path) -> int:
    """Compare two checkpoints bit by bit; returns the number of tensors."""

    def compare(a, b, at):
        if isinstance(b, dict):
            assert a.keys() == b.keys(), at
            return sum(compare(a[key], b[key], f"{at}/{key}") for key in b)
        if isinstance(b, torch.Tensor):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), at
            assert torch.equal(a, b), at
            return 1
        assert a == b, at
        return 0

    with torch.serialization.safe_globals([argparse.Namespace]):
        a, b = (torch.load(path, weights_only=True, mmap=True) for path in (one, other))
    return compare(a, b, "")


def main(folder: pathlib.Path) -> None:
    """Everything; leaves `folder` as it was."""
    first = folder / "checkpoints" / "0000010.pt"
    run, again = folder / "run", folder / "again" / "0000010.pt"
    made = subprocess.run([sys.executable, __file__, "--make", str(first)], check=True)
    assert made.returncode == 0
    size = first.stat().st_size
    print(f"checkpoint: {size / 1e9:.2f} GB", flush=True)
    for source, target in ((first, run), (run, again)):
        peak, seconds = convert(source, target)
        print(
            f"{source.name} -> {target.name}: peak {peak / 1e9:.2f} GB, "
            f"{peak / size:.2f} times the checkpoint, {seconds:.0f} s",
            flush=True,
        )
    print(f"{assert_same(again, first)} tensors the same bit for bit")
    for path in (first.parent, run, again.parent):
        shutil.rmtree(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--make", action="store_true", help="write the checkpoint to this path")
    options = parser.parse_args()
    (make if options.make else main)(options.folder)
