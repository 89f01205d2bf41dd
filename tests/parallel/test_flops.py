"""Operations counted in the traced program against torch's own counter, and against arithmetic."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from checkouts import module_of
from torch.utils.flop_counter import FlopCounterMode

from repae_jax.config import apply_recipe, backbone, imagenet256, tokenizer
from repae_jax.models.convolution import conv
from repae_jax.parallel.flops import count_flops
from repae_jax.parallel.mesh import make_mesh
from repae_jax.runs.build import build_models
from repae_jax.training.program import Program

FLOPS = pathlib.Path(__file__).parents[2] / "benchmarks" / "flops.py"


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, np.float32)


def torch_flops(module, inputs, backward):
    module, inputs = module.to("meta"), torch.empty(*inputs, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        output = module(inputs)
        if backward:
            output.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("stride", "kernel", "side"), [(1, 3, 16), (2, 3, 16), (2, 4, 32), (1, 1, 8)]
)
def test_convolutions_are_torchs(stride, kernel, side, backward):
    padding = (kernel - 1) // 2
    module = torch.nn.Conv2d(6, 10, kernel, stride, padding=padding)
    expected = torch_flops(module, (4, 6, side, side), backward)
    layer = conv(6, 10, kernel, stride=stride, padding=((padding, padding),) * 2)

    def forward(params, x):
        return layer.apply({"params": params}, x).sum()

    params = jax.eval_shape(layer.init, jax.random.key(0), shape(4, side, side, 6))["params"]
    function = jax.grad(forward, argnums=(0, 1)) if backward else forward
    # The gradient's own forward pass is dead code to XLA, yet there in the trace.
    assert count_flops(function, params, shape(4, side, side, 6)) == expected


def test_products_in_any_arrangement():
    def function(a, b, c):
        return jnp.einsum("bhnd,bhmd->bhnm", a, b) @ c

    arguments = shape(2, 3, 5, 7), shape(2, 3, 11, 7), shape(2, 3, 11, 13)
    assert count_flops(function, *arguments) == 2 * 6 * (5 * 11 * 7 + 5 * 11 * 13)


def test_loops_branches_and_calls():
    def step(carry, w):
        return jnp.where(w.sum() > 0, carry @ w, carry), None

    def function(x, ws, flag):
        x, _ = jax.lax.scan(step, x, ws)
        x = jax.lax.cond(flag, lambda x: x @ x @ x, lambda x: x @ x, x)
        return jax.jit(lambda x: x @ x)(x)

    product = 2 * 8**3
    counted = count_flops(function, shape(8, 8), shape(5, 8, 8), jax.ShapeDtypeStruct((), bool))
    assert counted == (5 + 2 + 1) * product


def test_what_is_recomputed_counts_again():
    def block(x, w):
        return jnp.tanh(jnp.tanh(x @ w) @ w)

    def loss(block):
        return jax.grad(lambda w, x: block(x, w).sum())

    plain = count_flops(loss(block), shape(8, 8), shape(4, 8))
    again = count_flops(loss(jax.checkpoint(block)), shape(8, 8), shape(4, 8))
    one = 2 * 4 * 8 * 8
    assert plain == 2 * one + 3 * one
    assert again >= plain + one


@pytest.mark.parametrize(
    ("arch", "vae"), [("SiT-B/2", "f8d4"), ("DiT-B/2", "f8d4"), ("LightningDiT-B/1", "f16d32")]
)
def test_every_backbones_step_computes_what_arithmetic_says(arch, vae):
    """On cached latents, three blocks deep, by XLA's own count of the program besides ours."""
    config = apply_recipe(imagenet256(), "vanilla")
    config.update(batch_size=4, dtype="float32")
    config.data.update(source="latents", path="none yet")
    config.backbone, config.tokenizer = backbone(arch), tokenizer(vae)
    config.backbone.update(depth=3, encoder_depth=1)
    config.objective.interpolant = "ddpm" if arch.startswith("DiT") else "linear"
    config.objective.cosine_weight = float(arch.startswith("LightningDiT"))
    program = Program(config, build_models(config), make_mesh())
    parts = module_of(FLOPS, "flops").arithmetic(config, program.models, latents=True)
    expected = sum(parts.values())
    assert program.flops() == pytest.approx(expected, rel=1e-3)
    counted = program.step.lower(*program.arguments()).cost_analysis()["flops"]
    # Beyond the products, it counts what is computed between them.
    assert counted / config.batch_size == pytest.approx(expected, rel=0.03)


@pytest.mark.slow  # traces the full-size step three times, eight seconds each
def test_the_full_size_step_computes_what_arithmetic_says():
    """Nothing is wasted: REPA-E, REPA and SiT at 256 x 256, by benchmarks/flops.py."""
    name = "imagenet256_repae_sdvae.py"
    command = [sys.executable, str(FLOPS), "--json", name, f"{name}:repa", f"{name}:vanilla"]
    environment = {**os.environ, "PYTHONPATH": str(FLOPS.parents[1])}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 3
    for figures in found:
        assert figures["counted"] == pytest.approx(figures["arithmetic"], rel=0.03)
    # the parts that the original's modules were measured to cost, GFLOP an image
    parts = found[0]["parts"]
    saved = 0  # by up-sampling and convolution in one: 16 taps at small size for 9 at large
    for side, width in ((32, 512), (64, 512), (128, 256)):
        saved += 3 * 2 * width**2 * (9 * (2 * side) ** 2 - 16 * (side + 1) ** 2) / 1e9
    assert saved > 250
    assert parts["VAE"] + saved == pytest.approx(2685, rel=0.01)
    assert parts["SiT with heads"] == pytest.approx(724, rel=0.01)
    assert parts["LPIPS"] == pytest.approx(120, rel=0.01)
