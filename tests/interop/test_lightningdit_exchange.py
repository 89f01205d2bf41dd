"""LightningDiT's checkpoints become runs, and come back bit by bit."""

import jax
import numpy as np
import parity
import pytest
import tiny
import torch
import torch_lightningdit
from foreign_trips import make_trip, write_statistics, write_vae
from original_lightningdit import ORIGINAL, REASON, original_lightningdit
from saved import assert_same_content, saved_content

from repae_jax.cli import main
from repae_jax.config import backbone, lightningdit256
from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.interop.detect_format import detect
from repae_jax.runs import original_export
from repae_jax.runs.build import build_models, fresh_state
from repae_jax.runs.lightningdit_args import config_of_lightningdit, lightningdit_config
from repae_jax.runs.open_run import load_state
from repae_jax.runs.original_import import bare_checkpoint, import_run
from repae_jax.runs.original_parts import new_provenance, trained_parts

SIDE, CHANNELS, CLASSES = 8, 2, 10
MODEL = dict(
    input_size=SIDE, patch_size=2, in_channels=CHANNELS, hidden_size=32, depth=2, num_heads=2,
    num_classes=CLASSES,
)  # fmt: skip
THEIR_CONFIG = {
    "data": {"num_classes": CLASSES, "latent_norm": True, "latent_multiplier": 0.5},
    "model": {"model_type": "own"},
    "train": {"max_steps": 500, "global_batch_size": 8, "global_seed": 3, "ckpt_every": 50},
    "optimizer": {"lr": 2e-4, "beta2": 0.95},
    "transport": {
        "path_type": "Linear", "prediction": "velocity", "use_cosine_loss": True,
        "use_lognorm": True,
    },
    "sample": {
        "num_sampling_steps": 250, "cfg_scale": 6.7, "cfg_interval_start": 0.125,
        "timestep_shift": 0.3,
    },
}  # fmt: skip
STEPS = 3


def trained(make, folder):
    """A checkpoint after some steps of AdamW, as LightningDiT's train.py saves it."""
    model = parity.randomise(make(**MODEL), seed=1)
    model.pos_embed.requires_grad = False
    ema = parity.randomise(make(**MODEL), seed=2)
    ema.pos_embed.data = model.pos_embed.data.clone()
    opt = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0, betas=(0.9, 0.95))
    x = torch.tensor(parity.normal(2, CHANNELS, SIDE, SIDE, seed=3))
    for _ in range(STEPS):
        model(x, torch.tensor([0.2, 0.9]), torch.tensor([1, CLASSES])).square().mean().backward()
        opt.step()
        opt.zero_grad()
    path = folder / f"{STEPS:07d}.pt"
    torch.save(
        {
            "model": {f"module.{name}": tensor for name, tensor in model.state_dict().items()},
            "ema": ema.state_dict(),
            "opt": opt.state_dict(),
            "config": THEIR_CONFIG,
        },
        path,
    )
    return model, ema, path


REFERENCES = {"torch": torch_lightningdit.LightningDiT, "original": original_lightningdit}
NAMES = [
    "torch",
    pytest.param("original", marks=pytest.mark.skipif(not ORIGINAL, reason=REASON)),
]


