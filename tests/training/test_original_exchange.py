"""Checkpoints and weights of the original REPA-E: read, trained on, and given back."""

import argparse
import dataclasses
import pathlib
import runpy
import sys
from unittest import mock

import jax
import numpy as np
import original_comparison as comparison
import original_differences as difference
import original_exchange as exchange
import original_loop as loop
import original_networks as original
import pytest
import torch
from imported_runs import (
    METRIC_LIMIT,
    MOMENT_LIMIT,
    MOVED_LIMIT,
    MOVED_TENSOR_LIMIT,
    STEPS,
    VALUE_LIMIT,
    apply_sit,
    imported_state,
    sit_inputs,
    sit_variables,
    there_and_back,
    train_step,
)
from original_comparison import MODELS, Case, Comparison
from original_exchange import NEEDS_ORIGINAL, small_config
from parity import ORIGINAL, assert_close, normal, quick_jit, randomise, state_of, to_nchw, to_nhwc
from saved import assert_same_content, saved_content

from repae_jax.interop import files
from repae_jax.interop.detect_format import detect
from repae_jax.interop.discriminator import load_discriminator
from repae_jax.interop.lpips import load_lpips
from repae_jax.interop.vae_files import write_ldm
from repae_jax.runs import weights
from repae_jax.runs.conversion import convert
from repae_jax.runs.pretrained import PretrainedVAE


@dataclasses.dataclass
class Trip:
    """A training of the original's, its checkpoint, our run made of it, and that run exported.

    `training` stands where it was saved; one test takes it a step further.
    """

    training: exchange.Training
    vae: torch.nn.Module
    case: Case
    table_moves: bool
    config: object
    checkpoint: pathlib.Path
    workdir: pathlib.Path
    exported: pathlib.Path

    def resumed(self, path, *, table_moves):
        """(networks, training) that the original makes of a checkpoint, from other weights."""
        networks = fresh_networks(self.case) | ({"vae": self.vae} if self.case.frozen_vae else {})
        return networks, make_training(networks, self.case, table_moves).resume(path)

    def next_step(self, training, inputs):
        return comparison.case_step(training, self.vae, self.case, *inputs)


def make_training(networks, case, table_moves):
    script = loop.LDM_ONLY if case.frozen_vae else loop.REPAE
    trained = {k: v for k, v in networks.items() if k == "model" or not case.frozen_vae}
    return exchange.Training(script, trained, table_moves=table_moves)


def fresh_networks(case):
    """Modules with other weights, but for LPIPS's, which no checkpoint holds."""
    networks = {"model": original.make_sit(seed=11), "vae": original.make_vae(seed=12)}
    if case.frozen_vae:
        return networks
    loss = original.make_vae_loss(seed=3)
    randomise(loss.discriminator, seed=13)
    for part in loss.discriminator.main:
        if isinstance(part, torch.nn.BatchNorm2d):
            part.reset_running_stats()
    return networks | {"vae_loss_fn": loss}


CASES = {
    "repae": (Case(), False),
    "repae-table-moves": (Case(), True),
    "ldm": (Case(frozen_vae=True), False),
}


