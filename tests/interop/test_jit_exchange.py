"""JiT's checkpoints become runs, and come back bit by bit."""

import argparse

import jax
import numpy as np
import parity
import pytest
import tiny
import torch
import torch_jit
from foreign_trips import make_trip
from original_jit import ORIGINAL, REASON, original_jit
from saved import assert_same_content, saved_content

from repae_jax.cli import main
from repae_jax.config import backbone, jit256, tokenizer
from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.interop.detect_format import detect
from repae_jax.runs.build import build_models, fresh_state
from repae_jax.runs.jit_args import config_of_jit, jit_args
from repae_jax.runs.open_run import load_state
from repae_jax.runs.original_export import _export
from repae_jax.runs.original_import import bare_checkpoint, import_run
from repae_jax.runs.original_parts import new_provenance, trained_parts

SIDE, CLASSES, STEPS, EPOCH = 32, 10, 6, 2
MODEL = dict(
    input_size=SIDE, patch_size=8, in_channels=3, hidden_size=32, depth=3, num_heads=2,
    bottleneck_dim=8, in_context_len=4, in_context_start=1, num_classes=CLASSES,
)  # fmt: skip
ARGS = dict(
    model="JiT-B/16", img_size=256, class_num=CLASSES, seed=3, ema_decay1=0.999, P_mean=-0.4,
    P_std=0.9, t_eps=0.1, noise_scale=2.0, label_drop_prob=0.2, lr=3e-4, weight_decay=0.0,
    lr_schedule="constant", batch_size=4, world_size=2, epochs=50, warmup_epochs=5,
    sampling_method="euler", num_sampling_steps=20, cfg=2.4, interval_min=0.25, interval_max=1.0,
    z_dims=[],
)  # fmt: skip


def groups_of(model):
    """The two groups of JiT's optimizer: vectors and biases without weight decay, and the rest."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    vectors = [p for name, p in trained if p.dim() == 1 or name.endswith("bias")]
    matrices = [p for name, p in trained if p.dim() > 1 and not name.endswith("bias")]
    return [{"params": vectors, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 0.0}]


def trained(make, folder):
    """A checkpoint after some steps of AdamW, as `save_model` of JiT's misc.py writes it."""
    model, first, second = (parity.randomise(make(**MODEL), seed=seed) for seed in (1, 2, 3))
    for module in (model, first, second):
        module.pos_embed.requires_grad = False
        module.pos_embed.data = model.pos_embed.data.clone()
    opt = torch.optim.AdamW(groups_of(model), lr=3e-4, betas=(0.9, 0.95))
    x = torch.tensor(parity.normal(2, 3, SIDE, SIDE, seed=3))
    for _ in range(STEPS):
        model(x, torch.tensor([0.2, 0.9]), torch.tensor([1, CLASSES])).square().mean().backward()
        opt.step()
        opt.zero_grad()
    names = {"model": model, "model_ema1": first, "model_ema2": second}
    content = {
        key: {f"net.{name}": tensor for name, tensor in module.state_dict().items()}
        for key, module in names.items()
    }
    args = argparse.Namespace(**ARGS)
    path = folder / "checkpoint-last.pth"
    torch.save(content | {"optimizer": opt.state_dict(), "epoch": EPOCH, "args": args}, path)
    return model, first, path


def on_pixels(recipe="vanilla"):
    config = tiny.get_config(recipe)
    config.tokenizer = tokenizer(family="pixels")
    config.backbone = backbone(
        family="jit", patch_size=8, hidden_size=32, depth=3, num_heads=2, bottleneck=8,
        context_tokens=4, context_start=1, encoder_depth=2,
    )  # fmt: skip
    config.objective.least_time = 0.05
    return config


REFERENCES = {"torch": torch_jit.JiT, "original": original_jit}
NAMES = ["torch", pytest.param("original", marks=pytest.mark.skipif(not ORIGINAL, reason=REASON))]


