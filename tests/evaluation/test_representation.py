"""What a SiT knows of images: its features are those of its blocks, and what is made of them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from runs import make_teacher

from repae_jax.cli import main
from repae_jax.data.source import check_images
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError
from repae_jax.evaluation.alignment import cknna, normalize_features
from repae_jax.evaluation.representation import (
    Features,
    extract_features,
    measure_representation,
    probe,
    random_subset,
)
from repae_jax.evaluation.spatial import patches, spatial_measures
from repae_jax.runs.build import build_models, state_template
from repae_jax.runs.checkpoints import Checkpoints
from repae_jax.runs.open_run import open_run
from repae_jax.runs.workdir import claim
from repae_jax.utils.images import to_float


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with random weights: nothing is trained."""
    folder = tmp_path_factory.mktemp("representation")
    config = tiny.get_config()
    config.teachers.small.weights = str(make_teacher(folder))
    rng = np.random.default_rng(0)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = jax.tree.map(
        lambda s: rng.uniform(0.05, 0.4, s.shape).astype(s.dtype),
        state_template(config, build_models(config), sharding),
    )
    claim(folder / "run", config)
    checkpoints = Checkpoints(folder / "run")
    checkpoints.save(3, state.replace(step=np.asarray(3, np.int32)), {"global_next_index": 0})
    checkpoints.close()
    return folder / "run"


@pytest.fixture(scope="module")
def features(workdir):
    run = open_run(workdir)
    source = open_source(run.config.data, "heldout")
    return (
        run,
        source,
        extract_features(
            run.config, run.models, run.state, source, (0.0, 0.7), count=20, batch_size=8
        ),
    )


def test_features_are_those_of_the_networks(features):
    run, source, found = features
    drawn = np.sort(np.random.default_rng(0).choice(len(source), 20, replace=False))
    images = np.stack([source[int(index)]["image"] for index in drawn])
    np.testing.assert_array_equal(found.labels, [source[int(index)]["label"] for index in drawn])
    teacher = run.models.teachers["small"]
    tokens = teacher.apply(
        run.state.frozen["teachers"]["small"],
        teacher.prepare(jnp.asarray(images)),
    )
    expected = np.asarray(tokens.patch_tokens).mean(1)
    np.testing.assert_allclose(found.teachers["small"], expected, rtol=1e-4, atol=1e-5)
    vae = {"params": run.state.params["tokenizer"]}
    norm = run.state.ema["latent_norm"]
    latents = run.models.tokenizer.apply(vae, to_float(jnp.asarray(images)), method="encode").mean
    latents = (latents - norm["mean"]) / np.sqrt(norm["var"] + 1e-4)
    np.testing.assert_allclose(found.latents, latents.reshape(20, -1), rtol=1e-4, atol=1e-4)
    # at t = 0 nothing is noise; after block `encoder_depth` = 1 the SiT gives its tokens itself
    variables = {"params": run.state.ema["params"], "constants": run.state.ema["constants"]}
    null = np.full(20, run.models.backbone.conditioner.null_label)
    output = run.models.backbone.apply(
        variables, latents, np.zeros(20, np.float32), {"label": null}
    )
    expected = np.asarray(output.tokens).mean(1)
    np.testing.assert_allclose(found.backbone[0.0][0], expected, rtol=1e-3, atol=1e-3)
    assert found.backbone[0.7].shape == (2, 20, 16)
    assert np.abs(found.backbone[0.7] - found.backbone[0.0]).max() > 1e-3


def test_the_backbone_sees_what_it_was_trained_on(features):
    """At a variance as small as LatentNorm's epsilon: 1.41 times as much without it."""
    run, source, _ = features
    norm = {"mean": jnp.full(2, 0.3), "var": jnp.full(2, 1e-4)}
    state = run.state.replace(ema={**run.state.ema, "latent_norm": norm})
    run = dataclasses.replace(run, state=state)
    found = extract_features(run.config, run.models, state, source, (0.0,), count=20, batch_size=20)
    images = np.stack([random_subset(source, 20, 0)[index]["image"] for index in range(20)])
    vae = {"params": state.params["tokenizer"]}
    latents = run.models.tokenizer.apply(vae, to_float(jnp.asarray(images)), method="encode").mean
    # as training normalises, with the running statistics
    seen = run.models.latent_norm.apply({"batch_stats": norm}, latents, train=False)
    np.testing.assert_allclose(found.latents, seen.reshape(20, -1), rtol=1e-4, atol=1e-4)


def test_the_sit_of_batches_is_the_sit_of_all(features):
    run, source, found = features
    again = extract_features(
        run.config, run.models, run.state, source, (0.0,), count=20, batch_size=20
    )
    np.testing.assert_allclose(found.backbone[0.0], again.backbone[0.0], rtol=1e-4, atol=1e-4)


