"""REPA's own checkpoints and weights: read, trained on, and given back."""

import dataclasses
import pathlib

import diffusers_vae
import numpy as np
import original_comparison as comparison
import original_exchange as exchange
import original_networks as original
import pytest
import torch
from exported import export_sit, load_sit
from imported_runs import (
    METRIC_LIMIT,
    MOVED_LIMIT,
    STEPS,
    apply_sit,
    imported_state,
    sit_inputs,
    sit_variables,
    there_and_back,
    train_step,
)
from original_comparison import MODELS
from original_exchange import NEEDS_REPA, small_config
from parity import assert_close, randomise, to_nchw, to_nhwc
from saved import assert_same_content, saved_content

from repae_jax.interop.detect_format import detect
from repae_jax.interop.sit import unify_names

REPA_SCALE = 0.18215  # what its train.py multiplies SD-VAE's latents by


def repa_batch(vae, step):
    """What REPA's loop and our step see of one batch: (their arguments, (our batch, our draws))."""
    batch, draws = comparison.make_batch(step)
    with torch.no_grad():
        posterior = vae.encode(to_nchw(batch["image"]).float() / 127.5 - 1).latent_dist
    latents = (posterior.mean + posterior.std * to_nchw(draws.posterior_noise)) * REPA_SCALE
    time = torch.tensor(draws.time)[:, None, None, None]
    keep = 1.0 - torch.tensor(draws.condition_drop).float()
    tokens = [torch.tensor(tokens) for tokens in batch["teacher_tokens"]]
    randomness = [("rand", time), ("randn_like", to_nchw(draws.noise)), ("rand", keep)]
    return (latents, torch.tensor(batch["label"]).long(), tokens, randomness), (batch, draws)


@dataclasses.dataclass
class RepaTrip:
    """As `Trip` in test_original_exchange.py, of REPA's train.py; `vae` is diffusers'."""

    training: exchange.RepaTraining
    vae: torch.nn.Module
    config: object
    checkpoint: pathlib.Path
    workdir: pathlib.Path
    exported: pathlib.Path


@pytest.fixture(scope="module")
def repa(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repa")
    vae = randomise(diffusers_vae.make_vae(MODELS.tokenizer), seed=2)
    vae.save_pretrained(folder / "vae")
    config = small_config("repa", weights=str(folder / "vae"))
    training = exchange.RepaTraining(exchange.make_repa_sit(seed=1))
    for step in range(STEPS):
        training.step(*repa_batch(vae, step)[0])
    paths = there_and_back(training.save(folder / "theirs"), config)
    return RepaTrip(training, vae, config, *paths)


def assert_repa_outputs(key, module, variables):
    """Velocities and projections of REPA's module and of ours."""
    x, time, condition = sit_inputs()
    labels = torch.tensor(condition["label"]).long()
    with torch.no_grad():
        velocity, tokens = module.eval()(to_nchw(x), torch.tensor(time), labels)
    ours = apply_sit()(variables, x, time, condition)
    assert_close(ours.prediction, to_nhwc(velocity), key)
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
    exported = export_sit(
        {"params": after.params["backbone"], **after.frozen["backbone"]}, MODELS.backbone
    )
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
    found = detect(tmp_path / "last.pt")
    assert found.format == "sit"
    variables = load_sit(unify_names(found.content, depth), MODELS.backbone, statistics=False)
    assert_repa_outputs("last.pt", repa.training.scope["ema"], variables)
    exported = {k: torch.tensor(v) for k, v in export_sit(variables, MODELS.backbone).items()}
    assert_same_content(exported, repa.training.scope["ema"].state_dict())
    exchange.make_repa_sit(seed=22).load_state_dict(exported, strict=True)
