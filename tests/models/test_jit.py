"""JiT against a torch implementation, and against its authors' where it is checked out."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
import torch_jit
from original_jit import (
    ORIGINAL,
    REASON,
    original_jit,
    original_jit_with_heads,
    original_preset,
)

from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.jit import jit_rules
from repae_jax.models.backbones.base import blank_inputs, headless_shapes
from repae_jax.models.backbones.jit import FAMILY, PRESETS, JiT
from repae_jax.models.conditioning.class_label import ClassLabel
from repae_jax.models.layers import rms_norm

needs_original = pytest.mark.skipif(not ORIGINAL, reason=REASON)
NAMES = ["torch", pytest.param("original", marks=needs_original)]
REFERENCES = {"torch": torch_jit.JiT, "original": original_jit}
SMALL = dict(
    input_size=32, patch_size=8, in_channels=3, hidden_size=32, depth=4, num_heads=2,
    bottleneck_dim=8, in_context_len=4, in_context_start=2, num_classes=5,
)  # fmt: skip
CASES = {
    "context in the middle": SMALL,
    # an odd number of context tokens, from the first block on
    "context from the first block": SMALL
    | dict(input_size=16, patch_size=4, depth=2, in_context_start=0, in_context_len=3),
    "no context": SMALL | dict(depth=2, in_context_start=1, in_context_len=0),
}
TIME = np.array([0.0, 0.03, 0.7, 1.0], np.float32)  # the first two below the least time
LABELS = np.array([4, 5, 1, 0])


def ours_of(config, **fields):
    return JiT(
        latent_size=config["input_size"],
        latent_channels=config["in_channels"],
        patch_size=config["patch_size"],
        hidden_size=config["hidden_size"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        conditioner=ClassLabel(config["num_classes"]),
        bottleneck=config["bottleneck_dim"],
        context_tokens=config["in_context_len"],
        context_start=config["in_context_start"],
        **{"encoder_depth": 1} | fields,
    )


def random_reference(name, case):
    reference = parity.randomise(REFERENCES[name](**CASES[case]))
    for part in reference.modules():  # the scales of RMSNorm are none of torch's norms
        if type(part).__name__ == "RMSNorm":
            part.weight.data += 1.0
    reference.pos_embed.requires_grad = False
    # so that the epsilons of the first norm and of those of queries and keys show
    reference.pos_embed.data *= 1e-3
    parity.shrink(reference.x_embedder.proj2, 1e-3)
    for parameter in reference.blocks[1].attn.qkv.parameters():
        parameter.data[: 2 * SMALL["hidden_size"]] *= 3e-3
    return reference


def variables_of(reference, model):
    return tables.load(
        jit_rules(model.patch_size), parity.state_of(reference), headless_shapes(model)
    )


def images(config, seed=1):
    side = config["input_size"]
    return parity.normal(len(TIME), side, side, config["in_channels"], seed=seed)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal(case, name):
    config = CASES[case]
    reference, model = random_reference(name, case), ours_of(config)
    variables, x = variables_of(reference, model), images(config)
    x_torch = parity.to_nchw(x).requires_grad_()
    data = reference(x_torch, torch.tensor(1 - TIME), torch.tensor(LABELS))
    # their velocity points to the data
    denominator = torch.tensor(TIME).clamp_min(0.05)[:, None, None, None]
    expected = -(data - x_torch) / denominator
    by_params, _ = parity.assert_backbones_equal(
        model, variables, x, TIME, LABELS, x_torch, expected
    )
    by_name = tables.to_theirs(
        jit_rules(config["patch_size"]), tables.flatten({"params": by_params})
    )
    parity.assert_tensors_close(by_name, parity.gradients_of(reference))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_names_go_in_and_out_bit_by_bit(case, name):
    reference, model = random_reference(name, case), ours_of(CASES[case])
    state = parity.state_of(reference)
    flat = tables.flatten(variables_of(reference, model))
    back = tables.to_theirs(jit_rules(model.patch_size), flat)
    ordered = tables.in_order(jit_rules(model.patch_size), back)
    assert list(ordered) == list(state)
    for key, array in state.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("scan", [False, True])
def test_aligned_tokens_are_the_patches_alone(depth, scan):
    case = "context in the middle"  # which joins before the third block
    reference = random_reference("torch", case)
    model = ours_of(CASES[case], encoder_depth=depth, scan=scan)
    variables, x = variables_of(reference, model), images(CASES[case])
    with torch.no_grad():
        inputs = (parity.to_nchw(x), torch.tensor(1 - TIME), torch.tensor(LABELS))
        expected, _ = reference.tokens(*inputs)
    ours = (x, TIME, {"label": LABELS})
    tokens = parity.quick_jit(model.apply)(variables, *ours).tokens
    parity.assert_close(tokens, expected[depth - 1], "tokens")
    hidden = parity.quick_jit(lambda *a: model.apply(*a, method="hidden"))(variables, *ours)
    parity.assert_close(hidden, torch.stack([h.mean(1) for h in expected]), "hidden")


@needs_original
@pytest.mark.parametrize("depth", [2, 3])  # on both sides of the context's start
def test_the_original_aligns_the_same_tokens(depth):
    heads = dict(z_dims=[6], projector_dim=8, encoder_depth=depth)
    reference = parity.randomise(original_jit_with_heads(**SMALL, **heads))
    model = ours_of(SMALL, encoder_depth=depth)
    state = parity.state_of(reference)
    own = {name: a for name, a in state.items() if not name.startswith("projectors.")}
    variables = tables.load(jit_rules(model.patch_size), own, headless_shapes(model))
    x = images(SMALL)
    with torch.no_grad():
        _, _, (expected,) = reference(
            parity.to_nchw(x), torch.tensor(1 - TIME), torch.tensor(LABELS)
        )
    output = model.apply(variables, x, TIME, {"label": LABELS})
    parity.assert_close(output.tokens, expected, "tokens")


def parameters(arch, **fields):
    """With the position table, which is a parameter of the original's."""
    model = JiT(latent_channels=3, conditioner=ClassLabel(1000), **PRESETS[arch], **fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *blank_inputs(model))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_the_published_size():
    assert parameters("JiT-B/16", latent_size=256) == 131_320_320


