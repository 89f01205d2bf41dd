"""DiT^DH and DDT against torch implementations, and against their authors' where checked out."""

import jax
import numpy as np
import parity
import pytest
import torch
import torch_ddt
from original_ddt import CHECKOUTS, REASONS, labelled, original_ddt

from repae_jax.errors import UserError
from repae_jax.interop.ddt import infer_dimensions
from repae_jax.interop.original import ddt_part, export_part, import_part
from repae_jax.models.backbones.base import blank_inputs
from repae_jax.models.backbones.families import BACKBONES
from repae_jax.models.conditioning.class_label import ClassLabel

SMALL = dict(
    input_size=4, patch_size=1, in_channels=8, hidden_size=[48, 64], depth=[2, 1],
    num_heads=[4, 2], num_classes=5,
)  # fmt: skip
CONTEXT = dict(time_tokens=2, class_tokens=3)
CASES = {
    "RAE": ("ditdh", {}),
    "RAE with qk-norm": ("ditdh", dict(qk_norm=True)),
    "RAE with LayerNorm": ("ditdh", dict(qk_norm=True, rms_norm=False)),
    "diffusion-bench": ("ddt", CONTEXT),
    "diffusion-bench, patches of 2": (
        "ddt", CONTEXT | dict(input_size=8, patch_size=2, in_channels=3)
    ),
}  # fmt: skip
TIME = np.array([0.0, 0.37, 1.0], np.float32)
LABELS = np.array([4, 5, 1])
SOURCES = ["torch", "original"]


def ours_of(family, config):
    (width, head_size), (depth, head_depth), (heads, head_heads) = (
        config[key] for key in ("hidden_size", "depth", "num_heads")
    )
    options = {
        k: config[k] for k in ("qk_norm", "rms_norm", "time_tokens", "class_tokens") if k in config
    }
    return BACKBONES[family].build(
        latent_size=config["input_size"],
        latent_channels=config["in_channels"],
        patch_size=config["patch_size"],
        hidden_size=width,
        depth=depth,
        num_heads=heads,
        head_size=head_size,
        head_depth=head_depth,
        head_heads=head_heads,
        conditioner=ClassLabel(config["num_classes"]),
        encoder_depth=1,
        **options,
    )


def reference_of(source, case):
    family, changes = CASES[case]
    config = SMALL | changes
    if source == "original" and not CHECKOUTS[family]:
        pytest.skip(REASONS[family])
    make = original_ddt if source == "original" else lambda f, **c: torch_ddt.MODELS[f](**c)
    reference = parity.randomise(make(family, **config))
    for part in reference.modules():  # the scales of RMSNorm are none of torch's norms
        if type(part).__name__ == "RMSNorm":
            part.weight.data += 1.0
    reference.t_embedder.W.data *= 3.0
    # the training of both originals sets this for every parameter
    reference.requires_grad_(True)
    return family, config, reference


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal(case, source):
    family, config, reference = reference_of(source, case)
    model = ours_of(family, config)
    variables = import_part(parity.state_of(reference), ddt_part(model), source="it")
    side = config["input_size"]
    x = parity.normal(3, side, side, config["in_channels"], seed=1)
    x_torch = parity.to_nchw(x).requires_grad_()
    expected = labelled(family, reference, x_torch, torch.tensor(TIME), LABELS)
    by_params, output = parity.assert_backbones_equal(
        model, variables, x, TIME, LABELS, x_torch, expected
    )
    assert output.tokens.shape == (3, model.grid**2, model.hidden_size)
    by_name = export_part({"params": by_params}, ddt_part(model), {})
    by_name = {name: array for name, array in by_name.items() if "rope" not in name}

    def vanishing(name):  # a key's bias moves all logits of a row alike, unless it is normalized
        if name.endswith("attn.k.bias") and family != "ddt":
            return name.replace("attn.k", "attn.q")
        return None

    parity.assert_tensors_close(by_name, parity.gradients_of(reference), vanishing=vanishing)


def test_the_velocity_of_predicted_data_equals_torchs():
    """(x_t - x) / max(t, 0.05), at 0 and below 0.05 as well."""
    family, config, reference = reference_of("torch", "diffusion-bench")
    model = ours_of(family, config).clone(predicts_data=True)
    variables = import_part(parity.state_of(reference), ddt_part(model), source="it")
    x, time = parity.normal(3, 4, 4, 8, seed=1), np.array([0.0, 0.03, 0.8], np.float32)
    x_torch = parity.to_nchw(x).requires_grad_()
    data = labelled(family, reference, x_torch, torch.tensor(time), LABELS)
    expected = (x_torch - data) / torch.tensor(time)[:, None, None, None].clamp_min(0.05)
    by_params, _ = parity.assert_backbones_equal(
        model, variables, x, time, LABELS, x_torch, expected
    )
    by_name = export_part({"params": by_params}, ddt_part(model), {})
    by_name = {name: array for name, array in by_name.items() if "rope" not in name}
    parity.assert_tensors_close(by_name, parity.gradients_of(reference))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(least_time=0.0), r"x.least_time is 0.0: give a time in \(0, 1\]"),
        (dict(class_token_dim=8), "x.predicts_data is True, but a class token"),
    ],
)
def test_impossible_predictions_of_data_are_named(changes, message):
    model = ours_of("ddt", SMALL | CONTEXT).clone(predicts_data=True, **changes)
    with pytest.raises(UserError, match=message):
        BACKBONES["ddt"].check(model, {"family": "ddt"}, "x")


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("case", CASES)
def test_names_go_in_and_out_bit_by_bit(case, source):
    family, config, reference = reference_of(source, case)
    parity.assert_names_come_back(ddt_part(ours_of(family, config)), reference)


