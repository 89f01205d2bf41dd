"""fuse-dit's checkpoints become runs, and come back bit by bit."""

import json
import shutil
import sys
import types

import jax
import numpy as np
import parity
import pytest
import torch
from foreign_text import write_text_encoder
from foreign_trips import make_trip, write_statistics, write_vae
from fuse_dit_checkpoints import (
    CHANNELS,
    CONFIG,
    STATES,
    STEPS,
    configuration,
    inputs,
    predict,
    states,
    states_of_deepspeed,
    trained,
    write,
)
from saved import assert_same_content, saved_content
from weight_files import inspect, tree

from repae_jax.cli import main
from repae_jax.interop.detect_format import detect
from repae_jax.interop.formats import FORMATS
from repae_jax.runs.build import build_models
from repae_jax.runs.initial_state import load_text_encoder
from repae_jax.runs.open_run import load_state, open_run
from repae_jax.runs.original_import import bare_checkpoint, import_run


@pytest.fixture(scope="module", params=["torch", "original"])
def trip(request, tmp_path_factory):
    """A checkpoint after some steps of AdamW, its run, its export."""
    folder = tmp_path_factory.mktemp("fuse")
    model, ema, optimizer = trained(request.param)
    config_json = CONFIG
    if request.param == "original":
        model.config.base_config._name_or_path = "google/gemma-2b"
        model.config.save_pretrained(folder)
        config_json = json.loads((folder / "config.json").read_text())
        (folder / "config.json").unlink()
    path = write(folder / "theirs", states_of_deepspeed(model, ema, optimizer), config_json)
    config = configuration()
    file, *statistics = write_statistics(folder, CHANNELS)
    config.tokenizer.update(weights=str(write_vae(folder)), statistics=file)
    config.text_encoder.weights = str(write_text_encoder(folder / "lm", config))
    return make_trip(model, ema, path, config, statistics, words=["--to", "fuse-dit"])


def test_a_checkpoint_comes_back_bit_by_bit(trip):
    assert tree(trip.exported) == tree(trip.checkpoint)
    theirs, ours = states(trip.checkpoint), states(trip.exported)
    assert set(theirs) - set(ours) == {
        "param_shapes", "sparse_tensor_module_names", "ds_config", "ds_version",
    }  # fmt: skip
    for number, entry in theirs["optimizer"]["state"].items():
        assert ours["optimizer"]["state"][number].pop("step") == STEPS  # theirs: at the last alone
        entry.pop("step")
    # the parameters' order in a state dict follows from their module's definition
    for key in ("module", "ema"):
        assert_same_content(dict(sorted(ours.pop(key).items())), dict(sorted(theirs[key].items())))
    for key, value in ours.items():
        assert_same_content(value, theirs[key], key)
    for name in ("latest", "config.json"):
        pair = [json.loads((f / name).read_text()) for f in (trip.exported, trip.checkpoint)]
        assert pair[0] == pair[1]


def test_their_models_load_what_comes_back(trip):
    content = states(trip.exported)
    trip.model.load_state_dict(content["module"], strict=True)
    trip.ema.load_state_dict(content["ema"], strict=True)
    optimizer = torch.optim.AdamW(trip.model.parameters())
    optimizer.load_state_dict(content["optimizer"])
    assert {int(entry["step"]) for entry in optimizer.state.values()} == {STEPS}


def test_the_run_predicts_what_their_models_predict(trip):
    models = build_models(trip.config)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = load_state(trip.workdir, trip.config, models, device, optimizers=True)
    assert int(state.step) == STEPS
    x, t, tokens, mask = inputs()
    constants = {"constants": state.ema["constants"]}
    apply = parity.quick_jit(models.backbone.apply)
    for module, params in (
        (trip.model, state.params["backbone"]), (trip.ema, state.ema["params"])
    ):  # fmt: skip
        with torch.no_grad():
            expected = predict(module, x, t, tokens, mask)
        condition = {"tokens": tokens, "mask": mask}
        ours = apply({"params": params, **constants}, x, t, condition)
        parity.assert_close(ours.prediction, parity.to_nhwc(expected), "velocity")
    mean, std = trip.statistics
    for norm in (state.batch_stats["latent_norm"], state.ema["latent_norm"]):
        np.testing.assert_allclose(norm["mean"], mean, rtol=1e-6)
        np.testing.assert_allclose(norm["var"], std**2, rtol=1e-6)


