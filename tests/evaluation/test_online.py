"""What a run measures while it trains, against the same measures made afterwards by other hands."""

import jax
import numpy as np
import pytest
import scipy.linalg
import tiny
from runs import words
from safetensors.numpy import load_file, save_file

from repae_jax.cli import main
from repae_jax.config.modules import build_sampler
from repae_jax.config.needs import check_files
from repae_jax.config.storage import differences
from repae_jax.config.validate import validate
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError
from repae_jax.evaluation.alignment import cknna, normalize_features
from repae_jax.evaluation.representation import extract_features, pooled_tokens
from repae_jax.runs.checkpoints import restore_latest
from repae_jax.runs.metrics import read_history
from repae_jax.runs.open_run import open_run, sampling_key, sampling_weights
from repae_jax.runs.workdir import load_config
from repae_jax.sampling.generate import generate_all, make_generate

pytestmark = pytest.mark.slow  # its fixtures train

SAMPLES, IMAGES = 90, 40
WANTED = dict(every=2, network="small", samples=SAMPLES, cknna_images=IMAGES)
KEYS = [f"--config.evaluation.{key}={value}" for key, value in WANTED.items()]


@pytest.fixture(scope="module")
def measured(teacher, tmp_path_factory):
    """A run of 3 steps that is measured after the second and at its end."""
    workdir = tmp_path_factory.mktemp("measured") / "run"
    assert main(words(workdir, teacher, *KEYS, steps=3)) == 0
    return workdir


def test_figures_are_there_for_tensorboard(measured):
    history = read_history(measured)
    found = {name.removeprefix("evaluation/") for name in history if "evaluation/" in name}
    assert found == {"frechet_small", "precision_small", "recall_small", "cknna_small"}
    for name in found:
        assert history[f"evaluation/{name}"][0].tolist() == [2, 3]


def test_the_report_draws_them(measured):
    assert main(["report", "--workdir", str(measured), "--samples", "20", "--quiet"]) == 0
    page = (measured / "report.html").read_text()
    assert "Measures of the run" in page
    assert (measured / "report" / "measures.png").read_bytes().startswith(b"\x89PNG")


def test_the_distance_is_that_of_generated_and_training_images(measured):
    run = open_run(measured)
    inputs = {"label": (np.arange(SAMPLES) % 10).astype(np.int32)}
    sampler = build_sampler(run.config, steps=run.config.run.sample_steps)
    generate = make_generate(run.models, sampler)
    made = generate_all(
        generate, sampling_weights(run.state), sampling_key(run.config), inputs, batch_size=SAMPLES,
        progress=False,
    )  # fmt: skip
    source = open_source(run.config.data, "train")
    chosen = np.random.default_rng(0).choice(len(source), SAMPLES, replace=False)
    real = np.stack([source[int(index)]["image"] for index in np.sort(chosen)])
    teacher, variables = run.models.teachers["small"], run.state.frozen["teachers"]["small"]
    a, b = (np.asarray(pooled_tokens(teacher, variables, x), np.float64) for x in (made, real))
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum()
    expected += np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * np.trace(root)
    value = read_history(measured)["evaluation/frechet_small"][1][-1]
    assert value == pytest.approx(expected, rel=1e-3)


def test_cknna_is_that_of_the_aligned_block(measured):
    run = open_run(measured)
    source = open_source(run.config.data, "heldout")
    features = extract_features(
        run.config, run.models, run.state, source, (0.5,), count=IMAGES, batch_size=80
    )
    block = run.config.backbone.encoder_depth - 1
    expected = cknna(
        normalize_features(features.backbone[0.5][block]),
        normalize_features(features.teachers["small"]),
    )
    value = read_history(measured)["evaluation/cknna_small"][1][-1]
    assert value == pytest.approx(expected, abs=1e-3)


def test_measuring_leaves_the_run_as_it_is(measured, teacher, tmp_path):
    assert main(words(tmp_path / "plain", teacher, steps=3)) == 0
    a, b = restore_latest(measured), restore_latest(tmp_path / "plain")
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    # and may begin later
    assert main([*words(tmp_path / "plain", teacher, *KEYS, steps=4)]) == 0
    assert read_history(tmp_path / "plain")["evaluation/frechet_small"][0].tolist() == [4]
    assert not differences(
        load_config(tmp_path / "plain").evaluation.to_dict(),
        load_config(measured).evaluation.to_dict(),
    )


def test_a_collapse_is_said_and_does_not_end_the_run(teacher, tmp_path, capsys):
    zeros = {name: np.zeros_like(array) for name, array in load_file(teacher).items()}
    save_file(zeros, tmp_path / "zeros.safetensors")
    keys = [*KEYS, "--config.evaluation.samples=0"]
    workdir = tmp_path / "run"
    assert main(words(workdir, tmp_path / "zeros.safetensors", *keys, steps=2)) == 0
    assert "CKNNA with the teacher small is left out: " in capsys.readouterr().err
    assert "evaluation/cknna_small" not in read_history(workdir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(every=-1), "config.evaluation.every is -1"),
        (dict(samples=1), "config.evaluation.samples is 1: give at least 2"),
        (dict(cknna_images=5), "config.evaluation.cknna_images is 5: give at least 12"),
        (dict(cknna_time=1.5), r"cknna_time is .*give at most 1"),
        (
            dict(network="vgg"),
            "config.evaluation.network is 'vgg': use one of inception, teachers.small",
        ),
        (dict(network="inception", weights="none.pth"), "evaluation.weights is 'none.pth', which"),
        (dict(reference="none.npz"), "evaluation.reference is 'none.npz', which does not exist"),
    ],
)
def test_impossible_wishes_are_said_at_once(changes, message):
    config = tiny.get_config()
    config.evaluation.update({**WANTED, **changes})

    def check():
        validate(config)
        check_files(config)

    with pytest.raises(UserError, match=message):
        check()


def test_a_vae_alone_is_not_sampled_from():
    config = tiny.get_config("vae")
    assert config.evaluation.every == 0
    config.evaluation.update(WANTED)
    with pytest.raises(UserError, match="config.train has no 'backbone'"):
        validate(config)


def test_statistics_of_another_network_are_said(teacher, tmp_path, capsys):
    path = tmp_path / "other.npz"
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
    arguments = words(tmp_path / "run", teacher, *KEYS, f"--config.evaluation.reference={path}")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "holds features of 2048 dimensions: those of small have 8" in error
    assert "step 2:" not in error
    np.savez(path, arr_0=np.zeros((9, 16, 16, 3), np.uint8))
    assert main(arguments) == 2
    assert "images of 16 x 16 pixels, not 32" in capsys.readouterr().err
