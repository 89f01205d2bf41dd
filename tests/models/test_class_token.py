"""The class token that backbones denoise (REG), against torch and the authors' code."""

import jax
import numpy as np
import original_reg
import parity
import pytest
import torch
import torch_class_token
from original_ddt import CHECKOUTS, REASONS, original_ddt
from sits import sit_of

from repae_jax.errors import UserError
from repae_jax.interop import ddt as ddt_names
from repae_jax.interop import sit as sit_names
from repae_jax.interop.original import (
    ddt_part,
    export_part,
    import_part,
    lightningdit_part,
    sit_part,
)
from repae_jax.models.backbones.base import blank_inputs
from repae_jax.models.backbones.families import BACKBONES
from repae_jax.models.conditioning.class_label import ClassLabel
from repae_jax.models.projectors import Conv

DIM = 12
TIME = np.array([0.0, 0.37, 1.0], np.float32)
LABELS = np.array([4, 5, 1])
SIT = dict(
    latent_size=4, latent_channels=3, patch_size=2, hidden_size=32, depth=2, num_heads=4,
    num_classes=5, encoder_depth=1, teacher_dims=(DIM, 20), projector_dim=24, class_token_dim=DIM,
)  # fmt: skip
DDT = dict(
    input_size=4, patch_size=1, in_channels=8, hidden_size=[48, 64], depth=[2, 1],
    num_heads=[4, 2], num_classes=5, time_tokens=2, class_tokens=3,
)  # fmt: skip


def our_ddt():
    return BACKBONES["ddt"].build(
        latent_size=4, latent_channels=8, patch_size=1, hidden_size=48, depth=2, num_heads=4,
        head_size=64, head_depth=1, head_heads=2, encoder_depth=1, time_tokens=2, class_tokens=3,
        conditioner=ClassLabel(5), class_token_dim=DIM,
    )  # fmt: skip


def sit_reference(source):
    """(their SiT, ours, its part, `run` of theirs)."""
    if source == "original" and not original_reg.REG:
        pytest.skip(original_reg.REASON)
    make = original_reg.original_sit if source == "original" else torch_class_token.SiT
    net = parity.randomise(make(**SIT))
    net.pos_embed.requires_grad = False
    net.pos_embed.data[:, 0] = 0.0
    parity.shrink(net.cls_projectors2, 1e-3)  # so that the norm's epsilon shows
    model = sit_of(**SIT)
    run = original_reg.run if source == "original" else (lambda net, *inputs: net(*inputs))
    return net, model, sit_part(model, statistics=False), run


def ddt_reference(source):
    if source == "original" and not CHECKOUTS["ddt"]:
        pytest.skip(REASONS["ddt"])
    if source == "original":
        net = original_ddt("ddt", enable_reg=True, z_dim=DIM, **DDT)
    else:
        net = torch_class_token.DDT(class_token_dim=DIM, **DDT)
    parity.randomise(net)
    for part in net.modules():
        if type(part).__name__ == "RMSNorm":
            part.weight.data += 1.0
    net.t_embedder.W.data *= 3.0
    net.requires_grad_(True)
    parity.shrink(net.cls_in_proj_enc, 1e-3)
    model = our_ddt()

    def run(net, x, t, labels, token):
        return *net(x, t, context=labels, cls_t=token), ()

    return net, model, ddt_part(model), run


REFERENCES = {"sit": sit_reference, "ddt": ddt_reference}
BOTH = [(family, source) for family in REFERENCES for source in ("torch", "original")]


@pytest.mark.parametrize(("family", "source"), BOTH)
def test_values_and_gradients_equal(family, source):
    net, model, part, run = REFERENCES[family](source)
    variables = import_part(parity.state_of(net), part, source="it")
    x = parity.normal(3, model.latent_size, model.latent_size, model.latent_channels, seed=1)
    token = parity.normal(3, DIM, seed=2)
    leaves = [parity.to_nchw(x).requires_grad_(), torch.tensor(token).requires_grad_()]
    velocity, of_class, projections = run(
        net, leaves[0], torch.tensor(TIME), torch.tensor(LABELS), leaves[1]
    )
    # theirs have the class token in front
    projections = [torch.roll(tokens, -1, dims=1) for tokens in projections]
    expected = [velocity.permute(0, 2, 3, 1), of_class, *projections]

    def outputs_of(params, x, token):
        out = model.apply({**variables, "params": params}, x, TIME, {"label": LABELS}, token)
        return [out.prediction, out.extra["class_token"], *out.projections]

    by_params = parity.assert_outputs_equal(
        outputs_of, variables["params"], (x, token), expected, leaves
    )
    by_name = export_part({"params": by_params}, part, {})
    by_name = {name: array for name, array in by_name.items() if "rope" not in name}
    parity.assert_tensors_close(by_name, parity.gradients_of(net))