@pytest.fixture(scope="module", params=NAMES)
def trip(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model, ema, path = trained(REFERENCES[request.param], folder)
    file, *statistics = write_statistics(folder, CHANNELS)
    config = tiny.get_config("vanilla")
    config.backbone = backbone(
        family="lightningdit", patch_size=2, hidden_size=32, depth=2, num_heads=2, encoder_depth=1
    )
    config.tokenizer.update(weights=str(write_vae(folder)), statistics=file)
    return make_trip(model, ema, path, config, tuple(statistics))


def state_of(trip):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    models = build_models(trip.config)
    return models, load_state(trip.workdir, trip.config, models, device, optimizers=True)


def test_a_checkpoint_comes_back_bit_by_bit(trip):
    theirs, ours = saved_content(trip.checkpoint), saved_content(trip.exported)
    assert set(ours) == set(theirs) == {"model", "ema", "opt", "config"}
    for key in theirs:
        if key in ("model", "ema"):  # the tables have the rounding of the library that made them
            for name in [name for name in theirs[key] if "feat_rope" in name]:
                torch.testing.assert_close(ours[key].pop(name), theirs[key].pop(name))
        assert_same_content(ours[key], theirs[key], key)


def test_the_run_predicts_what_their_models_predict(trip):
    models, state = state_of(trip)
    assert int(state.step) == STEPS
    x = parity.normal(3, SIDE, SIDE, CHANNELS, seed=5)
    t, labels = np.array([0.0, 0.4, 1.0], np.float32), np.array([1, CLASSES, 9])
    constants = {"constants": state.ema["constants"]}
    for module, params in (
        (trip.model, state.params["backbone"]), (trip.ema, state.ema["params"])
    ):  # fmt: skip
        with torch.no_grad():
            expected = -module(parity.to_nchw(x), torch.tensor(1 - t), torch.tensor(labels))
        ours = models.backbone.apply({"params": params, **constants}, x, t, {"label": labels})
        parity.assert_close(ours.prediction, parity.to_nhwc(expected), "velocity")


def test_the_latents_are_normalized_as_theirs(trip):
    _, state = state_of(trip)
    mean, std = trip.statistics
    multiplier = THEIR_CONFIG["data"]["latent_multiplier"]
    for norm in (state.batch_stats["latent_norm"], state.ema["latent_norm"]):
        np.testing.assert_allclose(norm["mean"], mean, rtol=1e-6)
        np.testing.assert_allclose(norm["var"], (std / multiplier) ** 2, rtol=1e-6)


def test_the_models_load_what_comes_back(trip):
    content = saved_content(trip.exported)
    trip.ema.load_state_dict(content["ema"], strict=True)
    model = {name.removeprefix("module."): tensor for name, tensor in content["model"].items()}
    trip.model.load_state_dict(model, strict=True)
    torch.optim.AdamW(trip.model.parameters()).load_state_dict(content["opt"])


def test_latents_without_statistics_are_refused(trip, tmp_path):
    config = trip.config.copy_and_resolve_references()
    config.tokenizer.statistics = ""
    with pytest.raises(UserError, match=r"no latent statistics.*latents_stats\.pt"):
        import_run(detect(trip.checkpoint).content, tmp_path / "run", config, source="it")
    assert not (tmp_path / "run").exists()


WIDE = MODEL | dict(in_channels=4, input_size=32, hidden_size=768, depth=12, num_heads=12)


@pytest.fixture(scope="module")
def published():
    """The tensors of a LightningDiT-B/2 on f8d4, zeros without memory."""
    with torch.device("meta"):
        shapes = torch_lightningdit.LightningDiT(**WIDE).state_dict()
    tensors = {n: np.broadcast_to(np.float32(0), tuple(t.shape)) for n, t in shapes.items()}
    return tensors


def test_the_configuration_follows_from_the_checkpoint(published):
    config = config_of_lightningdit({"ema": published, "config": THEIR_CONFIG}, source="it")
    assert config.backbone.arch == "LightningDiT-B/2"
    assert (config.tokenizer.arch, config.data.resolution, config.data.num_classes) == (
        "f8d4", 256, CLASSES
    )  # fmt: skip
    assert (config.seed, config.batch_size, config.run.steps) == (3, 8, 500)
    adamw = config.optimizer.backbone
    assert (adamw.learning_rate, adamw.b2, adamw.max_grad_norm) == (2e-4, 0.95, float("inf"))
    assert (config.objective.cosine_weight, config.time.weighting) == (1.0, "lognormal")
    assert config.sampling.steps == 249
    assert config.sampling.guidance_scale == 6.7
    assert config.sampling.guidance_high == 0.875
    assert config.sampling.shift == pytest.approx(1 / 0.3)
    assert config.sampling.guidance_channels == 3
    config.tokenizer.weights = "somewhere"
    validate(config)


def test_a_config_goes_out_and_comes_back(published):
    config = lightningdit256()
    config.seed = 11
    theirs = lightningdit_config(config)
    back = config_of_lightningdit({"ema": published, "config": theirs}, source="it")
    assert back.to_dict() == config.to_dict()
    alone = {key: value for key, value in theirs.items() if key != "repae_jax"}
    assert alone["sample"]["num_sampling_steps"] == 250
    assert alone["sample"]["timestep_shift"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": 3}, "its 'config' is 3, not a dict"),
        ({"config": {"data": {"num_classes": "many"}}}, "config.data.num_classes"),
        ({"config": {"transport": {"prediction": "noise"}}}, "prediction is 'noise'"),
        ({"config": {"transport": {"path_type": "GVP"}}}, "path_type is 'GVP'"),
    ],
)
def test_another_config_is_named(published, change, message):
    with pytest.raises(UserError, match=message):
        config_of_lightningdit({"ema": published} | change, source="it")


