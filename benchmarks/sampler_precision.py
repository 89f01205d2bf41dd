"""What float32 costs the samplers: their latents against an integration in float64.

    python benchmarks/sampler_precision.py [--steps 250] [--arch SiT-S/2]

One SiT with random weights gives the velocity to all of them, in float32, so that what differs is
the integration alone: the sampler as it is (a float32 state with compensated sums), the same sums
without compensation, and in NumPy the methods' textbook formulas with a float64 state, in which
the original works. Prints a table of relative differences, the largest and the root mean square.
"""

import argparse
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.models.backbones.sit import SIT_CONFIGS, SiT
from repae_jax.models.conditioning.class_label import ClassLabel
from repae_jax.sampling.integrate import sample
from repae_jax.sampling.sampler import METHODS, Sampler
from repae_jax.sampling.steps import time_grid

LATENT = (16, 16, 4)
CLASSES = 10
TIME_FLOOR = 0.04  # below it Euler-Maruyama takes one step, without noise


def random_sit(arch: str, seed: int):
    """A SiT and variables none of which is zero, as training leaves them."""
    sit = SiT(
        **SIT_CONFIGS[arch],
        latent_size=LATENT[0],
        latent_channels=LATENT[2],
        conditioner=ClassLabel(CLASSES),
    )
    inputs = (jnp.zeros((1, *LATENT)), jnp.zeros(1), {"label": jnp.zeros(1, jnp.int32)})
    variables = sit.init(jax.random.key(seed), *inputs)
    rng = np.random.default_rng(seed)

    def filled(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100
        return jnp.asarray(rng.normal(size=leaf.shape) / fan_in**0.5, jnp.float32)

    return sit, {**variables, "params": jax.tree.map(filled, variables["params"])}


def integrate(sampler: Sampler, drift, x: np.ndarray, noises: np.ndarray, dtype) -> np.ndarray:
    """The method's formulas step by step, the state in `dtype`, without compensation.

    `drift(x, t)` gives dx/dt (without noise) in that type; `noises` (steps, B, h, w, c).
    """
    times = time_grid(sampler)
    x = x.astype(dtype)
    for i, (t, after) in enumerate(itertools.pairwise(times)):
        dt = dtype(after - t)
        d = drift(x, t)
        moved = x + dt * d
        if sampler.method == "heun" and after > 0:
            moved = x + dt * (d + drift(moved, after)) / dtype(2)
        if sampler.stochastic and t > TIME_FLOOR:
            moved = moved + dtype(np.sqrt(2 * t * -dt)) * noises[i].astype(dtype)
        x = moved
    return x


def differences(sampler: Sampler, sit: SiT, variables, batch: int, seed: int) -> dict:
    """{"sampler" or "plain float32": (largest, root mean square)} of the relative differences."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(batch, *LATENT)).astype(np.float32)
    noises = rng.normal(size=(sampler.steps, batch, *LATENT)).astype(np.float32)
    labels = np.arange(batch) % CLASSES

    def velocity(variables, x, t, y):
        return sit.apply(variables, x, t, {"label": y}).prediction

    pairs = np.concatenate([labels, np.full_like(labels, sit.conditioner.null_label)])
    both = jax.jit(lambda x, t: velocity(variables, x, t, pairs))

    def drift(x, t):
        """Guided; the linear interpolant's score is -(x + (1 - t) v) / t."""
        twice = np.concatenate([x, x]).astype(np.float32)
        v = np.asarray(both(twice, np.full(2 * batch, t, np.float32))).astype(x.dtype)
        if sampler.stochastic:
            v = v + np.concatenate([x, x]) + x.dtype.type(1 - t) * v  # v - t score
        cond, uncond = np.split(v, 2)
        return uncond + x.dtype.type(sampler.guidance_scale) * (cond - uncond)

    @jax.jit
    def ours(variables, noise, noises):
        return sample(
            sampler,
            lambda x, t, y: velocity(variables, x, t, y),
            noise,
            labels,
            null=sit.conditioner.null_label,
            step_noise=lambda i: noises[i],
        )

    exact = integrate(sampler, drift, noise, noises, np.float64)
    found = {
        "sampler": ours(variables, noise, noises),
        "plain float32": integrate(sampler, drift, noise, noises, np.float32),
    }
    scale = np.abs(exact).max()
    errors = {name: np.asarray(x, np.float64) - exact for name, x in found.items()}
    return {
        name: (np.abs(error).max() / scale, np.sqrt((error**2).mean()) / scale)
        for name, error in errors.items()
    }


def main() -> None:
    """Integrate by every method, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--arch", default="SiT-S/2", choices=SIT_CONFIGS)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sit, variables = random_sit(options.arch, options.seed)
    print(f"{options.arch}, {options.steps} steps, guidance {options.guidance_scale}\n")
    print("| method | sampler: largest | rms | without compensation: largest | rms |")
    print("| --- | --- | --- | --- | --- |")
    for method in METHODS:
        sampler = Sampler(method, options.steps, "linear", options.guidance_scale)
        found = differences(sampler, sit, variables, options.batch_size, options.seed)
        cells = [f"{figure:.1e}" for pair in found.values() for figure in pair]
        print(f"| {method} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