@pytest.mark.parametrize(("family", "source"), BOTH)
def test_names_go_in_and_out_bit_by_bit(family, source):
    net, _, part, _ = REFERENCES[family](source)
    parity.assert_names_come_back(part, net)


def test_the_dimensions_follow_from_the_tensors():
    net, model, *_ = sit_reference("torch")
    found = sit_names.infer_dimensions(parity.state_of(net), source="it", num_heads=4)
    assert (found["class_token_dim"], found["latent_size"]) == (DIM, 4)
    net, model, *_ = ddt_reference("torch")
    found = ddt_names.infer_dimensions(parity.state_of(net), source="it")
    assert found["class_token_dim"] == DIM
    assert all(found[name] == getattr(model, name) for name in ("latent_size", "depth"))


def test_a_position_of_the_class_token_is_refused():
    net, _, part, _ = sit_reference("torch")
    net.pos_embed.data[0, 0, 3] = 0.1
    with pytest.raises(UserError, match="first row of 'pos_embed'"):
        import_part(parity.state_of(net), part, source="it")


@pytest.mark.parametrize("family", ["sit", "lightningdit", "ddt"])
def test_project_and_hidden_see_the_class_token(family):
    sizes = dict(hidden_size=16, depth=2, num_heads=2, patch_size=1, encoder_depth=1)
    if family == "ddt":
        sizes |= dict(head_size=16, head_depth=1, head_heads=2)
    model = BACKBONES[family].build(
        latent_size=2, latent_channels=3, teacher_dims=(DIM,), conditioner=ClassLabel(5),
        class_token_dim=DIM, **sizes,
    )  # fmt: skip
    variables = parity.quick_jit(model.init)(jax.random.key(0), *blank_inputs(model))
    leaves, structure = jax.tree.flatten(variables)
    noise = [parity.normal(*leaf.shape, seed=i) * 0.3 for i, leaf in enumerate(leaves)]
    variables = structure.unflatten(noise)
    x = parity.normal(3, 2, 2, 3, seed=1)
    token, other = parity.normal(2, 3, DIM, seed=2)

    def apply(token, method=None):
        return model.apply(variables, x, TIME, {"label": LABELS}, token, method=method)

    output = apply(token)
    assert output.tokens.shape == (3, 5, 16)  # four patches and the class token
    assert output.projections[0].shape == (3, 5, DIM)
    np.testing.assert_allclose(apply(token, "project")[0], output.projections[0], atol=1e-6)
    hidden = apply(token, "hidden")
    np.testing.assert_allclose(hidden[0], output.tokens[:, :4].mean(1), atol=1e-6)
    assert np.abs(apply(other).prediction - output.prediction).max() > 1e-3
    assert np.abs(apply(other, "project")[0] - output.projections[0]).max() > 1e-3
    assert np.abs(apply(other, "hidden")[1] - hidden[1]).max() > 1e-3


def test_lightningdit_turns_the_velocity_of_the_class_token_as_well():
    """Its network has the other direction of time: both of its velocities change their sign."""
    fields = dict(
        latent_size=2, latent_channels=3, patch_size=1, hidden_size=16, depth=2, num_heads=2,
        encoder_depth=1, conditioner=ClassLabel(5), class_token_dim=DIM,
    )  # fmt: skip
    options = dict(rotary=False, swiglu=False, rms_norm=False)
    turned = BACKBONES["lightningdit"].build(**fields, **options)
    plain = BACKBONES["sit"].build(**fields)
    variables = parity.quick_jit(plain.init)(jax.random.key(0), *blank_inputs(plain))
    leaves, structure = jax.tree.flatten(variables)
    noise = [parity.normal(*leaf.shape, seed=i) * 0.3 for i, leaf in enumerate(leaves)]
    variables = structure.unflatten(noise)
    x, token = parity.normal(3, 2, 2, 3, seed=1), parity.normal(3, DIM, seed=2)
    ours = turned.apply(variables, x, TIME, {"label": LABELS}, token)
    theirs = plain.apply(variables, x, 1 - TIME, {"label": LABELS}, token)
    np.testing.assert_allclose(ours.prediction, -theirs.prediction, atol=1e-5)
    np.testing.assert_allclose(ours.extra["class_token"], -theirs.extra["class_token"], atol=1e-5)


def test_lightningdits_files_have_no_place_for_it():
    model = BACKBONES["lightningdit"].build(
        latent_size=2, latent_channels=3, patch_size=1, hidden_size=16, depth=2, num_heads=2,
        encoder_depth=1, conditioner=ClassLabel(5), class_token_dim=DIM,
    )  # fmt: skip
    with pytest.raises(UserError, match="class_token_dim is 12, but LightningDiT's files"):
        lightningdit_part(model)


def test_a_convolutional_head_has_no_place_for_it():
    model = sit_of(**SIT).clone(projector=Conv(3))
    with pytest.raises(UserError, match="class_token_dim is 12, but a class token has no place"):
        BACKBONES["sit"].check(model, {"family": "sit"}, "config.backbone")
