"""Checkpoints of RAE's and diffusion-bench's trainings become runs, and come back bit by bit."""

import jax
import numpy as np
import parity
import pytest
import tiny
import torch
import torch_ddt
from foreign_trips import make_trip, write_statistics, write_vae
from original_ddt import CHECKOUTS, REASONS, labelled, original_ddt
from saved import assert_same_content, saved_content

from repae_jax.cli import main
from repae_jax.config import backbone, ddt256
from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.interop.detect_format import detect
from repae_jax.runs.build import build_models
from repae_jax.runs.ddt_args import config_of_ddt, ddt_entries, ddt_settings
from repae_jax.runs.open_run import load_state, open_run
from repae_jax.runs.original_import import bare_checkpoint, import_run

SIDE, CHANNELS, CLASSES, STEPS = 8, 2, 10, 3
MODEL = dict(
    input_size=SIDE, patch_size=1, in_channels=CHANNELS, hidden_size=[32, 48], depth=[2, 1],
    num_heads=[2, 3], num_classes=CLASSES,
)  # fmt: skip
OWN = {"ditdh": {}, "ddt": dict(time_tokens=2, class_tokens=3)}
LABELS = np.array([1, CLASSES, 9])


def make_torch(family):
    return torch_ddt.MODELS[family](**MODEL, **OWN[family])


def make_original(family):
    if not CHECKOUTS[family]:
        pytest.skip(REASONS[family])
    return original_ddt(family, **MODEL, **OWN[family])


def trained(make, family, folder):
    """A checkpoint after some steps of AdamW, as both codes save it."""
    model, ema = (parity.randomise(make(family), seed=seed) for seed in (1, 2))
    model.requires_grad_(True)  # as their training does, also for tables and frequencies
    opt = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0, betas=(0.9, 0.95))
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1.0)
    x = torch.tensor(parity.normal(2, CHANNELS, SIDE, SIDE, seed=3))
    for _ in range(STEPS):
        out = labelled(family, model, x, torch.tensor([0.2, 0.9]), [1, CLASSES])
        out.square().mean().backward()
        opt.step()
        opt.zero_grad()
        scheduler.step()
    path = folder / "ep-0000000.pt"
    torch.save(
        {
            "step": STEPS,
            "epoch": 0,
            "model": model.state_dict(),
            "ema": ema.state_dict(),
            "optimizer": opt.state_dict(),
            "scheduler": scheduler.state_dict(),
        },
        path,
    )
    return model, ema, path


def configuration(family, vae):
    config = tiny.get_config("vanilla")
    config.backbone = backbone(
        family=family, patch_size=1, hidden_size=32, depth=2, num_heads=2, encoder_depth=1,
        head_size=48, head_depth=1, head_heads=3, **OWN[family],
    )  # fmt: skip
    config.optimizer.backbone.learning_rate = 2e-4
    config.tokenizer.update(weights=str(vae))
    return config


@pytest.fixture(
    scope="module", params=[(f, s) for f in OWN for s in ("torch", "original")], ids="-".join
)
def trip(request, tmp_path_factory):
    family, source = request.param
    folder = tmp_path_factory.mktemp(family)
    make = {"torch": make_torch, "original": make_original}[source]
    model, ema, path = trained(make, family, folder)
    config = configuration(family, write_vae(folder))
    config.tokenizer.statistics, *statistics = write_statistics(folder, CHANNELS)
    return make_trip(model, ema, path, config, (family, *statistics))


def test_a_checkpoint_comes_back_bit_by_bit(trip):
    theirs, ours = saved_content(trip.checkpoint), saved_content(trip.exported)
    assert set(ours) == set(theirs) | {"config"}
    for key in ("model", "ema"):  # the tables have the rounding of the library that made them
        for name in [name for name in theirs[key] if "rope" in name]:
            torch.testing.assert_close(ours[key].pop(name), theirs[key].pop(name))
    for key in ("step", "epoch", "model", "ema"):
        assert_same_content(ours[key], theirs[key], key)
    assert_same_content(ours["optimizer"]["state"], theirs["optimizer"]["state"], "optimizer")


def test_their_code_resumes_from_what_comes_back(trip):
    content = saved_content(trip.exported)
    trip.model.load_state_dict(content["model"], strict=True)
    trip.ema.load_state_dict(content["ema"], strict=True)
    optimizer = torch.optim.AdamW(trip.model.parameters(), lr=2e-4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / 10)
    optimizer.load_state_dict(content["optimizer"])
    scheduler.load_state_dict(content["scheduler"])
    assert scheduler.last_epoch == STEPS
    optimizer.step()
    scheduler.step()
    np.testing.assert_allclose(scheduler.get_last_lr(), [2e-4 * (1 - (STEPS + 1) / 10)])


