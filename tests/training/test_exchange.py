"""Runs to the original's checkpoints and back: nothing lost, changed or half-written."""

import argparse
import json
import shutil

import jax
import numpy as np
import pytest
import tiny
import torch
import torch_sit
from runs import TINY
from saved import assert_same_content, saved_content

from repae_jax.cli import main
from repae_jax.interop import files
from repae_jax.runs.build import build_models, state_template
from repae_jax.runs.checkpoints import Checkpoints, restore_latest
from repae_jax.training.teacher import pretrain_teacher

pytestmark = pytest.mark.slow  # its fixtures train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A work directory after 3 steps, and its teacher's file."""
    folder = tmp_path_factory.mktemp("exchange")
    config = tiny.get_config()
    config.teachers.small.weights = teacher = str(folder / "teacher.safetensors")
    pretrain_teacher(config, "small", progress=False)
    words = ["--config", TINY, f"--config.teachers.small.weights={teacher}"]
    assert (
        main(["train", *words, "--config.run.steps=3", "--workdir", str(folder / "run"), "--quiet"])
        == 0
    )
    return folder / "run", teacher


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The run as the original's checkpoint."""
    path = tmp_path_factory.mktemp("exported") / "exp" / "checkpoints" / "0000003.pt"
    assert main(["convert", str(trained[0]), str(path), "--quiet"]) == 0
    return path


