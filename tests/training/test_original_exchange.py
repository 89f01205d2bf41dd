"""Checkpoints and weights of the original REPA-E and of REPA: read, trained on, and given back."""

import argparse
import dataclasses
import functools
import pathlib
import runpy
import sys
import types
from unittest import mock

import diffusers_vae
import jax
import numpy as np
import original_comparison as comparison
import original_differences as difference
import original_exchange as exchange
import original_loop as loop
import original_networks as original
import pytest
import torch
from original_comparison import BATCH, MODELS, Case, Comparison
from original_exchange import (
    NEEDS_ORIGINAL,
    NEEDS_REPA,
    small_config,
)
from parity import (
    ORIGINAL,
    assert_close,
    normal,
    original_module,
    quick_jit,
    randomise,
    state_of,
    to_nchw,
    to_nhwc,
)
from saved import assert_same_content, saved_content

from repae_jax.cli import main
from repae_jax.interop import files
from repae_jax.interop.conversion import convert
from repae_jax.interop.discriminator import load_discriminator
from repae_jax.interop.lpips import load_lpips
from repae_jax.interop.pretrained import PretrainedVAE, write_ldm
from repae_jax.interop.recognise import find
from repae_jax.interop.sit import export_sit, load_sit, unify_names
from repae_jax.overrides import read_config
from repae_jax.sampling import generate
from repae_jax.sampling.pixels import to_uint8
from repae_jax.sampling.samplers import Sampler, image_noise, step_noise
from repae_jax.training import weights
from repae_jax.training.build import (
    build_models,
    build_objective,
    build_optimizers,
    build_vit,
)
from repae_jax.training.exchange import export_run, import_run
from repae_jax.training.run import load_state, open_run, sampling_weights
from repae_jax.training.state import TrainState
from repae_jax.training.step import make_train_step
from repae_jax.training.weights import save_teacher

STEPS = 2  # before the checkpoint
# those of test_original_step.py; the metrics' is that of its first step
METRIC_LIMIT, VALUE_LIMIT, MOMENT_LIMIT = 1e-4, 1e-3, 1e-2
MOVED_LIMIT, MOVED_TENSOR_LIMIT = 1e-2, 0.3


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

    def next_step(self, training):
        return comparison._their_step(training, self.vae, self.case, STEPS)


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
        config.vae.weights = str(folder / "vae.pt")
        torch.save(vae.state_dict(), config.vae.weights)
    training = make_training(networks, case, table_moves)
    for step in range(STEPS):
        comparison._their_step(training, vae, case, step)
    paths = there_and_back(training.save(folder / "theirs"), config)
    return Trip(training, vae, case, table_moves, config, *paths)


def there_and_back(checkpoint, config):
    """(checkpoint, the run that it becomes, the checkpoint that this becomes)."""
    folder = checkpoint.parents[2]
    workdir, exported = folder / "run", folder / "ours" / "checkpoints" / checkpoint.name
    content = files.read_stored(checkpoint)
    import_run(content, workdir, config, source=str(checkpoint), progress=False)
    export_run(workdir, exported, progress=False)
    return checkpoint, workdir, exported


def only(*names):
    """A mark: of the trips, these."""
    return pytest.mark.parametrize("trip", names, indirect=True)


def imported_state(workdir, config) -> TrainState:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return load_state(workdir, config, build_models(config), device, optimizers=True)


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
    found = find(trip.checkpoint.parent.parent)
    assert found.path == trip.checkpoint
    assert found.format == ("ldm" if trip.case.frozen_vae else "repae")


@NEEDS_ORIGINAL
def test_the_original_goes_on_from_the_export(trip, tmp_path):
    _, resumed = trip.resumed(trip.exported, table_moves=trip.table_moves)
    assert trip.next_step(resumed) == trip.next_step(trip.training)
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


@functools.cache
def train_step(kind):
    """The compiled step of an imported run; LPIPS is as small as the original's in these tests."""
    config = small_config(kind)
    models = build_models(config)
    if models.lpips is not None:
        models = dataclasses.replace(models, lpips=MODELS.lpips)
    objective, optimizers = build_objective(config), build_optimizers(config)
    return quick_jit(make_train_step(models, objective, optimizers, ema_decay=config.ema_decay))


