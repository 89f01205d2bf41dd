"""Commands on a run of a VAE with RAE's adversarial training."""

import pathlib

import jax
import numpy as np
import pytest
import tiny
import torch
from runs import assert_continues
from torch_dino_discriminator import TorchDinoDiscriminator

from repae_jax.cli import main
from repae_jax.interop.dino_discriminator import load_discriminator
from repae_jax.interop.files import read_tensors
from repae_jax.interop.vit import load_vit
from repae_jax.models.dino_discriminator import ENCODER, DinoDiscriminator
from repae_jax.runs.checkpoints import restore_latest

pytestmark = pytest.mark.slow  # it trains

MODEL = DinoDiscriminator(
    patch_size=4, dim=8, depth=2, num_heads=2, blocks=(1, 2), kernel=3, side=16
)
CONFIG = """
import sys

sys.path += {path!r}
import tiny

from repae_jax.config import discriminator


def get_config(recipe="vae"):
    config = tiny.get_config(recipe)
    config.discriminator = discriminator(
        family="dino", patch_size=4, hidden_size=8, depth=2, num_heads=2, blocks=(1, 2), kernel=3,
        side=16,
    )
    config.objective.update(
        discriminator_start=1, generator_start=2, adaptive_weight=True, augmentation="diffaug",
        fake_latents="mean", fake_bytes=True,
    )
    return config
"""


def run(*words, status=0):
    assert main([str(word) for word in words]) == status


def words(folder, *overrides):
    return ["--config", folder / "config.py", *(f"--config.{one}" for one in overrides)]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with the configuration, the ViT's file and one of the heads."""
    folder = tmp_path_factory.mktemp("dino")
    path = [str(pathlib.Path(tiny.__file__).parent)]
    (folder / "config.py").write_text(CONFIG.format(path=path))
    reference = TorchDinoDiscriminator(MODEL)
    torch.save(reference.dino[0].state_dict(), folder / "dino.pth")
    torch.save({"disc": reference.state_dict()}, folder / "heads.pt")
    return folder


@pytest.fixture(scope="module")
def folder(given):
    """The same folder, with a run of four steps with a checkpoint at the second."""
    weights = f"discriminator.encoder_weights={given / 'dino.pth'}"
    run("train", *words(given, weights), "--workdir", given / "run", "--quiet")
    return given


def test_a_killed_run_continues_bit_by_bit(folder, tmp_path):
    state = assert_continues(folder / "run", tmp_path / "run")
    assert int(state["step"]) == 4
    tensors = read_tensors(folder / "dino.pth")
    expected = load_vit(tensors, MODEL.encoder())["params"]
    kept = state["frozen"]["discriminator"]["constants"][ENCODER]
    jax.tree.map(np.testing.assert_array_equal, kept, expected)


def test_the_heads_come_out_and_go_in(folder, tmp_path):
    run("convert", folder / "run", tmp_path / "x.safetensors", "--to", "vae", "--quiet")
    written = tmp_path / "x-discriminator-ckpt.pt"
    loaded = load_discriminator(read_tensors(written), MODEL)
    state = restore_latest(folder / "run")
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], state["params"]["discriminator"])
    TorchDinoDiscriminator(MODEL).load_state_dict(
        {name: torch.tensor(array) for name, array in read_tensors(written).items()}
    )


def test_a_run_begins_with_given_heads(given, tmp_path, capsys):
    weights = f"discriminator.weights={given / 'heads.pt'}"
    encoder = f"discriminator.encoder_weights={given / 'dino.pth'}"
    overrides = (weights, encoder, "run.steps=1", "run.checkpoint_every=1")
    run("train", *words(given, *overrides), "--workdir", tmp_path / "run", "--quiet")
    # The discriminator waits for the second step.
    state = restore_latest(tmp_path / "run")
    expected = load_discriminator(read_tensors(given / "heads.pt"), MODEL)
    for name in ("params", "batch_stats"):
        kept = state[name]["discriminator"]
        jax.tree.map(np.testing.assert_array_equal, kept, expected[name])
    capsys.readouterr()
    run("inspect", given / "heads.pt")
    assert "heads    3, width 8, kernel 3" in capsys.readouterr().out


def test_a_missing_encoder_is_named(given, tmp_path, capsys):
    run("train", *words(given), "--workdir", tmp_path / "run", "--quiet", status=2)
    assert "config.discriminator.encoder_weights is empty" in capsys.readouterr().err
    wrong = f"discriminator.encoder_weights={given / 'heads.pt'}"
    run("train", *words(given, wrong), "--workdir", tmp_path / "run", "--quiet", status=2)
    assert "heads.pt: not the weights of DINO" in capsys.readouterr().err
