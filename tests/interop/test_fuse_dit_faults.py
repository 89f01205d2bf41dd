"""Checkpoints of fuse-dit that are damaged, misnamed or of another network: one line each."""

import json
import shutil

import pytest
import torch
from fuse_dit_checkpoints import (
    STATES,
    STEPS,
    configuration,
    states_of_deepspeed,
    trained,
    write,
)
from saved import saved_content
from weight_files import refused, tree

from repae_jax.errors import UserError
from repae_jax.interop.detect_format import detect
from repae_jax.runs.original_import import import_run


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory):
    """A checkpoint without a fault."""
    return write(tmp_path_factory.mktemp("faults") / "it", states_of_deepspeed(*trained("torch")))


def changed_config(key, value):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        inside = config["base_config"] if key.startswith("base_config.") else config
        inside[key.removeprefix("base_config.")] = value
        (folder / "config.json").write_text(json.dumps(config))

    return change


def changed_states(change):
    def rewrite(folder):
        file = folder / str(STEPS) / STATES
        content = saved_content(file)
        change(content)
        torch.save(content, file)

    return rewrite


def without_ema_and_module(content):
    del content["ema"], content["module"]


def named_twice(content):
    content["ema"]["_orig_mod.proj_out.bias"] = content["ema"]["proj_out.bias"]


class Evil:
    def __reduce__(self):
        return print, ("run",)


def cut(folder):
    file = folder / str(STEPS) / STATES
    file.write_bytes(file.read_bytes()[:-2000])


FAULTS = {
    "no latest": (lambda f: (f / "latest").unlink(), "latest is missing: name the file to read"),
    "another text in latest": (
        lambda f: (f / "latest").write_text("../3"), "latest: holds '../3', not a step such as",
    ),
    "a step without a file": (
        lambda f: (f / "latest").write_text("7"), "latest: names step 7, but .* is missing",
    ),
    "another step in the file": (
        lambda f: ((f / str(STEPS)).rename(f / "7"), (f / "latest").write_text("7")),
        "its global_steps are 3, but its folder is named 7: rename it",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json is missing, which fuse"),
    "a broken config": (lambda f: (f / "config.json").write_text("{"), r"config\.json"),
    "another class": (changed_config("model_type", "FuseDiT"), "model_type is 'FuseDiT'; of fuse"),
    "rotary": (changed_config("pos_embed", "2d-rope"), "pos_embed is '2d-rope' .is read 'ape'"),
    "no time": (changed_config("timestep_conditioning", None), "timestep_conditioning is None"),
    "no norms": (changed_config("qk_norm", False), "qk_norm is False .is read True"),
    "another language model": (
        changed_config("base_config.model_type", "gemma2"), "base_config.model_type is 'gemma2'",
    ),
    "other heads": (
        changed_config("base_config.num_attention_heads", 2),
        "base_config.num_attention_heads is 2 .the weights have 4",
    ),
    "another depth": (
        changed_config("dit_num_hidden_layers", 5), "dit_num_hidden_layers is 5 .the weights have 2"
    ),
    "a type": (changed_config("qk_norm", "yes"), r"config\.json: qk_norm"),
    "a cut file": (cut, "mp_rank_00_model_states.pt"),
    "no network": (changed_states(without_ema_and_module), "holds no DiT of fuse-dit, neither as"),
    "a missing tensor": (
        changed_states(lambda c: c["ema"].pop("proj_out.bias")), "'proj_out.bias' is missing",
    ),
    "two names": (changed_states(named_twice), "under one name with and without '_orig_mod.'"),
    "code": (
        changed_states(lambda c: c.update(loss_scaler=Evil())), "is code, and not run",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_folders_are_named_in_a_line(fault, checkpoint_folder, tmp_path):
    folder = tmp_path / "it"
    shutil.copytree(checkpoint_folder, folder)
    spoil, message = FAULTS[fault]
    spoil(folder)
    before, config = tree(tmp_path), configuration()
    config.tokenizer.weights = "somewhere"
    with pytest.raises(UserError, match=message) as error:
        import_run(detect(folder).content, tmp_path / "run", config, source="it")
    assert "\n" not in str(error.value)
    assert tree(tmp_path) == before


def test_an_unknown_text_encoder_is_named_by_the_command(checkpoint_folder, tmp_path, capsys):
    words = ["convert", checkpoint_folder, tmp_path / "run", "--quiet"]
    line = refused(words, capsys)
    assert "its text is 24 wide, but the states of gemma-2b are 2048: give a config" in line
    assert tree(tmp_path) == set()