def state_of(workdir):
    """The newest state, with the structure that the configuration gives it."""
    config = tiny.get_config()
    template = state_template(
        config, build_models(config), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
    checkpoints = Checkpoints(workdir, read_only=True)
    state, data = checkpoints.restore(template)
    checkpoints.close()
    return state, data


def make_foreign(exported, path):
    """A checkpoint with what only the original's own training leaves: a moved position table."""
    whole = saved_content(exported)
    generator = torch.Generator().manual_seed(0)
    table = whole["model"]["pos_embed"]
    for key in ("model", "ema"):
        whole[key]["pos_embed"] = table + 0.1 * torch.randn(table.shape, generator=generator)
        whole[key]["bn.num_batches_tracked"] += 40
    whole["opt"]["state"] = {
        0: {
            "step": torch.tensor(3.0),
            "exp_avg": torch.randn(table.shape, generator=generator),
            "exp_avg_sq": torch.rand(table.shape, generator=generator),
        },
        **whole["opt"]["state"],
    }
    whole["opt"]["param_groups"][0]["lr"] = 3e-5
    whole["args"].wandb_history_path = None
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(whole, path)
    return path


def test_a_run_survives_the_trip(trained, exported, tmp_path):
    workdir = tmp_path / "back"
    assert main(["convert", str(exported), str(workdir), "--quiet"]) == 0
    (state, data), (expected, expected_data) = state_of(workdir), state_of(trained[0])
    expected = expected.replace(
        frozen={"backbone": expected.frozen["backbone"]}
    )  # no teachers in there
    assert data == expected_data
    leaves, paths = jax.tree.leaves(state), jax.tree_util.tree_leaves_with_path(expected)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for leaf, (path, other) in zip(leaves, paths, strict=True):
        assert leaf.dtype == other.dtype, path
        np.testing.assert_array_equal(leaf, other, err_msg=str(path))
    assert (workdir / "config.json").read_text() == (trained[0] / "config.json").read_text()


def test_muons_momentum_stays_behind(trained, tmp_path, capsys):
    """The file has no optimizer state of that network. A run made from it has zero momentum."""
    words = [f"--config.teachers.small.weights={trained[1]}", "--config.run.steps=2"]
    words += ["--config.optimizer.tokenizer.name=muon"]
    words += ["--config.optimizer.tokenizer.warmup_steps=5"]
    run, file, back = tmp_path / "run", tmp_path / "exp" / "0000002.pt", tmp_path / "back"
    assert main(["train", "--config", TINY, *words, "--workdir", str(run), "--quiet"]) == 0
    assert main(["convert", str(run), str(file), "--quiet"]) == 0
    assert "the tokenizer's optimizer is Muon" in capsys.readouterr().err
    content = saved_content(file)
    assert content["opt_vae"]["state"] == {}
    assert content["opt"]["state"]
    assert main(["convert", str(file), str(back), "--quiet"]) == 0
    before, after = restore_latest(run), restore_latest(back)
    jax.tree.map(np.testing.assert_array_equal, after["params"], before["params"])
    one, other = after["opt_state"], before["opt_state"]
    jax.tree.map(np.testing.assert_array_equal, one["backbone"], other["backbone"])
    for (path, leaf), (_, was) in zip(
        jax.tree_util.tree_leaves_with_path(one["tokenizer"]),
        jax.tree_util.tree_leaves_with_path(other["tokenizer"]), strict=True,
    ):  # fmt: skip
        same = "count" in jax.tree_util.keystr(path) or "ns_coeffs" in jax.tree_util.keystr(path)
        np.testing.assert_array_equal(leaf, was if same else np.zeros_like(was))


def test_a_foreign_checkpoint_survives_the_trip(exported, tmp_path):
    foreign = make_foreign(exported, tmp_path / "exp" / "checkpoints" / "0000003.pt")
    assert main(["convert", str(foreign), str(tmp_path / "run"), "--quiet"]) == 0
    again = tmp_path / "again" / "checkpoints" / "0000003.pt"
    assert main(["convert", str(tmp_path / "run"), str(again), "--quiet"]) == 0
    actual, expected = saved_content(again), saved_content(foreign)
    assert vars(actual.pop("args")) == vars(expected.pop("args"))
    assert set(actual) == set(expected)
    for key in expected:
        assert_same_content(actual[key], expected[key], key)
    args = json.loads((tmp_path / "again" / "args.json").read_text())
    assert args["wandb_history_path"] is None


@pytest.mark.slow  # two runs that compile their step
def test_the_next_step_is_the_same_with_and_without_the_trip(trained, exported, tmp_path):
    workdir, teacher = trained
    stayed, travelled = tmp_path / "stayed", tmp_path / "travelled"
    shutil.copytree(workdir, stayed)
    assert main(["convert", str(exported), str(travelled), "--quiet"]) == 0
    weights = f"--config.teachers.small.weights={teacher}"
    for folder in (stayed, travelled):
        words = ["train", "--workdir", str(folder), weights, "--config.run.steps=4", "--quiet"]
        assert main(words) == 0
    (a, _), (b, _) = state_of(stayed), state_of(travelled)
    assert int(b.step) == 4
    for (path, left), right in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_array_equal(left, right, err_msg=str(path))


def test_counters_and_slots_go_on(exported, trained, tmp_path):
    foreign = make_foreign(exported, tmp_path / "0000003.pt")
    run = tmp_path / "run"
    assert main(["convert", str(foreign), str(run), "--quiet"]) == 0
    weights = f"--config.teachers.small.weights={trained[1]}"
    assert main(["train", "--workdir", str(run), weights, "--config.run.steps=5", "--quiet"]) == 0
    assert main(["convert", str(run), str(tmp_path / "later.pt"), "--quiet"]) == 0
    before, after = saved_content(foreign), saved_content(tmp_path / "later.pt")
    assert after["steps"] == 5
    count = "bn.num_batches_tracked"
    assert after["model"][count] == before["model"][count] + 2
    # three passes through the discriminator a step
    count = "main.3.num_batches_tracked"
    assert before["discriminator"][count] == 9
    assert after["discriminator"][count] == 15
    assert_same_content(after["opt"]["state"][0], before["opt"]["state"][0])
    assert after["opt"]["state"][1]["step"] == 5
    moved = "blocks.0.attn.qkv.weight"
    assert not torch.equal(after["model"][moved], before["model"][moved])
    for key in ("model", "ema"):
        assert torch.equal(after[key]["pos_embed"], before[key]["pos_embed"])


def test_names_and_order_are_those_of_torch_modules(exported):
    config = tiny.get_config()
    models = build_models(config)
    sit = models.backbone
    module = torch_sit.SiT(
        latent_size=sit.latent_size, latent_channels=sit.latent_channels, patch_size=sit.patch_size,
        hidden_size=sit.hidden_size, depth=sit.depth, num_heads=sit.num_heads,
        num_classes=sit.conditioner.num_classes, encoder_depth=sit.encoder_depth,
        teacher_dims=sit.teacher_dims, projector_dim=sit.projector.hidden,
    )  # fmt: skip
    whole = saved_content(exported)
    assert list(whole["model"]) == list(module.state_dict())
    module.load_state_dict(whole["model"], strict=True)
    # torch's own optimizer takes the state, moments at the parameters that they belong to
    parameters = dict(module.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=1.0)
    optimizer.load_state_dict(whole["opt"])
    slots = whole["opt"]["state"]
    for index, (name, parameter) in enumerate(parameters.items()):
        if name == "pos_embed":
            assert parameter not in optimizer.state
            continue
        moments = optimizer.state[parameter]
        assert moments["exp_avg"].shape == parameter.shape
        assert moments["step"] == 3
        assert torch.equal(moments["exp_avg"], slots[index]["exp_avg"])


@pytest.mark.parametrize("kind", ["ldm", "repa"])
def test_stage_two_and_repa_survive_the_trip(kind, trained, exported, tmp_path):
    whole = saved_content(exported)
    parts = {key: whole[key] for key in ("model", "ema", "opt", "steps")}
    if kind == "repa":
        for key in ("model", "ema"):
            parts[key] = {n: t for n, t in whole[key].items() if not n.startswith("bn.")}
    parts["args"] = argparse.Namespace(exp_name="x")
    path = tmp_path / "0000003.pt"
    torch.save(parts, path)
    words = ["--config", f"{TINY}:repa", f"--config.tokenizer.weights={trained[0]}"]
    words.append(f"--config.teachers.small.weights={trained[1]}")
    run = tmp_path / "run"
    assert main(["convert", str(path), str(run), *words, "--quiet"]) == 0
    state = restore_latest(run)
    statistics = state["batch_stats"]["latent_norm"]
    if kind == "repa":  # REPA multiplies SD-VAE's latents by this, and has no statistics
        np.testing.assert_allclose(statistics["var"], 0.18215**-2, rtol=1e-6)
        np.testing.assert_array_equal(statistics["mean"], 0)
    else:
        np.testing.assert_array_equal(statistics["var"], whole["model"]["bn.running_var"])
    assert main(["convert", str(run), str(tmp_path / "again.pt"), "--quiet"]) == 0
    actual, expected = saved_content(tmp_path / "again.pt"), saved_content(path)
    for key in ("model", "ema", "opt", "steps"):
        assert_same_content(actual[key], expected[key], key)
    assert set(actual) == set(expected)
    # and it trains on, with the VAE frozen
    assert main(["train", "--workdir", str(run), "--config.run.steps=4", "--quiet"]) == 0


def test_a_bare_state_dict_becomes_a_run_that_samples(trained, exported, tmp_path):
    ema = {n: t for n, t in saved_content(exported)["ema"].items() if not n.startswith("bn.")}
    path = tmp_path / "last.pt"  # as REPA publishes its SiT
    torch.save(ema, path)
    words = ["--config", f"{TINY}:repa", f"--config.tokenizer.weights={trained[0]}"]
    words.append(f"--config.teachers.small.weights={trained[1]}")
    run = tmp_path / "run"
    assert main(["convert", str(path), str(run), *words, "--quiet"]) == 0
    assert main(["sample", "--workdir", str(run), "--labels", "1,2", "--quiet"]) == 0
    assert (run / "sample.png").stat().st_size > 0
    assert main(["convert", str(run), str(tmp_path / "again.pt"), "--quiet"]) == 0
    again = saved_content(tmp_path / "again.pt")
    assert again["steps"] == 0
    for key in ("model", "ema"):
        assert_same_content(again[key], dict(ema), key)
    assert not any(slot["exp_avg"].any() for slot in again["opt"]["state"].values())


def test_without_its_vae_a_stage_two_checkpoint_says_so(exported, tmp_path, capsys):
    whole = saved_content(exported)
    path = tmp_path / "0000003.pt"
    torch.save({key: whole[key] for key in ("model", "ema", "opt", "steps", "args")}, path)
    words = ["convert", str(path), str(tmp_path / "run"), "--config", f"{TINY}:repa", "--quiet"]
    assert main(words) == 2
    assert "config.tokenizer.weights is empty" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def spoil(whole, how):
    """One thing wrong with a checkpoint; returns what the message must name."""
    first = "blocks.0.attn.qkv.weight"
    if how == "missing":
        del whole["ema"][first]
        return ("ema", first, "missing")
    if how == "extra":
        whole["vae"]["more"] = torch.ones(2)
        return ("vae", "'more'", "unexpected")
    if how == "shape":
        whole["discriminator"]["main.0.weight"] = torch.ones(2, 2)
        return ("discriminator", "main.0.weight", "shape")
    if how == "nan":
        whole["model"][first][0, 0] = float("nan")
        return ("model", first, "not finite")
    if how == "double-moment":
        moment = whole["opt_vae"]["state"][5]["exp_avg_sq"].double()
        moment.view(-1)[0] = 1e39
        whole["opt_vae"]["state"][5]["exp_avg_sq"] = moment
        return ("opt_vae", "exp_avg_sq", "not finite in float32")
    if how == "nan-moment":
        whole["opt_vae"]["state"][5]["exp_avg_sq"][0] = float("nan")
        return ("opt_vae", "exp_avg_sq", "not finite")
    if how == "slot":
        del whole["opt"]["state"][3]
        return ("opt", "slot 3", "missing")
    if how == "parameters":
        whole["opt_disc"]["param_groups"][0]["params"].pop()
        return ("opt_disc", "parameters")
    if how == "uneven":
        whole["opt"]["state"][3]["step"] += 1
        return ("opt", "steps")
    del whole["opt_vae"]
    return ("opt_vae", "missing")


@pytest.mark.parametrize(
    "how",
    ["missing", "extra", "shape", "nan", "nan-moment", "double-moment", "slot", "parameters",
     "uneven", "part"],
)  # fmt: skip
def test_damage_is_one_line_and_nothing_is_written(how, exported, tmp_path, capsys):
    whole = saved_content(exported)
    expected = spoil(whole, how)
    path = tmp_path / "0000003.pt"
    torch.save(whole, path)
    assert main(["convert", str(path), str(tmp_path / "run"), "--quiet"]) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    for part in (str(path), *expected):
        assert part in message, message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0000003.pt"]


def test_a_truncated_checkpoint_is_one_line(exported, tmp_path, capsys):
    path = tmp_path / "0000003.pt"
    path.write_bytes(exported.read_bytes()[:20_000])
    assert main(["convert", str(path), str(tmp_path / "run"), "--quiet"]) == 2
    message = capsys.readouterr().err.strip()
    assert str(path) in message
    assert "\n" not in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0000003.pt"]


def test_the_wrong_configuration_is_named(exported, tmp_path, capsys):
    words = [
        "convert",
        str(exported),
        str(tmp_path / "run"),
        "--config.backbone.depth=3",
        "--quiet",
    ]
    assert main(words) == 2
    assert "blocks.2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_nothing_is_overwritten(trained, exported, tmp_path, capsys):
    existing = tmp_path / "x.pt"
    existing.write_bytes(b"precious")
    assert main(["convert", str(trained[0]), str(existing), "--quiet"]) == 2
    assert existing.read_bytes() == b"precious"
    assert main(["convert", str(exported), str(trained[0]), "--quiet"]) == 2
    assert capsys.readouterr().err.count("exists already") == 2


def test_the_vae_goes_out_alone(trained, exported, tmp_path):
    for source in (trained[0], exported):
        folder = tmp_path / source.stem
        assert main(["convert", str(source), str(folder), "--to", "diffusers", "--quiet"]) == 0
    one, other = (
        (tmp_path / name / "diffusion_pytorch_model.safetensors").read_bytes()
        for name in (trained[0].stem, exported.stem)
    )
    assert one == other
    path = tmp_path / "vae.safetensors"
    assert main(["convert", str(trained[0]), str(path), "--to", "vae", "--quiet"]) == 0
    whole = saved_content(exported)
    assert list(files.read_stored(path)) == sorted(whole["vae"])
    for name, array in files.read_stored(path).items():
        np.testing.assert_array_equal(array, whole["vae"][name])
    discriminator = files.read_stored(tmp_path / "vae-discriminator-ckpt.pt")
    assert_same_content(
        {n: torch.tensor(a) for n, a in discriminator.items()}, dict(whole["discriminator"])
    )
    ema, statistics = whole["ema"], files.read_stored(tmp_path / "vae-latents-stats.pt")
    np.testing.assert_array_equal(statistics["latents_bias"].reshape(-1), ema["bn.running_mean"])