def test_the_spatial_structure_is_that_of_the_networks_tokens(features):
    run, source, pooled = features
    found = extract_features(
        run.config, run.models, run.state, source, (0.0, 0.7), count=20, batch_size=8, spatial=True
    )
    np.testing.assert_array_equal(found.backbone[0.7], pooled.backbone[0.7])
    assert pooled.spatial is None
    images = np.stack([random_subset(source, 20, 0)[index]["image"] for index in range(20)])
    teacher, grid = run.models.teachers["small"], run.models.backbone.grid
    variables = run.state.frozen["teachers"]["small"]
    tokens = teacher.apply(variables, teacher.prepare(jnp.asarray(images))).patch_tokens
    expected = spatial_measures(tokens, grid, grid)
    np.testing.assert_allclose(found.spatial.teachers["small"], expected, rtol=1e-3, atol=1e-4)
    side = run.models.backbone.latent_size
    latents = found.latents.reshape(20, side, side, -1)
    expected = spatial_measures(patches(latents, grid), grid, grid)
    np.testing.assert_allclose(found.spatial.latents, expected, rtol=1e-3, atol=1e-4)
    variables = {"params": run.state.ema["params"], "constants": run.state.ema["constants"]}
    null = {"label": np.full(20, run.models.backbone.conditioner.null_label)}
    output = run.models.backbone.apply(variables, latents, np.zeros(20, np.float32), null)
    expected = np.asarray(spatial_measures(output.tokens, grid, grid))
    np.testing.assert_allclose(found.spatial.backbone[0], expected, rtol=1e-3, atol=1e-4)
    assert np.abs(found.spatial.backbone[1] - expected)[:, 2].max() > 1e-3  # another noise level
    averaged = measure_representation(found, topk=5).spatial
    np.testing.assert_allclose(averaged.backbone[0, 2], expected[:, 2].mean(), rtol=1e-3)


def test_tables_are_cknna_and_probes():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    teacher = rng.normal(size=(60, 5)) + 2 * np.eye(5)[labels]
    near, far = teacher + 0.01 * rng.normal(size=(60, 5)), rng.normal(size=(60, 5))
    found = measure_representation(
        Features(labels, {0.1: np.stack([near, far])}, far, {"x": teacher}), topk=5
    )
    table = found.alignment["x"]
    assert table[0, 0] == cknna(normalize_features(near), normalize_features(teacher), 5)
    assert table[0, 0] > 0.9 > 0.5 > table[0, 1] == found.latents["x"]
    assert found.probes[0, 0] > 0.6 > found.probes[0, 1] == found.probe_latents
    assert found.probe_teachers["x"] == probe(teacher, labels)
    one = Features(0 * labels, {0.1: near[None]}, far, {"x": teacher})
    assert measure_representation(one, topk=5).probes is None


def test_a_collapsed_block_has_no_alignment(capsys):
    rng = np.random.default_rng(0)
    labels, teacher = np.arange(60) % 3, rng.normal(size=(60, 5))
    tokens = np.stack([np.ones((60, 5)), rng.normal(size=(60, 5))])
    found = measure_representation(Features(labels, {0.1: tokens}, teacher, {"x": teacher}), topk=5)
    assert np.isnan(found.alignment["x"]).tolist() == [[True, False]]
    assert "the teacher x is left out 1 of 3 times" in capsys.readouterr().err
    assert 0.2 < found.probes[0, 0] < 0.5  # nothing to tell classes by


def test_a_probe_is_tested_on_images_that_it_has_not_seen():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(400, 100)), rng.integers(0, 2, 400)
    assert 0.35 < probe(features, labels) < 0.65  # there is nothing to know
    features[:, 0] += 10 * labels
    assert probe(features, labels) > 0.95
    order = np.concatenate([np.flatnonzero(labels == k)[:150] for k in (0, 1)])
    order = order.reshape(2, -1).T.ravel()  # the classes in turn
    assert probe(features[order], labels[order]) > 0.95


def test_preparation_cuts_off_and_normalises():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 40))
    features[3, 7] = 1000.0
    limit = np.mean([np.percentile(np.abs(row), 95) for row in features])
    expected = np.array([row / np.sqrt((row**2).sum()) for row in features.clip(-limit, limit)])
    np.testing.assert_allclose(normalize_features(features), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("times", "count", "message"),
    [((0.5, 1.2), 10, "times are"), ((), 10, "times are"), ((0.5,), 10**6, "are requested")],
)
def test_impossible_wishes_are_said(times, count, message, workdir):
    run = open_run(workdir)
    source = open_source(run.config.data, "heldout")
    with pytest.raises(UserError, match=message):
        extract_features(run.config, run.models, run.state, source, times, count=count)


def test_cached_latents_without_images_are_said():
    class Latents(list):
        name = "cache"

    with pytest.raises(UserError, match="cache holds latents without their images"):
        check_images(Latents([{"latent_mean": 0, "label": 1}]))


def test_the_command(workdir, tmp_path, capsys):
    words = ["evaluate-alignment", "--workdir", str(workdir), "--quiet"]
    more = ["--count", "20", "--times", "0,0.7", "--batch-size", "8", "--output", str(tmp_path)]
    assert main([*words, *more]) == 0
    printed = capsys.readouterr().out
    assert "CKNNA with small" in printed
    assert "accuracy of linear probes" in printed
    assert "spatial structure of the tokens, the backbone's after block 1" in printed
    (row,) = (line for line in printed.splitlines() if line.startswith("  the VAE's latents"))
    figures = json.loads((tmp_path / "alignment.json").read_text())
    assert np.shape(figures["cknna"]["small"]) == (2, 2)
    spatial = figures["spatial"]
    assert (spatial["block"], np.shape(spatial["backbone"]["rmsc"])) == (1, (2,))
    assert row.split()[-1] == f"{spatial['latents']['rmsc']:.3f}"
    assert 0 < spatial["teachers"]["small"]["rmsc"] <= 1
    assert (tmp_path / "alignment.png").stat().st_size > 5000
    assert main([*words, "--topk", "1"]) == 2
    assert "--topk is 1: give 2 to" in capsys.readouterr().err
    assert main([*words, "--times", "early"]) == 2
    assert "--times is 'early'" in capsys.readouterr().err
