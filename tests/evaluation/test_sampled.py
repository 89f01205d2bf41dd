"""`evaluate` of a run: what `generate` would write, measured while it is made."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from repae_jax.cli import main
from repae_jax.runs.workdir import is_run

RNG = np.random.default_rng(0)
MAPS = {
    name: RNG.normal(size=(3 * 8 * 8, width)).astype(np.float32)
    for name, width in {"pool": 64, "spatial": 40, "logits": 30}.items()
}


@pytest.fixture
def light(monkeypatch):
    """Replaces Inception by random linear maps of small images."""

    def make_features(variables, *, mesh, resized=False):
        def features(images):
            assert len(images) == 8  # every batch has the compiled shape
            small = jnp.asarray(images, jnp.float32).reshape(-1, 8, 4, 8, 4, 3).mean((2, 4))
            flat = small.reshape(len(images), -1) / 255
            return {name: flat @ matrix for name, matrix in MAPS.items()}

        return features

    monkeypatch.setattr("repae_jax.evaluation.inception_features.make_features", make_features)
    monkeypatch.setattr("repae_jax.interop.inception.read_inception", lambda path: {})


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "real.npz"
    np.savez(path, arr_0=RNG.integers(0, 256, (30, 32, 32, 3), np.uint8))
    return path


OPTIONS = ["--count", "21", "--seed", "3", "--labels", "random", "--guidance-scale", "1.5",
           "--batch-size", "8", "--quiet"]  # fmt: skip


def test_a_run_gives_the_figures_of_what_it_would_write(light, random_run, reference, tmp_path):
    words = ["evaluate", str(random_run), "--reference", str(reference), *OPTIONS]
    assert main([*words, "--output", str(tmp_path / "direct.json")]) == 0
    made = tmp_path / "made.npz"
    assert main(["generate", "--workdir", str(random_run), "--output", str(made), *OPTIONS]) == 0
    words = ["evaluate", str(made), "--reference", str(reference), "--batch-size", "8", "--quiet"]
    assert main([*words, "--output", str(tmp_path / "stored.json")]) == 0
    direct = json.loads((tmp_path / "direct.json").read_text())
    stored = json.loads((tmp_path / "stored.json").read_text())
    assert direct.pop("samples") != stored.pop("samples")
    assert direct == stored
    assert direct["count"] == 21
    assert {"fid", "sfid", "inception_score", "precision", "recall"} <= set(direct)
    assert not list(random_run.glob("*.npz*"))


@pytest.mark.slow
def test_the_seed_the_sampler_and_the_checkpoint_count(light, random_steps, reference, tmp_path):
    words = ["evaluate", str(random_steps), "--reference", str(reference), *OPTIONS]
    found = []
    for more in ([], ["--seed", "4"], ["--steps", "2"], ["--labels", "3"], ["--step", "2"]):
        assert main([*words, *more, "--output", str(tmp_path / "figures.json")]) == 0
        found.append(json.loads((tmp_path / "figures.json").read_text())["fid"])
    assert len(set(found)) == 5


def test_a_sampler_for_images_that_exist_is_refused(reference, random_run, capsys):
    assert is_run(random_run)
    assert not is_run(reference)
    words = ["evaluate", str(reference), "--reference", str(reference), "--quiet"]
    assert main([*words, "--guidance-scale", "2"]) == 2
    assert "--guidance-scale is for a run's work directory, but" in capsys.readouterr().err
    words = ["evaluate", str(random_run), "--reference", str(reference), "--quiet"]
    assert main([*words, "--count", "0"]) == 2
    assert "--count is 0" in capsys.readouterr().err
