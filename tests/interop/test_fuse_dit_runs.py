"""Runs of ours as fuse-dit's checkpoints, and the configuration of the published one."""

import numpy as np
import original_text
import pytest
import torch
import torch_text_backbones
from diffusers import FlowMatchEulerDiscreteScheduler
from foreign_text import write_run
from foreign_trips import write_statistics, write_vae
from fuse_dit_checkpoints import CHANNELS, MODEL, STATES, configuration
from saved import saved_content
from weight_files import inspect, refused, tree

from repae_jax.cli import main
from repae_jax.config.modules import build_sampler
from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.interop.original import export_part, fuse_dit_part
from repae_jax.runs.build import build_models
from repae_jax.runs.fuse_dit_args import config_of_fuse_dit
from repae_jax.runs.original_parts import trained_parts
from repae_jax.runs.state import without_heads
from repae_jax.runs.workdir import load_config
from repae_jax.sampling.steps import time_grid


@pytest.fixture(scope="module")
def published():
    """The tensors of the published DiT, zeros without memory, and its config.json."""
    sizes = dict(
        hidden_size=2048, depth=30, num_heads=16, kv_heads=4, head_width=128, mlp_width=8192,
        channels=16, patch_size=2, text_width=2048,
    )  # fmt: skip
    with torch.device("meta"):
        shapes = torch_text_backbones.FuseDiT(**sizes).state_dict()
    tensors = {n: np.broadcast_to(np.float32(0), tuple(t.shape)) for n, t in shapes.items()}
    base = {"model_type": "gemma", "_name_or_path": "google/gemma-2b"}
    return {"ema": tensors, "config": {"model_type": "DiT", "base_config": base}}


def test_the_configuration_follows_from_the_published_checkpoint(published):
    config = config_of_fuse_dit(published, source="it")
    assert (config.backbone.arch, config.tokenizer.arch) == ("FuseDiT-3B/2", "f8d16")
    assert (config.text_encoder.arch, config.condition.embedding) == ("gemma-2b", "gemma")
    assert (config.condition.drop, tuple(config.train)) == (0.1, ("backbone",))
    assert (config.time.weighting, config.time.grid, config.time.shift) == ("lognormal", 1000, 3.0)
    adamw = config.optimizer.backbone
    assert (adamw.learning_rate, adamw.weight_decay, adamw.max_grad_norm) == (1e-4, 1e-4, 1.0)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(25)
    assert build_sampler(config).guidance_scale == 6.0
    np.testing.assert_allclose(time_grid(build_sampler(config)), scheduler.sigmas, atol=1e-6)
    config.tokenizer.weights = "somewhere"
    validate(config)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("google/gemma-2b-it", "its text encoder is 'google/gemma-2b-it', and only google/gemma"),
        ("google/gemma-7b", "its text encoder is 'google/gemma-7b', and only"),
        ("/models/gemma-2b", None),
        ("", None),
    ],
)
def test_a_foreign_text_encoder_is_named(published, name, message):
    base = published["config"]["base_config"] | {"_name_or_path": name}
    content = published | {"config": published["config"] | {"base_config": base}}
    if message is None:
        assert config_of_fuse_dit(content, source="it").text_encoder.arch == "gemma-2b"
        return
    with pytest.raises(UserError, match=message):
        config_of_fuse_dit(content, source="it")


@pytest.mark.parametrize("recipe", ["vanilla", "repae"])
def test_a_run_of_ours_opens_in_their_code(recipe, own_run, tmp_path, capsys):
    """The DiT and its average, complete and named; a VAE and heads that it trained stay outside."""
    workdir, config, state = own_run(recipe)
    out = tmp_path / "theirs"
    assert main(["convert", str(workdir), str(out), "--to", "fuse-dit", "--quiet"]) == 0
    assert ("VAE is written by --to diffusers" in capsys.readouterr().out) == (recipe == "repae")
    assert tree(out) == {"latest", "config.json", "5", f"5/{STATES}"}
    content = saved_content(out / "5" / STATES)
    part = fuse_dit_part(build_models(config).backbone)
    trained = {"params": state.params["backbone"], **state.frozen["backbone"]}
    for key, whole in (("module", trained), ("ema", state.ema)):
        variables = {
            "params": without_heads(whole["params"]), "constants": whole["constants"],
        }  # fmt: skip
        expected = export_part(variables, part, {})
        assert content[key].keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(content[key][name], array, err_msg=name)
        for net in their_networks(out):
            net.load_state_dict(content[key], strict=True)
    assert content["global_steps"] == 5
    assert inspect(out, capsys)["step"] == "5"

    weights = [f"--config.tokenizer.weights={write_vae(tmp_path)}"]
    file, *_ = write_statistics(tmp_path, CHANNELS)
    weights += [f"--config.tokenizer.statistics={file}"]
    assert main(["convert", str(out), str(tmp_path / "run"), "--quiet", *weights]) == 0
    again = load_config(tmp_path / "run")
    assert tuple(again.train) == ("backbone",)
    assert again.backbone.to_dict() == config.backbone.to_dict()
    assert again.text_encoder.to_dict() == config.text_encoder.to_dict()


def their_networks(folder):
    """torch's network, and where it is checked out fuse-dit's class, made of its config.json."""
    yield torch_text_backbones.FuseDiT(**MODEL)
    if original_text.FUSE_DIT:
        yield original_text.fuse_dit_of(folder)


@pytest.fixture
def own_run(tmp_path):
    """A function that writes a run of step 5 with random weights of a recipe."""

    def make_run(recipe):
        config = configuration(recipe)
        if recipe == "vanilla":
            config.tokenizer.weights = "somewhere"
        state = write_run(tmp_path / "own", config, step=5)
        return tmp_path / "own", config, state

    return make_run


def test_other_runs_and_targets_are_refused_in_a_line(run, own_run, tmp_path, capsys):
    workdir, *_ = own_run("vanilla")
    line = refused(["convert", run, tmp_path / "x", "--to", "fuse-dit", "--quiet"], capsys)
    assert "its backbone is a SiT, whose checkpoint for the original is a file" in line
    line = refused(["convert", workdir, tmp_path / "x.pt", "--quiet"], capsys)
    assert "its backbone is a FuseDiT, whose checkpoint for the original is a folder" in line
    line = refused(["convert", workdir, tmp_path / "x.pt", "--to", "fuse-dit"], capsys)
    assert "'fuse-dit' writes a folder, whose name does not end in '.pt'" in line
    assert {path.name for path in tmp_path.iterdir()} == {"own"}


def test_text_by_another_embedding_is_refused():
    config = configuration()
    config.condition.embedding = "linear"
    with pytest.raises(UserError, match=r"FuseDiT with text \(embedding 'linear'\): convert"):
        trained_parts(build_models(config), config, "it", statistics=True)