def test_names_of_compiled_modules_and_objects_of_deepspeed_are_read(trip, tmp_path, monkeypatch):
    content = states(trip.checkpoint)
    scaler = deepspeed_object("runtime.fp16.loss_scaler", "LossScaler", monkeypatch)
    content["optimizer"]["loss_scaler"] = scaler
    content["ema"] = {name.replace(".", "._orig_mod.", 1): t for name, t in content["ema"].items()}
    content["module"] = {f"_orig_mod.{name}": t for name, t in content["module"].items()}
    write(tmp_path / "it", content)
    monkeypatch.undo()
    file = tmp_path / "it" / str(STEPS) / STATES
    for found in (detect(tmp_path / "it"), detect(file)):
        assert (found.format, found.path) == ("fuse-dit", file)
        for key, theirs in (("model", trip.model), ("ema", trip.ema)):
            expected = parity.state_of(theirs)
            assert found.content[key].keys() == expected.keys()
            for name, array in expected.items():
                np.testing.assert_array_equal(found.content[key][name], array, err_msg=name)


def deepspeed_object(module, name, monkeypatch):
    """An object of a class that DeepSpeed has, whose import would be noticed when it is read."""
    parts = ["deepspeed", *module.split(".")]
    for depth in range(len(parts)):
        path = ".".join(parts[: depth + 1])
        monkeypatch.setitem(sys.modules, path, made := types.ModuleType(path))
    cls = type(name, (), {"__module__": made.__name__})
    setattr(made, name, cls)
    found = cls()
    found.cur_scale = 1.0
    return found


def test_inspect_says_what_it_is(trip, tmp_path, capsys):
    said = inspect(trip.checkpoint, capsys)
    assert (said["format"], said["step"]) == (FORMATS["fuse-dit"], str(STEPS))
    assert "own size: width 32, depth 2, 4 heads and 2 of keys, each 8 wide" in said["DiT"]
    assert said["text"].split() == ["by", "google/gemma-2b"]
    torch.save(trip.ema.state_dict(), tmp_path / "bare.pt")
    assert inspect(tmp_path / "bare.pt", capsys)["format"] == FORMATS["fuse-dit-tensors"]
    content = bare_checkpoint(detect(tmp_path / "bare.pt").content)
    state = import_run(content, tmp_path / "run", trip.config, source="it", progress=False)
    assert int(state.step) == 0


def test_the_text_encoder_is_read_when_the_run_is_opened(trip):
    frozen = open_run(trip.workdir).state.frozen
    expected = load_text_encoder(trip.config, build_models(trip.config).text_encoder)
    assert frozen["null_condition"]["mask"].sum() == 1
    for name, loaded in expected.items():
        jax.tree.map(np.testing.assert_array_equal, frozen[name], loaded)


@pytest.mark.slow
def test_an_imported_run_makes_images_and_resumes(trip, tmp_path):
    shutil.copytree(trip.workdir, tmp_path / "run")
    words = ["--workdir", str(tmp_path / "run"), "--quiet"]
    assert main(["sample", *words, "--prompt", "a red disc", "--steps", "2"]) == 0
    assert main(["train", *words, f"--config.run.steps={STEPS + 1}"]) == 0
    target = str(tmp_path / "out")
    assert main(["convert", words[1], target, "--to", "fuse-dit", "--quiet"]) == 0
    content = saved_content(tmp_path / "out" / str(STEPS + 1) / STATES)
    assert content["lr_scheduler"] == {"last_batch_iteration": STEPS}
    assert {int(e["step"]) for e in content["optimizer"]["state"].values()} == {STEPS + 1}