def test_the_run_predicts_what_their_models_predict(trip):
    family, mean, std = trip.statistics
    models = build_models(trip.config)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = load_state(trip.workdir, trip.config, models, device, optimizers=True)
    assert int(state.step) == STEPS
    x = parity.normal(3, SIDE, SIDE, CHANNELS, seed=5)
    t = np.array([0.0, 0.4, 1.0], np.float32)
    for module, params in (
        (trip.model, state.params["backbone"]), (trip.ema, state.ema["params"])
    ):  # fmt: skip
        with torch.no_grad():
            expected = labelled(family, module, parity.to_nchw(x), torch.tensor(t), LABELS)
        ours = models.backbone.apply({"params": params}, x, t, {"label": LABELS})
        parity.assert_close(ours.prediction, parity.to_nhwc(expected), "velocity")
    for norm in (state.batch_stats["latent_norm"], state.ema["latent_norm"]):
        np.testing.assert_allclose(norm["mean"], mean, rtol=1e-6)
        np.testing.assert_allclose(norm["var"], std**2, rtol=1e-6)


def test_the_configuration_says_that_a_network_predicts_the_data(tmp_path):
    """Which no checkpoint does: the velocity is (x_t - x) / max(t, 0.05)."""
    _, ema, path = trained(make_torch, "ddt", tmp_path)
    config = configuration("ddt", write_vae(tmp_path))
    config.backbone.predicts_data, config.objective.least_time = True, 0.05
    config.tokenizer.statistics, _, _ = write_statistics(tmp_path, CHANNELS)
    import_run(detect(path).content, tmp_path / "run", config, source=str(path), progress=False)
    run = open_run(tmp_path / "run")
    assert run.config.backbone.predicts_data
    x = parity.normal(3, SIDE, SIDE, CHANNELS, seed=5)
    t = np.array([0.02, 0.4, 1.0], np.float32)
    with torch.no_grad():
        data = labelled("ddt", ema, parity.to_nchw(x), torch.tensor(t), LABELS)
    expected = (x - parity.to_nhwc(data)) / np.maximum(t, 0.05)[:, None, None, None]
    params = {"params": run.state.ema["params"]}
    ours = run.models.backbone.apply(params, x, t, {"label": LABELS})
    parity.assert_close(ours.prediction, expected, "velocity")


@pytest.mark.slow
def test_an_imported_run_resumes(trip, tmp_path):
    words = ["train", "--workdir", str(trip.workdir), f"--config.run.steps={STEPS + 1}", "--quiet"]
    assert main(words) == 0
    assert main(["convert", str(trip.workdir), str(tmp_path / "ep-1.pt"), "--quiet"]) == 0
    content = saved_content(tmp_path / "ep-1.pt")
    assert content["step"] == content["scheduler"]["last_epoch"] == STEPS + 1
    assert main(["convert", str(tmp_path / "ep-1.pt"), str(tmp_path / "again"), "--quiet"]) == 0


def test_inspect_tells_its_dimensions(trip, capsys, tmp_path):
    family = trip.statistics[0]
    named = {"ditdh": "RAE's DiT^DH", "ddt": "diffusion-bench's DDT"}[family]
    assert main(["inspect", str(trip.checkpoint)]) == 0
    said = capsys.readouterr().out
    assert f"{named}: encoder of width 32, depth 2, 2 heads; head of width 48, depth 1" in said
    torch.save(trip.ema.state_dict(), tmp_path / "bare.pt")
    assert main(["inspect", str(tmp_path / "bare.pt")]) == 0
    assert "weights of RAE's DiT^DH or of diffusion-bench's DDT" in capsys.readouterr().out
    content = bare_checkpoint(detect(tmp_path / "bare.pt").content)
    state = import_run(content, tmp_path / "run", trip.config, source="it", progress=False)
    assert int(state.step) == 0


def test_latents_without_statistics_are_refused(trip, tmp_path):
    config = trip.config.copy_and_resolve_references()
    config.tokenizer.statistics = ""
    with pytest.raises(UserError, match=r"no latent statistics.*latents_stats\.pt"):
        import_run(detect(trip.checkpoint).content, tmp_path / "run", config, source="it")
    assert not (tmp_path / "run").exists()