@needs_original
@pytest.mark.parametrize("arch", PRESETS)
def test_every_size_is_the_originals(arch):
    side = 16 * PRESETS[arch]["patch_size"]
    count = sum(p.numel() for p in original_preset(arch, side).parameters())
    assert parameters(arch, latent_size=side) == count


def test_rms_norm_multiplies_before_it_casts():
    x = np.asarray(parity.normal(64, 96, seed=3), jnp.bfloat16)
    scale = 1 + 0.3 * parity.normal(96, seed=4)
    h = torch.tensor(np.asarray(x, np.float32))
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)
    first = (torch.tensor(scale) * h).to(torch.bfloat16)
    last = (torch.tensor(scale) * h.to(torch.bfloat16)).to(torch.bfloat16)
    norm = rms_norm(1e-6, dtype=jnp.bfloat16)
    ours = np.asarray(norm.apply({"params": {"scale": scale}}, x), np.float32)
    differs = [(ours != theirs.float().numpy()).mean() for theirs in (first, last)]
    # a last bit of float32 may round to another bfloat16
    assert differs[0] < 0.005 < differs[1]


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (dict(hidden_size=40, num_heads=4), {}, r"heads of width 10 .* change .*num_heads"),
        (dict(in_context_start=4), {}, r"context_start is 4: .* below the backbone's depth 4"),
        ({}, dict(least_time=0.0), r"least_time is 0.0: give a time in \(0, 1\]"),
        (dict(patch_size=5), {}, "patch size 5 does not divide"),
    ],
)
def test_sizes_that_do_not_fit_are_named(config, fields, message):
    with pytest.raises(UserError, match=message):
        FAMILY.check(ours_of(SMALL | config, **fields), {"family": "jit"}, "config.backbone")


def test_a_preset_on_latents_is_named():
    model = ours_of(SMALL | dict(in_channels=4))
    FAMILY.check(model, {"family": "jit", "arch": ""}, "config.backbone")
    with pytest.raises(UserError, match=r"'JiT-B/16', which takes pixels, .* have 4 channels"):
        FAMILY.check(model, {"family": "jit", "arch": "JiT-B/16"}, "config.backbone")
