import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch_inception
from parity import assert_close, state_of, to_nchw

from repae_jax.evaluation.inception_features import make_features
from repae_jax.interop.inception import load_inception


def test_equal_those_of_torch():
    network = torch_inception.random_inception()
    features = make_features(load_inception(state_of(network)))
    images = torch_inception.random_images(1, 256, 256, seed=4)
    pool, logits = network(to_nchw(images))
    actual = features(images)
    assert {name: f.shape for name, f in actual.items()} == {
        "pool": (1, 2048),
        "spatial": (1, 2023),
        "logits": (1, 1008),
    }
    assert_close(actual["pool"], pool, "pool")
    assert_close(actual["logits"], logits, "logits")


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), TypeError),
        (np.zeros((1, 3, 8, 8), np.uint8), ValueError),
        (np.zeros((8, 8, 3), np.uint8), ValueError),
    ],
)
def test_other_images_are_refused(images, error):
    features = make_features({})
    with pytest.raises(error, match=r"InceptionV3 takes .*got"):
        features(images)


ON_A_MESH = """
    import jax, numpy as np
    from repae_jax.evaluation.inception_features import make_features
    from repae_jax.interop.inception import inception_shapes
    from repae_jax.parallel.mesh import make_mesh

    rng = np.random.default_rng(0)

    def weight(path, leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        name = path[-1].key
        if name == "kernel":
            return noise * np.sqrt(2.0 / np.prod(leaf.shape[:-1]), dtype=np.float32)
        return 1.0 + 0.1 * np.abs(noise) if name in ("scale", "var") else 0.1 * noise

    variables = jax.tree_util.tree_map_with_path(weight, inception_shapes())
    images = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    assert len(jax.devices()) == 2
    one = make_features(variables)(images)
    two = make_features(variables, mesh=make_mesh())(images)
    for name, feature in two.items():
        assert len(feature.sharding.device_set) == 2
        assert feature.sharding.is_fully_replicated
        expected = np.asarray(one[name])
        apart = np.abs(expected[0] - expected[1]).max()
        error = np.abs(expected - np.asarray(feature)).max()
        assert error < 1e-4 * np.abs(expected).max() < apart, (name, error, apart)
"""


def test_a_mesh_divides_the_batch():
    # A process of its own, because the number of devices is fixed when JAX starts.
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(ON_A_MESH)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