@pytest.fixture(scope="module", params=CASES)
def trip(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    case, table_moves = CASES[request.param]
    networks = comparison.make_networks(case)
    vae, config = networks["vae"], small_config("repa" if case.frozen_vae else "repae")
    if case.frozen_vae:
        config.tokenizer.weights = str(folder / "vae.pt")
        torch.save(vae.state_dict(), config.tokenizer.weights)
    training = make_training(networks, case, table_moves)
    for step in range(STEPS):
        comparison.case_step(training, vae, case, *comparison.make_batch(step))
    paths = there_and_back(training.save(folder / "theirs"), config)
    return Trip(training, vae, case, table_moves, config, *paths)


def only(*names):
    """A mark: of the trips, these."""
    return pytest.mark.parametrize("trip", names, indirect=True)


@NEEDS_ORIGINAL
def test_a_checkpoint_comes_back_bit_by_bit(trip):
    theirs, ours = saved_content(trip.checkpoint), saved_content(trip.exported)
    assert (0 in theirs["opt"]["state"]) == trip.table_moves
    assert theirs["steps"] == STEPS
    assert set(ours) == set(theirs)
    assert vars(ours.pop("args")) == vars(theirs.pop("args"))
    for key in theirs:
        assert_same_content(ours[key], theirs[key], key)


@NEEDS_ORIGINAL
def test_the_folder_of_a_training_is_recognised(trip):
    found = detect(trip.checkpoint.parent.parent)
    assert found.path == trip.checkpoint
    assert found.format == ("ldm" if trip.case.frozen_vae else "repae")


@NEEDS_ORIGINAL
def test_the_original_goes_on_from_the_export(trip, tmp_path):
    _, resumed = trip.resumed(trip.exported, table_moves=trip.table_moves)
    inputs = comparison.make_batch(STEPS)
    assert trip.next_step(resumed, inputs) == trip.next_step(trip.training, inputs)
    ours, theirs = (
        saved_content(training.save(tmp_path / name))
        for name, training in (("ours", resumed), ("theirs", trip.training))
    )
    before = saved_content(trip.checkpoint)
    assert theirs["steps"] == STEPS + 1
    moved = not torch.equal(theirs["model"]["pos_embed"], before["model"]["pos_embed"])
    assert moved == trip.table_moves
    for key in theirs.keys() - {"args"}:
        assert_same_content(ours[key], theirs[key], key)


@NEEDS_ORIGINAL
@only(
    pytest.param("repae", marks=pytest.mark.slow),  # compiles the whole step
    pytest.param("repae-table-moves", marks=pytest.mark.slow),
    "ldm",
)
def test_our_next_step_is_the_originals(trip):
    # the table fixed on both sides, also where it has moved before
    networks, resumed = trip.resumed(trip.exported, table_moves=False)
    inputs = comparison.safe_batch(networks, STEPS)
    state = imported_state(trip.workdir, trip.config)
    if "vae_loss_fn" in networks:
        lpips = state_of(networks["vae_loss_fn"].perceptual_loss.lpips)
        state = state.replace(frozen={**state.frozen, "lpips": load_lpips(lpips, MODELS.lpips)})
    kind = "repa" if trip.case.frozen_vae else "repae"
    after, metrics = train_step(kind)(state, *inputs)
    found = Comparison(
        our_metrics=[comparison.in_both_logs(metrics)],
        their_metrics=[trip.next_step(resumed, inputs)],
        before=comparison.our_arrays(state),
        ours=comparison.our_arrays(after),
        theirs=comparison.their_arrays(networks, resumed),
    )
    assert set(found.ours) == set(found.theirs)
    apart = difference.metrics(found, 0)
    assert set(found.our_metrics[0]) == set(apart)
    assert all(value <= METRIC_LIMIT for value in apart.values()), apart
    for group in difference.MOVED:
        total, worst, path = difference.moved(found, group)
        assert total <= MOVED_LIMIT, (group, total)
        assert worst <= MOVED_TENSOR_LIMIT, (path, worst)
    for group in difference.VALUES:
        worst, path = difference.values(found, group)
        limit = MOMENT_LIMIT if group.startswith("moments/") else VALUE_LIMIT
        assert worst <= limit, (path, worst)


def their_velocity(module, x, time, condition):
    labels = torch.tensor(condition["label"]).long()
    return to_nhwc(module.eval().inference(to_nchw(x), torch.tensor(time), labels))


@NEEDS_ORIGINAL
def test_imported_velocities_are_the_originals(trip):
    state, content = imported_state(trip.workdir, trip.config), saved_content(trip.checkpoint)
    module = original.make_sit(seed=21)
    for key, variables in sit_variables(state).items():
        module.load_state_dict(content[key], strict=True)
        expected = their_velocity(module, *sit_inputs())
        assert_close(apply_sit()(variables, *sit_inputs()).prediction, expected, key)


# --- the files of a VAE ---------------------------------------------------------------------


@pytest.fixture
def vae_files(trip, tmp_path):
    """e2e.pt and the two files beside it, as the original's own script takes them out."""
    script = str(pathlib.Path(ORIGINAL) / "save_vae_weights.py")
    words = ["--repae-ckpt", str(trip.checkpoint), "--vae-name", "e2e", "--save-dir", str(tmp_path)]
    allowed = torch.serialization.safe_globals([argparse.Namespace])
    with mock.patch.object(sys, "argv", [script, *words]), allowed:
        runpy.run_path(script, run_name="__main__")
    return tmp_path / "e2e"


@NEEDS_ORIGINAL
@only("repae")
def test_a_vae_file_is_read_and_written(trip, vae_files, tmp_path):
    vae = PretrainedVAE.from_pretrained(vae_files / "e2e.pt")
    assert vae.module == MODELS.tokenizer
    module = original.make_vae(seed=31)
    module.load_state_dict(torch.load(vae_files / "e2e.pt"), strict=True)
    images = np.clip(normal(2, 32, 32, 3, seed=5), -1, 1)
    with torch.no_grad():
        posterior = module.encode(to_nchw(images))
        decoded = module.decode(posterior.mean).sample
    ours = vae.encode(images)
    assert_close(ours.mean, to_nhwc(posterior.mean), "mean")
    assert_close(ours.logvar, to_nhwc(posterior.logvar), "log-variance")
    assert_close(vae.decode(to_nhwc(posterior.mean)), to_nhwc(decoded), "decoded")

    stored = torch.load(vae_files / "e2e-latents-stats.pt")
    scale, bias = stored["latents_scale"], stored["latents_bias"]
    normalised = (posterior.mean - bias) * (scale**-2 + 1e-4).rsqrt()  # as its bn does
    assert_close(vae.normalize(to_nhwc(posterior.mean)), to_nhwc(normalised), "normalised")
    assert_close(vae.denormalize(to_nhwc(normalised)), to_nhwc(posterior.mean), "latents")

    write_ldm(tmp_path / "again.pt", vae)
    again = torch.load(tmp_path / "again.pt")
    assert_same_content(again, torch.load(vae_files / "e2e.pt"))
    original.make_vae(seed=32).load_state_dict(again, strict=True)
    assert_same_content(torch.load(tmp_path / "again-latents-stats.pt"), stored)

    config = small_config("repa", weights=str(vae_files / "e2e.pt"))
    variables, statistics = weights.read_vae(config, MODELS.tokenizer)
    jax.tree.map(np.testing.assert_array_equal, variables, {"params": dict(vae.params)})
    jax.tree.map(np.testing.assert_array_equal, statistics, dict(vae.statistics))


@NEEDS_ORIGINAL
@only("repae")
def test_a_discriminator_file_is_read(vae_files):
    tensors = files.read_tensors(vae_files / "e2e-discriminator-ckpt.pt")
    variables = load_discriminator(tensors, MODELS.discriminator)
    module = original.make_vae_loss(seed=33).discriminator
    module.load_state_dict(torch.load(vae_files / "e2e-discriminator-ckpt.pt"), strict=True)
    images = normal(2, 32, 32, 3, seed=6)
    with torch.no_grad():
        expected = to_nhwc(module.eval()(to_nchw(images)))
    logits = quick_jit(lambda v, x: MODELS.discriminator.apply(v, x, train=False))
    assert_close(logits(variables, images), expected, "logits")


@NEEDS_ORIGINAL
@only("repae")
@pytest.mark.parametrize("source", ["checkpoint", "workdir"])
def test_a_vae_goes_out_as_the_originals_script_takes_it_out(trip, vae_files, tmp_path, source):
    convert(str(getattr(trip, source)), tmp_path / "e2e.pt", "vae", None, progress=False)
    for name in ("e2e.pt", "e2e-discriminator-ckpt.pt"):
        assert_same_content(torch.load(tmp_path / name), torch.load(vae_files / name), name)
    name = "e2e-latents-stats.pt"
    ours, theirs = torch.load(tmp_path / name), torch.load(vae_files / name)
    assert list(ours) == list(theirs)
    assert_same_content(ours["latents_bias"], theirs["latents_bias"])
    # theirs is a root of float32, ours of float64 rounded once
    torch.testing.assert_close(ours["latents_scale"], theirs["latents_scale"], rtol=2e-7, atol=0)


@NEEDS_ORIGINAL
@only("repae")
def test_the_files_of_a_vae_are_recognised(vae_files):
    formats = {"": "vae", "-latents-stats": "statistics", "-discriminator-ckpt": "discriminator"}
    for ending, format in formats.items():
        assert detect(vae_files / f"e2e{ending}.pt").format == format