@pytest.fixture(scope="module", params=NAMES)
def trip(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model, ema, path = trained(REFERENCES[request.param], folder)
    config = on_pixels()
    return make_trip(model, ema, path, config)


def test_a_checkpoint_comes_back_bit_by_bit(trip):
    theirs, ours = saved_content(trip.checkpoint), saved_content(trip.exported)
    assert set(ours) == set(theirs)
    assert vars(ours.pop("args")) == vars(theirs.pop("args")) == ARGS
    assert ours.pop("epoch") == theirs.pop("epoch") == EPOCH
    assert_same_content(ours.pop("model_ema2"), theirs["model_ema1"], "which a run has not")
    del theirs["model_ema2"]
    for key in theirs:
        assert_same_content(ours[key], theirs[key], key)


def test_the_run_predicts_what_their_models_predict(trip):
    models = build_models(trip.config)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = load_state(trip.workdir, trip.config, models, device, optimizers=True)
    assert int(state.step) == STEPS
    np.testing.assert_array_equal(state.ema["latent_norm"]["mean"], np.zeros(3))
    np.testing.assert_array_equal(state.ema["latent_norm"]["var"], np.ones(3))
    x, t = parity.normal(3, SIDE, SIDE, 3, seed=5), np.array([0.02, 0.4, 1.0], np.float32)
    labels, constants = np.array([1, CLASSES, 9]), {"constants": state.ema["constants"]}
    for module, params in (
        (trip.model, state.params["backbone"]),
        (trip.ema, state.ema["params"]),
    ):
        with torch.no_grad():
            data = module(parity.to_nchw(x), torch.tensor(1 - t), torch.tensor(labels))
        expected = (x - parity.to_nhwc(data)) / np.maximum(t, 0.05)[:, None, None, None]
        weights = {"params": params, **constants}
        ours = parity.quick_jit(models.backbone.apply)(weights, x, t, {"label": labels})
        parity.assert_close(ours.prediction, expected, "velocity")


def test_their_optimizer_loads_what_comes_back(trip):
    content = saved_content(trip.exported)
    for module, key in ((trip.model, "model"), (trip.ema, "model_ema1")):
        tensors = {name.removeprefix("net."): tensor for name, tensor in content[key].items()}
        module.load_state_dict(tensors, strict=True)
    torch.optim.AdamW(groups_of(trip.model)).load_state_dict(content["optimizer"])


def test_inspect_tells_its_dimensions(trip, capsys, tmp_path):
    assert main(["inspect", str(trip.checkpoint)]) == 0
    said = capsys.readouterr().out
    assert "training checkpoint of JiT" in said
    assert (
        "own size: width 32, depth 3, 2 heads, patch 8 through 8 features, images 32 x 32" in said
    )
    assert "left out: model_ema2, a second moving average" in said
    torch.save({f"net.{n}": t for n, t in trip.ema.state_dict().items()}, tmp_path / "bare.pt")
    assert main(["inspect", str(tmp_path / "bare.pt")]) == 0
    assert "weights of a JiT" in capsys.readouterr().out
    content = bare_checkpoint(detect(tmp_path / "bare.pt").content)
    state = import_run(content, tmp_path / "run", trip.config, source="it", progress=False)
    assert int(state.step) == 0


def test_heads_are_left_out_with_the_optimizer(trip, tmp_path):
    content = saved_content(trip.checkpoint)
    for key in ("model", "model_ema1", "model_ema2"):
        head = torch.zeros(4, 32)
        content[key]["net.projectors.0.projection_layer.weight"] = head
    torch.save(content, tmp_path / "heads.pth")
    found = detect(tmp_path / "heads.pth")
    assert any("left out: the projection heads, and the optim" in note for note in found.notes)
    config = trip.config
    state = import_run(found.content, tmp_path / "run", config, source="it", progress=False)
    bias = state.params["backbone"]["final_layer"]["linear"]["bias"]
    np.testing.assert_array_equal(bias, content["model"]["net.final_layer.linear.bias"])


def published(**changes):
    with torch.device("meta"):
        shapes = torch_jit.JiT(
            **MODEL
            | dict(
                input_size=256, patch_size=16, hidden_size=768, depth=12, num_heads=12,
                bottleneck_dim=128, in_context_len=32, in_context_start=4,
            )
            | changes
        ).state_dict()  # fmt: skip
    return {n: np.broadcast_to(np.float32(0), tuple(t.shape)) for n, t in shapes.items()}


def test_the_configuration_follows_from_the_checkpoint():
    content = {"ema": published(), "args": argparse.Namespace(**ARGS), "steps": 600, "epoch": 6}
    config = config_of_jit(content, source="it")
    assert (config.backbone.arch, config.tokenizer.family) == ("JiT-B/16", "pixels")
    assert (config.data.resolution, config.data.num_classes, config.seed) == (256, CLASSES, 3)
    assert (config.batch_size, config.ema_decay, config.condition.drop) == (8, 0.999, 0.2)
    assert (config.time.mean, config.time.scale) == (0.4, 0.9)
    assert config.objective.least_time == config.backbone.least_time == 0.1
    assert config.objective.noise_scale == 2.0
    adamw = config.optimizer.backbone
    assert (adamw.learning_rate, adamw.b2, adamw.warmup_steps) == (3e-4, 0.95, 500)
    assert (config.run.steps, adamw.decay_steps) == (5000, 0)
    sampling = config.sampling
    assert (sampling.method, sampling.steps, sampling.guidance_scale) == ("euler", 20, 2.4)
    assert (sampling.guidance_low, sampling.guidance_high) == (0.0, 0.75)
    assert sampling.guidance_rule == "evaluation"
    validate(config)


def test_what_the_arguments_leave_out_is_the_published():
    larger = published(input_size=512, patch_size=32)
    assert config_of_jit({"ema": published()}, source="it").objective.noise_scale == 1.0
    assert config_of_jit({"ema": larger}, source="it").objective.noise_scale == 2.0
    args = {"batch_size": 512, "blr": 1e-4, "lr": None, "lr_schedule": "cosine", "min_lr": 1e-5}
    adamw = config_of_jit({"ema": published(), "args": args}, source="it").optimizer.backbone
    assert (adamw.learning_rate, adamw.final_rate) == (2e-4, 1e-5)
    with pytest.raises(UserError, match=r"'weight_decay' is 0\.1, .* matrices alone"):
        config_of_jit({"ema": published(), "args": {"weight_decay": 0.1}}, source="it")


def test_arguments_go_out_and_come_back():
    config = jit256()
    config.seed = 11
    args = jit_args(config)
    back = config_of_jit({"ema": published(), "args": args}, source="it")
    assert back.to_dict() == config.to_dict()
    assert (args["epochs"], args["warmup_epochs"], args["P_mean"]) == (200, 5, -0.8)
    assert args["interval_min"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "args", "message"),
    [
        (dict(depth=11), {}, r"'depth': 11.* none of the published, .* --config"),
        ({}, {"P_mean": "much"}, "its argument P_mean"),
        ({}, {"interval_min": 2.0}, "its argument interval_min is 2.0"),
    ],
)
def test_what_is_not_published_is_named(changes, args, message):
    with pytest.raises(UserError, match=message):
        config_of_jit({"ema": published(**changes), "args": args}, source="it")


def test_a_run_of_its_own_goes_out_without_heads():
    config = on_pixels("repa")
    models = build_models(config)
    make = parity.quick_jit(lambda key: fresh_state(config, models, key))
    state = jax.device_get(make(jax.random.key(0)))
    parts = trained_parts(models, config, "it", statistics=True)
    origin = new_provenance(config, models, parts)
    content = _export(state, parts, origin, config)
    assert "projectors_0" in state.params["backbone"]
    model = torch_jit.JiT(**MODEL)
    for key in ("model", "ema"):
        tensors = {name: torch.tensor(array) for name, array in content[key].items()}
        model.load_state_dict(tensors, strict=True)
    model.pos_embed.requires_grad = False
    theirs, ours = groups_of(model), content["opt"]["param_groups"]
    assert [len(group["params"]) for group in ours] == [len(group["params"]) for group in theirs]
