"""LightningDiT against a torch implementation, and against its authors' where it is checked out."""

import jax
import numpy as np
import parity
import pytest
import torch
import torch_lightningdit
from original_lightningdit import ORIGINAL, REASON, original_lightningdit

from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.lightningdit import lightningdit_rules, rotary_tables
from repae_jax.models.backbones.base import blank_inputs
from repae_jax.models.backbones.lightningdit import FAMILY, PRESETS, LightningDiT
from repae_jax.models.conditioning.class_label import ClassLabel

needs_original = pytest.mark.skipif(not ORIGINAL, reason=REASON)
SMALL = dict(hidden_size=48, depth=2, num_heads=4, num_classes=5)
# head widths of 12, so that the inner width of SwiGLU, 128, is of no multiple of 3
CASES = {
    "published options": dict(input_size=4, patch_size=1, in_channels=8),
    "all options": dict(
        input_size=8, patch_size=2, in_channels=3, use_qknorm=True, wo_shift=True
    ),
    "none": dict(
        input_size=4, patch_size=1, in_channels=3, use_rope=False, use_swiglu=False,
        use_rmsnorm=False, use_qknorm=True,
    ),
}  # fmt: skip
TIME = np.array([0.0, 0.37, 1.0], np.float32)
LABELS = np.array([4, 5, 1])
SECTION = {"family": "lightningdit", **FAMILY.options}


REFERENCES = {"torch": torch_lightningdit.LightningDiT, "original": original_lightningdit}


def ours_of(config):
    return LightningDiT(
        latent_size=config["input_size"],
        latent_channels=config["in_channels"],
        patch_size=config["patch_size"],
        hidden_size=config["hidden_size"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        conditioner=ClassLabel(config["num_classes"]),
        encoder_depth=1,
        qk_norm=config.get("use_qknorm", False),
        rotary=config.get("use_rope", True),
        swiglu=config.get("use_swiglu", True),
        rms_norm=config.get("use_rmsnorm", True),
        shift=not config.get("wo_shift", False),
    )


def variables_of(reference, model):
    state = parity.state_of(reference)
    expected = rotary_tables(model)
    assert {name for name in state if name.startswith("feat_rope")} == set(expected)
    for name, table in expected.items():
        np.testing.assert_allclose(state.pop(name), table, atol=2e-6)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *blank_inputs(model))
    return tables.load(lightningdit_rules(model.patch_size), state, shapes), state


def random_reference(name, case):
    reference = parity.randomise(REFERENCES[name](**SMALL, **CASES[case]))
    for part in reference.modules():  # the scales of RMSNorm are none of torch's norms
        if type(part).__name__ == "RMSNorm":
            part.weight.data += 1.0
    reference.pos_embed.requires_grad = False
    # so that the epsilons of the first norm and of those of queries and keys show
    reference.pos_embed.data *= 1e-3
    parity.shrink(reference.x_embedder, 1e-3)
    if CASES[case].get("use_qknorm"):
        for parameter in reference.blocks[1].attn.qkv.parameters():
            parameter.data[: 2 * SMALL["hidden_size"]] *= 3e-3
    return reference


@pytest.mark.parametrize("name", ["torch", pytest.param("original", marks=needs_original)])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal(case, name):
    config = SMALL | CASES[case]
    reference = random_reference(name, case)
    model = ours_of(config)
    variables, _ = variables_of(reference, model)
    x = parity.normal(3, config["input_size"], config["input_size"], config["in_channels"], seed=1)
    x_torch = parity.to_nchw(x).requires_grad_()
    # their time runs the other way, and so does their velocity
    expected = -reference(x_torch, torch.tensor(1 - TIME), torch.tensor(LABELS))
    by_params, _ = parity.assert_backbones_equal(
        model, variables, x, TIME, LABELS, x_torch, expected
    )
    by_name = tables.to_theirs(
        lightningdit_rules(config["patch_size"]), tables.flatten({"params": by_params})
    )
    parity.assert_tensors_close(
        by_name,
        parity.gradients_of(reference),
        # moves all logits of a row alike
        vanishing=lambda n: n.replace("k_norm", "q_norm") if n.endswith("k_norm.bias") else None,
    )


@pytest.mark.parametrize("name", ["torch", pytest.param("original", marks=needs_original)])
@pytest.mark.parametrize("case", CASES)
def test_names_go_in_and_out_bit_by_bit(case, name):
    reference = random_reference(name, case)
    model = ours_of(SMALL | CASES[case])
    variables, state = variables_of(reference, model)
    back = tables.to_theirs(lightningdit_rules(model.patch_size), tables.flatten(variables))
    assert set(back) == set(state)
    for key, array in state.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)


def parameters(arch, **fields):
    """With the position table, which is a parameter of the original's."""
    model = LightningDiT(conditioner=ClassLabel(1000), **PRESETS[arch], **fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *blank_inputs(model))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_the_published_size():
    # "LightningDiT Parameters: 675.26M" in its authors' log
    assert parameters("LightningDiT-XL/1", latent_size=16, latent_channels=32) == 675_256_736


@needs_original
@pytest.mark.parametrize("arch", PRESETS)
def test_every_size_is_the_originals(arch):
    preset = PRESETS[arch]
    with torch.device("meta"):
        theirs = original_lightningdit(input_size=16, in_channels=32, **preset)
        count = sum(p.numel() for p in theirs.parameters())
    assert parameters(arch, latent_size=16, latent_channels=32) == count


def test_heads_that_cannot_be_rotated_are_named():
    model = ours_of(SMALL | CASES["published options"] | dict(hidden_size=40, num_heads=4))
    with pytest.raises(UserError, match=r"heads of width 10 .*config.backbone.rotary=False"):
        FAMILY.check(model, SECTION, "config.backbone")
    FAMILY.check(model.clone(rotary=False), SECTION, "config.backbone")