@pytest.mark.parametrize(
    ("names", "owner"),
    [
        (["t_embedder.W"], "LightningDiT of RAE"),
        (["t_embedder.W", "t_embedder.learnable_tokens"], "LightningDiT of diffusion-bench"),
    ],
)
def test_another_backbone_of_the_name_is_named(published, names, owner, tmp_path, capsys):
    tensors = published | {name: np.zeros((2, 2), np.float32) for name in names}
    with pytest.raises(UserError, match=f"{names[-1]}.* is of the {owner}"):
        config_of_lightningdit({"ema": tensors}, source="it")
    if len(names) == 2:  # which has no table of positions
        del tensors["pos_embed"]
    small = {name: torch.zeros(1 if a.ndim == 1 else [1] * a.ndim) for name, a in tensors.items()}
    torch.save(small, tmp_path / "bare.pt")
    assert main(["inspect", str(tmp_path / "bare.pt")]) == 0
    assert f"is of the {owner}" in capsys.readouterr().out


def test_a_model_with_a_variance_is_named(published):
    linear = published["final_layer.linear.weight"]
    tensors = published | {"final_layer.linear.weight": np.concatenate([linear, linear])}
    with pytest.raises(UserError, match=r"twice the latents' 4 channels \(learn_sigma\)"):
        config_of_lightningdit({"ema": tensors}, source="it")


def test_other_rotary_tables_are_refused(trip, tmp_path):
    content = dict(detect(trip.checkpoint).content)
    tensors = dict(content["ema"])
    tensors["feat_rope.freqs_cos"] = tensors["feat_rope.freqs_cos"][::-1].copy()
    with pytest.raises(UserError, match=r"the table 'feat_rope.freqs_cos' is not that"):
        import_run(content | {"ema": tensors}, tmp_path / "run", trip.config, source="it")


def test_inspect_tells_its_dimensions(trip, capsys, tmp_path):
    assert main(["inspect", str(trip.checkpoint)]) == 0
    said = capsys.readouterr().out
    assert "training checkpoint of LightningDiT" in said
    assert "own size: width 32, depth 2, 2 heads, patch 2, latents 8 x 8 x 2" in said
    assert "rotary, swiglu, rms_norm, shift" in said
    torch.save(trip.ema.state_dict(), tmp_path / "bare.pt")
    assert main(["inspect", str(tmp_path / "bare.pt")]) == 0
    assert "weights of a LightningDiT" in capsys.readouterr().out


def test_bare_weights_become_a_run(trip, tmp_path):
    torch.save(trip.ema.state_dict(), tmp_path / "bare.pt")
    found = detect(tmp_path / "bare.pt")
    content = bare_checkpoint(found.content)
    state = import_run(content, tmp_path / "run", trip.config, source="it", progress=False)
    assert int(state.step) == 0


def test_a_run_that_trains_its_vae_is_refused(tmp_path):
    config = tiny.get_config()
    config.backbone = backbone(
        family="lightningdit", patch_size=2, hidden_size=32, depth=2, num_heads=2, encoder_depth=1
    )
    models = build_models(config)
    with pytest.raises(UserError, match="a checkpoint of LightningDiT holds no VAE, but"):
        trained_parts(models, config, "it", statistics=True)


def test_a_run_with_heads_goes_out_without_them(tmp_path):
    config = tiny.get_config("repa")
    config.backbone = backbone(
        family="lightningdit", patch_size=2, hidden_size=32, depth=2, num_heads=2, encoder_depth=1
    )
    config.tokenizer.weights = "somewhere"
    models = build_models(config)
    state = jax.device_get(fresh_state(config, models, jax.random.key(0)))
    parts = trained_parts(models, config, "it", statistics=True)
    origin = new_provenance(config, models, parts)
    content = original_export._export(state, parts, origin, config)
    assert "projectors_0" in state.params["backbone"]
    for key in ("model", "ema"):
        torch_lightningdit.LightningDiT(**MODEL).load_state_dict(
            {name: torch.tensor(array) for name, array in content[key].items()}, strict=True
        )
    assert len(content["opt"]["state"]) == len(parts["backbone"].trained)


def test_heads_are_not_expected_of_a_checkpoint(trip, tmp_path):
    config = tiny.get_config("repa")
    config.backbone, config.tokenizer = trip.config.backbone, trip.config.tokenizer
    with pytest.raises(UserError, match=r"no projection heads, but config.teachers has small"):
        import_run(detect(trip.checkpoint).content, tmp_path / "run", config, source="it")