@pytest.mark.parametrize("case", CASES)
def test_the_dimensions_follow_from_the_tensors(case):
    family, config, reference = reference_of("torch", case)
    found = infer_dimensions(parity.state_of(reference), source="it")
    model = ours_of(family, config)
    assert found.pop("family") == family
    assert found.pop("num_classes") == config["num_classes"] + 1
    assert found == {name: getattr(model, name) for name in found}
    assert {"depth", "head_depth", "num_heads", "head_heads", "latent_size"} <= set(found)


def parameters(family, arch, channels):
    row = BACKBONES[family]
    model = row.build(
        latent_size=16, latent_channels=channels, conditioner=ClassLabel(1000), **row.presets[arch]
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), *blank_inputs(model))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("family", "arch", "channels", "count"),
    [("ditdh", "DiTDH-XL/1", 768, 838_675_796), ("ddt", "DDT-XL/1", 32, 611_388_980)],
)
def test_the_published_sizes(family, arch, channels, count):
    assert parameters(family, arch, channels) == count
    if not CHECKOUTS[family]:
        return
    tokens = dict(time_tokens=4, class_tokens=8) if family == "ddt" else {}
    with torch.device("meta"):
        theirs = original_ddt(
            family, input_size=16, patch_size=1, in_channels=channels, hidden_size=[1152, 2048],
            depth=[28, 2], num_heads=[16, 16], num_classes=1000, **tokens,
        )  # fmt: skip
    assert sum(p.numel() for p in theirs.parameters()) == count


@pytest.mark.parametrize("family", ["ditdh", "ddt"])
def test_weights_start_as_pytorchs(family):
    """Uniform within 1 / sqrt(fan in), biases too; the embeddings of times N(0, 0.02)."""
    config = SMALL | (CONTEXT if family == "ddt" else {})
    model = ours_of(family, config)
    params = model.init(jax.random.key(0), *blank_inputs(model))["params"]
    for layer, fan_in in ((params["blocks_0"]["attn"]["qkv"], 48), (params["head_condition"], 48)):
        for leaf in jax.tree.leaves(layer):
            assert 0.8 < np.abs(leaf).max() * fan_in**0.5 <= 1.0
    assert 0.015 < params["time_embed"]["fc1"]["kernel"].std() < 0.025
    assert np.abs(params["time_embed"]["fc1"]["bias"]).max() <= 512**-0.5
    assert not params["blocks_2"]["modulation"]["kernel"].any()
    assert ("modulation" in params["blocks_0"]) == (family == "ditdh")
    if family == "ddt":
        assert 0.7 < params["learned_class_tokens"].std() * 48**0.5 < 1.3


def test_the_table_of_positions_trains_with_rae_and_is_none_of_diffusion_benchs():
    found = {}
    for case in ("RAE", "diffusion-bench"):
        family, changes = CASES[case]
        model = ours_of(family, SMALL | changes)
        found[family] = jax.eval_shape(model.init, jax.random.key(0), *blank_inputs(model))
    assert set(found["ditdh"]) == set(found["ddt"]) == {"params"}
    assert "position_table" in found["ditdh"]["params"]
    assert "position_table" not in found["ddt"]["params"]


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("ddt", dict(head_heads=3), r"head_size is 64: it must be divisible by the 3 heads"),
        ("ddt", dict(head_heads=32), r"heads of width 2 \(64 / 32\).*config.backbone.head_heads"),
        ("ddt", dict(num_heads=8), r"heads of width 6 \(48 / 8\).*config.backbone.num_heads$"),
        ("ditdh", dict(num_heads=8), r"config.backbone.num_heads, or set config.backbone.rotary"),
        ("ditdh", dict(head_depth=0), r"a head of head_depth 0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(family, changes, message):
    model = ours_of(family, SMALL).clone(**changes)
    row = BACKBONES[family]
    with pytest.raises(UserError, match=message):
        row.check(model, {"family": family, **row.options}, "config.backbone")


def test_the_ddt_of_its_authors_is_named():
    tensors = {"denoiser.s_embedder.proj.weight": np.zeros((2, 2), np.float32)}
    with pytest.raises(UserError, match="the DDT of its authors"):
        infer_dimensions(tensors, source="it")


def test_a_lost_part_of_a_layer_is_named():
    family, config, reference = reference_of("torch", "diffusion-bench")
    state = parity.state_of(reference)
    del state["blocks.0.attn.k.bias"]
    with pytest.raises(UserError, match=r"tensor 'blocks\.0\.attn\.k\.bias' is missing"):
        import_part(state, ddt_part(ours_of(family, config)), source="it")


@pytest.mark.parametrize(
    ("case", "names"),
    [
        ("RAE", ["s_embedder.proj.weight", "dec_feat_rope.freqs_cos", "blocks.0.attn.proj.weight"]),
        ("diffusion-bench", ["x_embedder.proj.weight", "t_embedder.learnable_tokens"]),
    ],
)
def test_a_tensor_of_another_rank_is_named(case, names):
    *_, reference = reference_of("torch", case)
    state = parity.state_of(reference)
    for name in names:
        for other in (state[name][None], state[name].reshape(-1)[0]):
            with pytest.raises(UserError, match=f"tensor '{name}' has the shape"):
                infer_dimensions(state | {name: np.asarray(other)}, source="it")
