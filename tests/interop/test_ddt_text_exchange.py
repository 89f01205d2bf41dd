"""Checkpoints of diffusion-bench's text-to-image DDT become runs, and come back bit by bit."""

import jax
import numpy as np
import original_text
import parity
import pytest
import torch
import torch_text_backbones
from foreign_text import text_config
from foreign_trips import make_trip, write_statistics, write_vae
from saved import assert_same_content, saved_content

from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.runs.build import build_models
from repae_jax.runs.ddt_args import config_of_ddt
from repae_jax.runs.open_run import load_state
from repae_jax.runs.original_parts import trained_parts

SIDE, CHANNELS, STEPS = 8, 2, 2
MODEL = dict(
    input_size=SIDE, patch_size=1, in_channels=CHANNELS, hidden_size=[32, 48], depth=[2, 1],
    num_heads=[2, 3], time_tokens=2, text_length=32, text_width=24,
)  # fmt: skip


def make(source, seed):
    if source == "original" and not original_text.BENCH:
        pytest.skip(original_text.REASONS["ddt"])
    build = original_text.ddt if source == "original" else torch_text_backbones.DDT
    net = parity.randomise(build(**MODEL), seed=seed)
    return net.requires_grad_(True)  # as the training does, also for the frequencies


def inputs():
    """x (3, h, w, c), times, and captions of 32, 7 and no valid tokens."""
    mask = np.arange(32) < np.array([32, 7, 0])[:, None]
    x, tokens = parity.normal(3, SIDE, SIDE, CHANNELS, seed=1), parity.normal(3, 32, 24, seed=5)
    return x, np.array([0.0, 0.4, 1.0], np.float32), tokens, mask


def predict(net, x, t, tokens, mask):
    given = torch.tensor(tokens), torch.tensor(mask).float()
    return net(parity.to_nchw(x), torch.tensor(t), context=given[0], attn_mask=given[1])


@pytest.fixture(scope="module", params=["torch", "original"])
def trip(request, tmp_path_factory):
    """A checkpoint after some steps of AdamW, its run, its export."""
    folder = tmp_path_factory.mktemp("ddt")
    model, ema = (make(request.param, seed) for seed in (1, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0, betas=(0.9, 0.95))
    for _ in range(STEPS):
        predict(model, *inputs()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    content = dict(
        step=STEPS, epoch=0, model=model.state_dict(), ema=ema.state_dict(),
        optimizer=optimizer.state_dict(), scheduler={"last_epoch": STEPS},
    )  # fmt: skip
    torch.save(content, folder / "ep-0000000.pt")
    config = configuration()
    file, *statistics = write_statistics(folder, CHANNELS)
    config.tokenizer.update(weights=str(write_vae(folder)), statistics=str(file))
    return make_trip(model, ema, folder / "ep-0000000.pt", config, statistics)


def configuration(embedding="rms_norm"):
    config = text_config(
        "ddt", embedding, 24, hidden_size=32, depth=2, num_heads=2, head_size=48, head_depth=1,
        head_heads=3, time_tokens=2,
    )  # fmt: skip
    config.backbone.patch_size = 1
    return config


def test_a_checkpoint_comes_back_bit_by_bit(trip):
    theirs, ours = saved_content(trip.checkpoint), saved_content(trip.exported)
    for key in ("model", "ema"):
        trip.ema.load_state_dict(ours[key], strict=True)
        for name in [name for name in theirs[key] if "rope" in name]:  # of their libraries' digits
            torch.testing.assert_close(ours[key].pop(name), theirs[key].pop(name))
        assert_same_content(dict(sorted(ours[key].items())), dict(sorted(theirs[key].items())), key)
    for key in ("step", "epoch"):
        assert ours[key] == theirs[key]
    assert_same_content(ours["optimizer"]["state"], theirs["optimizer"]["state"], "optimizer")


def test_the_run_predicts_what_their_model_predicts(trip):
    models = build_models(trip.config)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = load_state(trip.workdir, trip.config, models, device)
    x, t, tokens, mask = inputs()
    trip.ema.load_state_dict(saved_content(trip.checkpoint)["ema"])
    with torch.no_grad():
        expected = predict(trip.ema, x, t, tokens, mask)
    apply = parity.quick_jit(models.backbone.apply)
    ours = apply({"params": state.ema["params"]}, x, t, {"tokens": tokens, "mask": mask})
    parity.assert_close(ours.prediction, parity.to_nhwc(expected), "velocity")


def zeros(**changes):
    """The tensors of a model, zeros without memory."""
    sizes = dict(
        input_size=16, patch_size=1, in_channels=32, hidden_size=[1152, 2048], depth=[28, 2],
        num_heads=[16, 16], time_tokens=4, text_length=256, text_width=1024,
    )  # fmt: skip
    with torch.device("meta"):
        shapes = torch_text_backbones.DDT(**(sizes | changes)).state_dict()
    return {n: np.broadcast_to(np.float32(0), tuple(t.shape)) for n, t in shapes.items()}


def test_the_configuration_follows_from_the_published_weights():
    config = config_of_ddt({"ema": zeros()}, source="it")
    assert (config.backbone.arch, config.tokenizer.arch) == ("DDT-XL/1", "f16d32")
    assert (config.text_encoder.arch, config.condition.embedding) == ("qwen3-0.6b", "rms_norm")
    assert config.time.shift == config.sampling.shift == 2**0.5
    assert (config.sampling.guidance_scale, config.run.steps) == (6.0, 100_000)
    config.tokenizer.weights = "somewhere"
    validate(config)
    assert config_of_ddt({"ema": zeros(text_length=77)}, source="it").text_encoder.length == 77


def test_text_of_another_encoder_is_named():
    message = "it: its text is 24 wide, but the states of qwen3-0.6b are 1024: give a"
    with pytest.raises(UserError, match=message):
        config_of_ddt({"ema": zeros(text_width=24)}, source="it")
    config = configuration("linear")
    with pytest.raises(UserError, match=r"DDT with text \(embedding 'linear'\): convert"):
        trained_parts(build_models(config), config, "it", statistics=True)
