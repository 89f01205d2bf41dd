"""The latent statistics that a tokenizer without any gets at the start of a run."""

import jax
import numpy as np
import parity
import pytest
import tiny

from repae_jax.data.pipeline import eval_batches
from repae_jax.data.sources import open_source
from repae_jax.models.tokenizers.base import encode, parameter_shapes
from repae_jax.runs.build import build_models
from repae_jax.runs.statistics import latent_moments
from repae_jax.utils.images import to_float


@pytest.mark.parametrize("posterior", ["sample", "mean"])
def test_they_are_those_of_the_latents(posterior):
    """A sample's variance is the mean's and the posterior's own; the mean has the first alone."""
    tokenizer = build_models(tiny.get_config()).tokenizer
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: rng.normal(scale=0.1, size=s.shape).astype(np.float32),
        parameter_shapes(tokenizer),
    )
    source = open_source(tiny.get_config().data, "heldout")
    found = latent_moments(
        tokenizer, {"params": params}, source, 8, 16, posterior=posterior, progress=False
    )
    means, stds = [], []
    for _, batch in zip(range(2), eval_batches(source, 8), strict=False):
        encoded = parity.quick_jit(lambda v, x: encode(tokenizer, v, to_float(x)))(
            {"params": params}, batch["image"]
        )
        means.append(np.asarray(encoded.mean, np.float64))
        stds.append(np.asarray(encoded.std, np.float64))
    mean, std = np.concatenate(means), np.concatenate(stds)
    expected = mean.var((0, 1, 2)) + (posterior == "sample") * np.mean(std**2, (0, 1, 2))
    np.testing.assert_allclose(found["mean"], mean.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["var"], expected, rtol=1e-4)
    assert np.mean(std**2) > 1e-2 * mean.var()