def test_other_rotary_tables_are_refused(trip, tmp_path):
    content = dict(detect(trip.checkpoint).content)
    tensors = dict(content["ema"])
    name = next(name for name in tensors if name.endswith("freqs_cos"))
    tensors[name] = tensors[name][::-1].copy()
    with pytest.raises(UserError, match=f"the table '{name}' is not that"):
        import_run(content | {"ema": tensors}, tmp_path / "run", trip.config, source="it")


@pytest.mark.parametrize(
    ("channels", "side", "patch", "tokenizer"),
    [(32, 16, 1, "f16d32"), (16, 32, 2, "f8d16"), (4, 32, 2, "f8d4")],
)
def test_the_configuration_follows_from_the_published_weights(channels, side, patch, tokenizer):
    sizes = dict(
        input_size=side, patch_size=patch, in_channels=channels, hidden_size=[1152, 2048],
        depth=[28, 2], num_heads=[16, 16], num_classes=1000,
    )  # fmt: skip
    config = config_of_ddt({"ema": zeros("ddt", sizes, time_tokens=4, class_tokens=8)}, source="it")
    assert (config.backbone.arch, config.tokenizer.arch) == (f"DDT-XL/{patch}", tokenizer)
    assert config.data.resolution == 256
    assert config.time.shift == config.sampling.shift == (channels * side**2 / 4096) ** 0.5
    config.tokenizer.weights = "somewhere"
    validate(config)


def zeros(family, sizes, **tokens):
    """The tensors of a model, zeros without memory."""
    with torch.device("meta"):
        shapes = torch_ddt.MODELS[family](**sizes, **tokens).state_dict()
    return {n: np.broadcast_to(np.float32(0), tuple(t.shape)) for n, t in shapes.items()}


def test_the_channels_tell_raes_tokenizer():
    sizes = MODEL | dict(in_channels=768)
    config = config_of_ddt({"ema": zeros("ditdh", sizes)}, source="it")
    assert config.tokenizer.arch == "rae-dinov2-base"
    sizes = MODEL | dict(in_channels=769)
    with pytest.raises(UserError, match=r"769 channels, as those of no VAE here"):
        config_of_ddt({"ema": zeros("ditdh", sizes)}, source="it")


def test_raes_training_is_its_own():
    config = config_of_ddt({"ema": zeros("ditdh", MODEL | dict(in_channels=4))}, source="it")
    assert (config.objective.least_time, config.time.highest) == (0.0, 0.999)
    assert (config.sampling.steps, config.sampling.last_time) == (49, 0.001)


def test_a_configuration_goes_out_and_comes_back():
    config = ddt256(32 * 16**2)
    config.seed = 11
    content = {"ema": {}, "config": ddt_settings(config)}
    assert config_of_ddt(content, source="it").to_dict() == config.to_dict()
    with pytest.raises(UserError, match=r"it: config\.repae_jax"):
        config_of_ddt({"ema": {}, "config": {"repae_jax": 3}}, source="it")


@pytest.mark.parametrize("step", [0, 40 * 1251, 400 * 1251, 900 * 1251])
def test_the_rate_of_the_step_goes_out(step):
    """Constant for 40 epochs, then a line to a tenth at epoch 800."""
    config, epoch = ddt256(4096), step // 1251
    content = {"model": {}, "ema": {}, "opt": {"state": {}, "param_groups": [{"lr": 1.0}]}}
    entries = ddt_entries(content, config, step, epoch)
    rate = 2e-4 * (1 - 0.9 * min(max(epoch - 40, 0) / 760, 1))
    assert entries["scheduler"]["last_epoch"] == step
    assert entries["scheduler"]["base_lrs"] == [2e-4]
    np.testing.assert_allclose(entries["scheduler"]["_last_lr"], [rate], rtol=1e-5)
    np.testing.assert_allclose(entries["optimizer"]["param_groups"][0]["lr"], rate, rtol=1e-5)
    assert entries["epoch"] == epoch


def test_names_that_are_no_text_are_refused(tmp_path, capsys):
    tensor = torch.zeros(1)
    torch.save({"model": {0: tensor}, "ema": {0: tensor}, "steps": 1}, tmp_path / "x.pt")
    assert main(["inspect", str(tmp_path / "x.pt")]) == 2
    assert "where the name of a tensor belongs" in capsys.readouterr().err