@NEEDS_ORIGINAL
@only(
    pytest.param("repae", marks=pytest.mark.slow),  # compiles the whole step
    pytest.param("repae-table-moves", marks=pytest.mark.slow),
    "ldm",
)
def test_our_next_step_is_the_originals(trip):
    # the table fixed on both sides, also where it has moved before
    networks, resumed = trip.resumed(trip.exported, table_moves=False)
    state = imported_state(trip.workdir, trip.config)
    if "vae_loss_fn" in networks:
        lpips = state_of(networks["vae_loss_fn"].perceptual_loss.lpips)
        state = state.replace(frozen={**state.frozen, "lpips": load_lpips(lpips, MODELS.lpips)})
    kind = "repa" if trip.case.frozen_vae else "repae"
    after, metrics = train_step(kind)(state, *comparison.make_batch(STEPS))
    found = Comparison(
        our_metrics=[comparison.in_both_logs(metrics)],
        their_metrics=[trip.next_step(resumed)],
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


@functools.cache
def apply_sit():
    return quick_jit(lambda variables, *inputs: MODELS.sit.apply(variables, *inputs))


def sit_inputs():
    """Noisy latents, times and labels, the null class among them, in our layout."""
    side, channels = original.LATENT_SIZE, original.LATENT_CHANNELS
    x = normal(BATCH, side, side, channels, seed=7)
    time = np.linspace(0, 1, BATCH, dtype=np.float32)
    return x, time, np.array([0, 3, original.NUM_CLASSES - 1, original.NUM_CLASSES], np.int32)


def their_velocity(module, x, time, labels):
    module.eval()
    return to_nhwc(module.inference(to_nchw(x), torch.tensor(time), torch.tensor(labels).long()))


def sit_variables(state):
    """{"model", "ema"}: what our SiT is applied with."""
    averaged = {"params": state.ema["params"], "constants": state.ema["constants"]}
    return {"model": {"params": state.params["sit"], **state.frozen["sit"]}, "ema": averaged}


@NEEDS_ORIGINAL
def test_imported_velocities_are_the_originals(trip):
    state, content = imported_state(trip.workdir, trip.config), saved_content(trip.checkpoint)
    module = original.make_sit(seed=21)
    for key, variables in sit_variables(state).items():
        module.load_state_dict(content[key], strict=True)
        expected = their_velocity(module, *sit_inputs())
        assert_close(apply_sit()(variables, *sit_inputs()).velocity, expected, key)


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
    assert vae.module == MODELS.vae
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
    normalised = (posterior.mean - bias) * scale
    assert_close(vae.normalize(to_nhwc(posterior.mean)), to_nhwc(normalised), "normalised")
    assert_close(vae.denormalize(to_nhwc(normalised)), to_nhwc(posterior.mean), "latents")

    write_ldm(tmp_path / "again.pt", vae)
    again = torch.load(tmp_path / "again.pt")
    assert_same_content(again, torch.load(vae_files / "e2e.pt"))
    original.make_vae(seed=32).load_state_dict(again, strict=True)
    assert_same_content(torch.load(tmp_path / "again-latents-stats.pt"), stored)

    config = small_config("repa", weights=str(vae_files / "e2e.pt"))
    params, statistics = weights.read_vae(config, MODELS.vae)
    jax.tree.map(np.testing.assert_array_equal, params, dict(vae.params))
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
        assert find(vae_files / f"e2e{ending}.pt").format == format


# --- REPA's own checkpoints ------------------------------------------------------------------

REPA_SCALE = 0.18215  # what its train.py multiplies SD-VAE's latents by


def repa_batch(vae, step):
    """What REPA's loop and our step see of one batch: (their arguments, (our batch, our draws))."""
    batch, draws = comparison.make_batch(step)
    with torch.no_grad():
        posterior = vae.encode(to_nchw(batch["image"]).float() / 127.5 - 1).latent_dist
    latents = (posterior.mean + posterior.std * to_nchw(draws.posterior_noise)) * REPA_SCALE
    time = torch.tensor(draws.time)[:, None, None, None]
    keep = 1.0 - torch.tensor(draws.label_drop).float()
    tokens = [torch.tensor(tokens) for tokens in batch["teacher_tokens"]]
    randomness = [("rand", time), ("randn_like", to_nchw(draws.noise)), ("rand", keep)]
    return (latents, torch.tensor(batch["label"]).long(), tokens, randomness), (batch, draws)


@dataclasses.dataclass
class RepaTrip:
    """As `Trip`, of REPA's train.py; `vae` is diffusers'."""

    training: exchange.RepaTraining
    vae: torch.nn.Module
    config: object
    checkpoint: pathlib.Path
    workdir: pathlib.Path
    exported: pathlib.Path


@pytest.fixture(scope="module")
def repa(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repa")
    vae = randomise(diffusers_vae.make_vae(MODELS.vae), seed=2)
    vae.save_pretrained(folder / "vae")
    config = small_config("repa", weights=str(folder / "vae"))
    training = exchange.RepaTraining(exchange.make_repa_sit(seed=1))
    for step in range(STEPS):
        training.step(*repa_batch(vae, step)[0])
    paths = there_and_back(training.save(folder / "theirs"), config)
    return RepaTrip(training, vae, config, *paths)


def assert_repa_outputs(key, module, variables):
    """Velocities and projections of REPA's module and of ours."""
    x, time, labels = sit_inputs()
    with torch.no_grad():
        velocity, tokens = module.eval()(
            to_nchw(x), torch.tensor(time), torch.tensor(labels).long()
        )
    ours = apply_sit()(variables, x, time, labels)
    assert_close(ours.velocity, to_nhwc(velocity), key)
    for projection, expected in zip(ours.projections, tokens, strict=True):
        assert_close(projection, expected, f"{key}, projection")


@NEEDS_REPA
def test_repas_checkpoint_comes_back_bit_by_bit(repa):
    theirs, ours = saved_content(repa.checkpoint), saved_content(repa.exported)
    assert set(ours) == set(theirs) == {"model", "ema", "opt", "args", "steps"}
    assert vars(ours.pop("args")) == vars(theirs.pop("args"))
    for key in theirs:
        assert_same_content(ours[key], theirs[key], key)


@NEEDS_REPA
def test_imported_velocities_are_repas(repa):
    state, content = imported_state(repa.workdir, repa.config), saved_content(repa.checkpoint)
    module = exchange.make_repa_sit(seed=21)
    for key, variables in sit_variables(state).items():
        module.load_state_dict(content[key], strict=True)
        assert_repa_outputs(key, module, variables)


@NEEDS_REPA
def test_repa_and_ours_go_on_alike(repa, tmp_path):
    theirs, ours = repa_batch(repa.vae, STEPS)
    resumed = exchange.RepaTraining(exchange.make_repa_sit(seed=11)).resume(repa.exported)
    logs = resumed.step(*theirs)
    assert logs == repa.training.step(*theirs)
    contents = [
        saved_content(training.save(tmp_path / name))
        for name, training in (("resumed", resumed), ("stayed", repa.training))
    ]
    for key in contents[0].keys() - {"args"}:
        assert_same_content(contents[0][key], contents[1][key], key)

    state = imported_state(repa.workdir, repa.config)
    after, metrics = train_step("repa")(state, *ours)
    assert set(comparison.in_both_logs(metrics)) == set(logs)
    for name, value in logs.items():
        assert abs(float(metrics[name]) - value) <= METRIC_LIMIT * abs(value), name
    before, moved = saved_content(repa.checkpoint)["model"], contents[0]["model"]
    exported = export_sit({"params": after.params["sit"], **after.frozen["sit"]}, MODELS.sit)
    total = [
        (np.linalg.norm(exported[name] - moved[name].numpy()), (moved[name] - before[name]).norm())
        for name in moved
    ]
    error, length = np.linalg.norm(np.array(total), axis=0)
    assert error <= MOVED_LIMIT * length


@NEEDS_REPA
@pytest.mark.parametrize("naming", ["today", "legacy"])
def test_repas_published_weights_are_read(repa, tmp_path, naming):
    """A state dict alone; in the first ones, blocks behind the projections have another name."""
    tensors = repa.training.scope["ema"].state_dict()
    depth = original.SIT["encoder_depth"]
    if naming == "legacy":
        legacy = {}
        for name, tensor in tensors.items():
            head, _, rest = name.partition(".")
            number, _, rest = rest.partition(".")
            behind = head == "blocks" and int(number) >= depth
            legacy[f"decoder_blocks.{int(number) - depth}.{rest}" if behind else name] = tensor
        assert_same_content(exchange.repa_unified(legacy, depth), dict(tensors))
        tensors = legacy
    torch.save(tensors, tmp_path / "last.pt")
    found = find(tmp_path / "last.pt")
    assert found.format == "sit"
    variables = load_sit(unify_names(found.content, depth), MODELS.sit, statistics=False)
    assert_repa_outputs("last.pt", repa.training.scope["ema"], variables)
    exported = {k: torch.tensor(v) for k, v in export_sit(variables, MODELS.sit).items()}
    assert_same_content(exported, repa.training.scope["ema"].state_dict())
    exchange.make_repa_sit(seed=22).load_state_dict(exported, strict=True)


# --- a run that was trained here -------------------------------------------------------------

DIGITS = pathlib.Path(__file__).parents[2] / "configs" / "digits.py"
IMAGES = 8
SAMPLERS = [
    Sampler("euler", 8, "linear"),
    Sampler("heun", 6, "linear", 4.0, 0.1, 0.8),
    Sampler("euler-maruyama", 10, "linear", 4.0, 0.1, 0.8),
]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run of the digits recipe and its export; large rates, so that a few steps show."""
    folder = tmp_path_factory.mktemp("digits")
    teacher_file = str(folder / "teacher.safetensors")
    vit = build_vit(read_config(str(DIGITS), []).teachers.digits, 32)
    save_teacher(teacher_file, vit.init(jax.random.key(0), np.zeros((1, 32, 32, 3)))["params"], {})
    words = {
        "teachers.digits.weights": teacher_file, "batch_size": 16, "ema_decay": 0.5,
        "run.steps": 10, "run.sample_steps": 2, "sampling.method": "euler",
    }  # fmt: skip
    for network in ("sit", "vae"):
        words |= {
            f"optimizer.{network}.warmup_steps": 0,
            f"optimizer.{network}.learning_rate": 3e-3,
        }
    overrides = [f"--config.{key}={value}" for key, value in words.items()]
    train = ["train", "--config", str(DIGITS), *overrides, "--workdir", str(folder / "run")]
    assert main([*train, "--quiet"]) == 0
    exported = folder / "exp" / "checkpoints" / "0000010.pt"
    assert main(["convert", str(folder / "run"), str(exported), "--quiet"]) == 0
    return open_run(folder / "run"), exported


@pytest.fixture(scope="module")
def resumed_digits(digits):
    """(averaged SiT, VAE): the original's, once it has resumed from the export."""
    run, exported = digits
    networks = exchange.networks_like(run.models)
    training = exchange.Training(loop.REPAE, networks).resume(exported)
    assert training.scope["global_step"] == 10
    return training.ema.eval(), networks["vae"].eval()


def their_images(ema, vae, sampler, noise, labels, step_noises):
    """(B, H, W, 3): the original's samples, as its generate.py decodes them, not yet bytes."""
    samplers = original_module("samplers.py")
    name = "euler_maruyama_sampler" if sampler.stochastic else "euler_sampler"
    draws = iter(step_noises)
    with mock.patch.object(torch, "randn_like", lambda x: to_nchw(next(draws)).to(x.dtype)):
        latents = getattr(samplers, name)(
            exchange.NullClass(ema), to_nchw(noise), torch.tensor(labels).long(),
            num_steps=sampler.steps, heun=sampler.method == "heun",
            cfg_scale=sampler.guidance_scale, guidance_low=sampler.guidance_low,
            guidance_high=sampler.guidance_high, path_type=sampler.interpolant,
        ).to(torch.float32)  # fmt: skip
    assert next(draws, None) is None
    with torch.no_grad():
        scale = ema.bn.running_var.rsqrt().view(1, -1, 1, 1)
        return vae.decode(latents / scale + ema.bn.running_mean.view(1, -1, 1, 1)).sample


def their_pixels(images):
    """Levels (B, H, W, 3), truncated as in its generate.py."""
    levels = torch.clamp(255.0 * ((images + 1) / 2.0), 0, 255).permute(0, 2, 3, 1)
    return levels.to(torch.uint8).numpy().astype(int)


@NEEDS_ORIGINAL
@pytest.mark.slow  # compiles the train step of the digits recipe, at its full dimensions
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.method)
def test_the_original_makes_the_same_images(digits, resumed_digits, sampler, monkeypatch):
    (run, _), (ema, vae) = digits, resumed_digits
    key, indices = jax.random.key(3), np.arange(IMAGES)
    labels = indices.astype(np.int32)
    monkeypatch.setattr(generate, "to_uint8", lambda images: images)
    make = generate.make_generate(run.models.sit, run.models.vae, sampler)
    images = make(sampling_weights(run.state), key, indices, labels)
    pixels = np.asarray(to_uint8(images)).astype(int)

    sit = run.models.sit
    shape = (sit.latent_size, sit.latent_size, sit.latent_channels)
    noise, later = image_noise(key, indices, shape), step_noise(key, indices, shape)
    step_noises = [later(i) for i in range(sampler.steps - 1)] if sampler.stochastic else []
    expected = their_images(ema, vae, sampler, noise, labels, step_noises)
    theirs = their_pixels(expected)
    apart = 127.5 * np.abs(np.asarray(images) - to_nhwc(expected)).max()
    print(f"{sampler.method}: {apart:.1e} levels, {np.abs(pixels - theirs).max()} as bytes")
    assert apart <= 1
    assert np.abs(pixels - theirs).max() <= 1

    # the images have contrast, and would be others without the SiT or its guidance
    assert theirs.std() > 30
    still = types.SimpleNamespace(inference=lambda x, t, y: 0 * x, bn=ema.bn, num_classes=10)
    other = their_pixels(their_images(still, vae, sampler, noise, labels, step_noises))
    assert np.abs(other - theirs).mean() > 5
    if sampler.guided:
        plain = dataclasses.replace(sampler, guidance_scale=1.0)
        other = their_pixels(their_images(ema, vae, plain, noise, labels, step_noises))
        assert np.abs(other - theirs).max() > 2
