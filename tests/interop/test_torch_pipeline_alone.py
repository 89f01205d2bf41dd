"""A pipeline's folder needs torch and diffusers alone: neither JAX nor this package."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch_pipelines
from bare_environment import link_packages
from torch_pipelines import CASES, LABELS, PROMPTS, distance, our_images

from repae_jax.cli import main

STEPS = 3
SCRIPT = """\
import sys

import numpy as np
import torch

for name in ("repae_jax", "jax", "flax", "optax", "ml_collections"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} is there")
from diffusers import DiffusionPipeline

folder, given, made, kind, *asked = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
noise = {name: torch.tensor(array) for name, array in np.load(given).items()}
steps = noise.pop("step_noise")
asked = list(map(int, asked)) if kind == "class_labels" else asked
images = pipe(
    **{kind: asked}, **noise, step_noise=lambda step: steps[step], method="euler-maruyama",
    num_inference_steps=len(steps), guidance_scale=2.0, guidance_interval=(0.2, 0.8),
).images
np.save(made, np.stack([np.asarray(image) for image in images]))
"""


@pytest.mark.slow  # compiles a sampler, and starts a process that imports torch
@pytest.mark.parametrize(
    ("case", "packages"),
    [("sit", ["torch", "diffusers"]), ("fusedit", ["torch", "diffusers", "transformers"])],
)
def test_a_folder_needs_nothing_else(case, packages, tmp_path):
    run, folder = tmp_path / "run", tmp_path / "pipe"
    torch_pipelines.save_random_run(run, CASES[case]())
    assert main(["convert", str(run), str(folder), "--to", "pipeline", "--quiet"]) == 0
    asked, kind = (LABELS, "class_labels") if case == "sit" else (PROMPTS, "prompt")
    changes = dict(guidance_scale=2.0, guidance_low=0.2, guidance_high=0.8)
    ours, given = our_images(run, asked, method="euler-maruyama", steps=STEPS, **changes)
    noise = torch.stack([given["step_noise"](step)[0] for step in range(STEPS)])
    np.savez(tmp_path / "noise.npz", latents=given["latents"], step_noise=noise)
    (tmp_path / "bare").mkdir()
    bare = link_packages(tmp_path / "bare", packages)
    paths = [tmp_path / name for name in ("pipe", "noise.npz", "made.npy")]
    done = subprocess.run(
        [sys.executable, "-S", "-c", SCRIPT, *map(str, paths), kind, *map(str, asked)],
        env={
            **os.environ, "PYTHONPATH": str(bare), "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": "1",
        },
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert distance(np.load(tmp_path / "made.npy"), ours) <= 1
