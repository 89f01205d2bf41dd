"""Training checkpoints of which something is left out, as they are published."""

import pytest
import torch
from runs import TINY
from saved import assert_same_content, saved_content
from weight_files import parts_of, refused, wrapped

from repae_jax.cli import main
from repae_jax.interop.checkpoint_parts import parts_of as parts_of_content
from repae_jax.interop.detect_format import detect
from repae_jax.interop.files import read_stored
from repae_jax.runs.checkpoints import restore_latest

# What is left of a training checkpoint, and what `convert` says of the rest.
STRIPPED = {
    "no optimizers": (
        ("model", "ema", "vae", "discriminator", "args", "steps"), "no optimizers: their moments"
    ),
    "no discriminator": (("model", "ema", "vae", "args", "steps"), "no discriminator: a fresh one"),
    "moving average and VAE": (("ema", "vae", "args"), "no model: its moving average"),
    "no moving average": (("model", "vae", "args", "steps"), "no moving average: the model"),
    "no arguments": (("model", "ema", "vae"), "no step, so the run begins at 0"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "prefix"), zip(STRIPPED, ("", "module.", "", "_orig_mod.", ""), strict=True)
)
def test_stripped_training_checkpoints(kind, prefix, checkpoint, tmp_path, capsys):
    keys, note = STRIPPED[kind]
    content = parts_of(checkpoint, *keys)
    plain_content = dict(content)
    for key in ("model", "ema", "vae", "discriminator"):
        if key in content:
            content[key] = wrapped(prefix, content[key])
    torch.save(content, tmp_path / "x.pt")
    run = tmp_path / "run"
    words = [] if "args" in keys else ["--config", TINY]
    assert main(["convert", str(tmp_path / "x.pt"), str(run), *words, "--quiet"]) == 0
    assert f"{tmp_path / 'x.pt'}: {note}" in capsys.readouterr().out
    state = restore_latest(run)
    assert int(state["step"]) == content.get("steps", 0)
    assert set(state["params"]) == {"backbone", "tokenizer", "discriminator"}
    again = exported(run)
    for key in ("model", "ema", "vae", "discriminator"):
        source = key if key in plain_content else {"model": "ema", "ema": "model"}.get(key)
        if source:
            assert_same_content(again[key], dict(plain_content[source]), key)
    assert not any(slot["exp_avg"].any() for slot in again["opt"]["state"].values())


@pytest.mark.parametrize(
    "absent", ["opt opt_vae opt_disc", "args", "steps", "ema", "discriminator opt opt_vae opt_disc"]
)
def test_none_stands_for_what_is_absent(absent, checkpoint):
    whole = read_stored(checkpoint)
    without = {key: value for key, value in whole.items() if key not in absent.split()}
    expected = parts_of_content(without, source="x")
    found = parts_of_content(whole | dict.fromkeys(absent.split()), source="x")
    assert found["notes"] == expected["notes"]
    assert found.keys() == expected.keys()


@pytest.mark.parametrize("absent", ["opt opt_vae opt_disc", "args opt opt_vae opt_disc"])
def test_a_checkpoint_with_none_for_its_optimizers_is_converted(absent, checkpoint, tmp_path):
    content = saved_content(checkpoint) | dict.fromkeys(absent.split())
    torch.save(content, tmp_path / "x.pt")
    words = ["--config", TINY] if "args" in absent.split() else []
    assert main(["convert", str(tmp_path / "x.pt"), str(tmp_path / "run"), *words, "--quiet"]) == 0


def exported(run):
    """What the original would be given of a run: its checkpoint's content, not written."""
    assert main(["convert", str(run), str(run.parent / "again.pt"), "--quiet"]) == 0
    return saved_content(run.parent / "again.pt")


def test_inspect_says_what_a_stripped_checkpoint_lacks(checkpoint, tmp_path, capsys):
    torch.save(parts_of(checkpoint, "ema", "vae", "args"), tmp_path / "x.pt")
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "x.pt")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("note ")] == [
        "no model: its moving average is taken for both",
        "no step, so the run begins at 0",
        "no optimizers: their moments begin at zero",
        "no discriminator: a fresh one takes its place",
    ]


def test_the_vae_alone_of_a_checkpoint(checkpoint, tmp_path, capsys):
    parts = parts_of(checkpoint, "vae", "discriminator")
    torch.save(parts, tmp_path / "x.safetensors.pt")
    assert detect(tmp_path / "x.safetensors.pt").format == "vae"
    capsys.readouterr()
    line = refused(["inspect", tmp_path / "x.safetensors.pt"], capsys)
    assert "do not divide into the 32 groups" in line  # this one has two, which nothing tells


def test_a_half_stripped_optimizer_is_damage(checkpoint, tmp_path, capsys):
    content = parts_of(checkpoint, "model", "ema", "vae", "discriminator", "opt", "steps")
    torch.save(content, tmp_path / "x.pt")
    assert "has 'opt', but 'opt_vae' is missing" in refused(["inspect", tmp_path / "x.pt"], capsys)
