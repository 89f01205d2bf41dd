"""Noise of an image and a step, and samples of it: the same in any batch, on any devices."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from velocities import NULL_LABEL, SHAPE, velocity

from repae_jax.errors import UserError
from repae_jax.sampling.integrate import sample
from repae_jax.sampling.noise import image_noise, step_noise
from repae_jax.sampling.sampler import Sampler


def test_noise_of_an_image_does_not_depend_on_its_batch():
    key, indices = jax.random.key(3), jnp.array([0, 7, 49_999, 3])

    @jax.jit
    def draw(indices):
        return image_noise(key, indices, SHAPE), step_noise(key, indices, SHAPE)(jnp.int32(5))

    for whole, *parts in zip(draw(indices), draw(indices[:1]), draw(indices[1:]), strict=True):
        assert whole.shape == (4, *SHAPE)
        np.testing.assert_array_equal(whole, np.concatenate(parts))
    turned = draw(indices[::-1])[0]
    np.testing.assert_array_equal(turned, draw(indices)[0][::-1])


def test_images_and_steps_draw_independent_standard_normals():
    key, indices, shape = jax.random.key(4), jnp.arange(6), (16, 16, 4)
    steps = step_noise(key, indices, shape)
    draws = np.concatenate([image_noise(key, indices, shape), *(steps(i) for i in range(3))])
    correlation = np.corrcoef(draws.reshape(len(draws), -1))
    deviation = 1 / np.sqrt(draws[0].size)
    assert np.abs(correlation - np.eye(len(draws))).max() < 5 * deviation
    assert np.abs(draws.mean(axis=(1, 2, 3))).max() < 5 * deviation
    assert np.abs(draws.std(axis=(1, 2, 3)) - 1).max() < 5 * deviation
    other = image_noise(jax.random.key(5), indices, shape)
    assert (np.asarray(other) != draws[:6]).mean() > 0.99


def test_samples_do_not_depend_on_the_batch_split():
    sampler, key = Sampler("euler-maruyama", 10, "linear", 1.8, 0.0, 0.6), jax.random.key(6)
    labels = jnp.arange(4)

    @jax.jit
    def latents(indices):
        return sample(
            sampler,
            velocity,
            image_noise(key, indices, SHAPE),
            labels[indices],
            null=NULL_LABEL,
            step_noise=step_noise(key, indices, SHAPE),
        )

    whole = latents(jnp.arange(4))
    parts = np.concatenate([latents(jnp.array([0, 1])), latents(jnp.array([2, 3]))])
    np.testing.assert_allclose(whole, parts, atol=1e-5)


def test_a_generator_that_mixes_the_batch_is_refused():
    with pytest.raises(UserError, match="rbg"):
        image_noise(jax.random.key(0, impl="rbg"), jnp.arange(2), SHAPE)


SHARDED = """
    import jax, jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from repae_jax.sampling.integrate import sample
    from repae_jax.sampling.noise import image_noise, step_noise
    from repae_jax.sampling.sampler import Sampler

    shape, key = (2, 2, 4), jax.random.key(0)
    table = jnp.linspace(-1.0, 1.0, 11)

    @jax.jit
    def latents(indices):
        velocity = lambda x, t, y: jnp.tanh(x * table[y][:, None, None, None])
        return sample(
            Sampler("euler-maruyama", 10, "linear", 1.8, 0.0, 0.6),
            velocity,
            image_noise(key, indices, shape),
            indices % 10,
            null=10,
            step_noise=step_noise(key, indices, shape),
        )

    indices = jnp.arange(8)
    one = latents(indices)
    mesh = Mesh(jax.devices(), "data")
    split = jax.device_put(indices, NamedSharding(mesh, PartitionSpec("data")))
    compiled = latents.lower(split).compile()
    assert len(jax.devices()) == 4
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in compiled.as_text(), collective
    assert jnp.abs(one - compiled(split)).max() < 1e-5
"""


def test_a_split_batch_is_guided_without_communication():
    # A process of its own, because the number of devices is fixed when JAX starts.
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(SHARDED)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
