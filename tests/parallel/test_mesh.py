"""Eight devices compute what one does."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import json, jax, numpy as np, tiny
from repae_jax.parallel.mesh import make_mesh, put_batch, replicated
from repae_jax.training.build import build_models, fresh_state
from repae_jax.training.loop import compile_step

config = tiny.get_config()
models, mesh = build_models(config), make_mesh()
state = jax.jit(lambda key: fresh_state(config, models, key))(jax.random.key(0))
state = jax.device_put(state, replicated(mesh))
rng = np.random.default_rng(0)
batch = {
    "image": rng.integers(0, 256, (8, 32, 32, 3)).astype(np.uint8),
    "label": np.arange(8, dtype=np.int32),
}
step, history = compile_step(config, models, mesh), []
for _ in range(2):
    state, metrics = step(state, put_batch(mesh, batch), jax.random.key(1))
    history.append({name: float(value) for name, value in metrics.items()})
print(json.dumps([jax.device_count(), history]))
"""


def run(devices):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    path = os.pathsep.join([str(pathlib.Path(__file__).parents[1]), *sys.path])
    environment = dict(os.environ, XLA_FLAGS=flags, PYTHONPATH=path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    count, history = json.loads(done.stdout)
    assert count == devices
    return history


@pytest.mark.slow  # two processes that compile the step, one of them for eight devices
def test_eight_devices_give_what_one_gives():
    # Batch statistics of LatentNorm and the discriminator are over the global batch, so all
    # terms agree; the second step sees the first one's updates.
    for one, eight, tolerance in zip(run(1), run(8), (1e-5, 1e-4), strict=True):
        for name, value in one.items():
            np.testing.assert_allclose(eight[name], value, rtol=tolerance, atol=1e-7, err_msg=name)
