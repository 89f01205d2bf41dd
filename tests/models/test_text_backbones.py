"""Backbones conditioned by text against torch, and against their originals where checked out."""

import jax
import jax.numpy as jnp
import numpy as np
import original_text
import parity
import pytest
import torch
import torch_text_backbones
from diffusers.models.embeddings import PatchEmbed

from repae_jax.errors import UserError
from repae_jax.interop import ddt, fuse_dit, mmdit
from repae_jax.interop.original import (
    ddt_part,
    export_part,
    fuse_dit_part,
    import_part,
    mmdit_part,
)
from repae_jax.models.backbones.base import blank_inputs
from repae_jax.models.backbones.families import BACKBONES
from repae_jax.models.conditioning.class_label import ClassLabel
from repae_jax.models.conditioning.text import EMBEDDINGS, Text
from repae_jax.models.projectors import MLP

FUSE_DIT = dict(
    size=8, channels=4, patch_size=2, hidden_size=64, depth=2, num_heads=4, kv_heads=2,
    head_width=16, mlp_width=96, text_length=5, text_width=24, encoder_depth=1,
)  # fmt: skip
MMDIT = dict(  # as its original sets them: 32 * depth wide, 16 x 16 tokens, text 768 wide
    size=32, channels=4, patch_size=2, hidden_size=96, depth=3, num_heads=3, text_length=4,
    text_width=768, encoder_depth=2, teacher_dims=(12, 20), projector_dim=24,
)  # fmt: skip
DDT = dict(
    input_size=4, patch_size=1, in_channels=8, hidden_size=[48, 64], depth=[2, 1],
    num_heads=[4, 2], time_tokens=2, text_length=6, text_width=24,
)  # fmt: skip
CASES = {
    "fuse-dit": ("fusedit", FUSE_DIT),
    "fuse-dit, heads narrower than tokens": (
        "fusedit", FUSE_DIT | dict(num_heads=6, head_width=8)
    ),
    "fuse-dit, patches of 1": ("fusedit", FUSE_DIT | dict(size=3, patch_size=1)),
    "MMDiT": ("mmdit", MMDIT),
    "DDT": ("ddt", DDT),
    "DDT, patches of 2": ("ddt", DDT | dict(input_size=8, patch_size=2, in_channels=3)),
}  # fmt: skip
EMBEDDING = {"fusedit": "gemma", "mmdit": "linear", "ddt": "rms_norm"}
PARTS = {"fusedit": fuse_dit_part, "mmdit": mmdit_part, "ddt": ddt_part}
BLOCKS = {"fusedit": "layers", "mmdit": "joint_blocks", "ddt": "blocks"}
DIMENSIONS = {
    "fusedit": fuse_dit.infer_dimensions,
    "mmdit": mmdit.infer_dimensions,
    "ddt": ddt.infer_dimensions,
}
TIME = np.array([0.0, 0.37, 1.0], np.float32)
BOTH = [(case, source) for case in CASES for source in ("torch", "original")]


def ours_of(family, config):
    fields = dict(
        conditioner=Text(config["text_length"], config["text_width"], EMBEDDING[family]),
        patch_size=config["patch_size"],
        encoder_depth=config.get("encoder_depth", 1),
    )
    if family == "ddt":
        (width, head_size), (depth, head_depth), (heads, head_heads) = (
            config[key] for key in ("hidden_size", "depth", "num_heads")
        )
        return BACKBONES[family].build(
            latent_size=config["input_size"], latent_channels=config["in_channels"],
            hidden_size=width, depth=depth, num_heads=heads, head_size=head_size,
            head_depth=head_depth, head_heads=head_heads, time_tokens=config["time_tokens"],
            **fields,
        )  # fmt: skip
    names = ("hidden_size", "depth", "num_heads", "kv_heads", "head_width", "mlp_width")
    sizes = {name: config[name] for name in (*names, "teacher_dims") if name in config}
    return BACKBONES[family].build(
        latent_size=config["size"], latent_channels=config["channels"],
        projector=MLP(config.get("projector_dim", 2048)), **sizes, **fields,
    )  # fmt: skip


def reference_of(case, source="torch"):
    """(family, configuration, torch's network with random weights, ours)."""
    family, config = CASES[case]
    if source == "original" and not original_text.CHECKOUTS[family]:
        pytest.skip(original_text.REASONS[family])
    make = (original_text.MAKE if source == "original" else torch_text_backbones.MODELS)[family]
    net = parity.randomise(make(**config)).eval()
    for part in net.modules():  # the scales of RMSNorm are none of torch's norms
        if type(part).__name__ == "RMSNorm":
            part.weight.data += 1.0
        elif type(part).__name__ in ("GemmaRMSNorm", "ZeroCenteredNorm"):
            part.weight.data *= 3.0
    if family == "ddt":
        net.t_embedder.W.data *= 3.0
        net.requires_grad_(True)
    if family == "mmdit" and source == "torch":
        net.pos_embed.copy_(torch.tensor(parity.normal(*net.pos_embed.shape, seed=9)))
    return family, config, net, ours_of(family, config)


def text_of(model, batch=3):
    """Tokens (B, L, C), and a mask: all valid, one in the middle left out, one or none valid."""
    spec = model.conditioner.spec()["tokens"]
    mask = np.ones((batch, spec.shape[0]), bool)
    mask[1, 1], mask[2, int(type(model).__name__ != "DDT") :] = False, False
    return parity.normal(batch, *spec.shape, seed=5), mask


def run(family, net, model, x, tokens, mask):
    """Velocity (B, c, h, w), tokens of the patches after the aligned block, and projections."""
    taken = []
    block = getattr(net, BLOCKS[family])[model.encoder_depth - 1]
    handle = block.register_forward_hook(lambda *call: taken.append(call[2]))
    time, mask = torch.tensor(TIME), torch.tensor(mask)
    if family == "fusedit":
        mask = mask if isinstance(net, torch_text_backbones.FuseDiT) else mask.long()
        outputs = [net(x, 1000.0 * time, tokens, mask), *taken]
    elif family == "mmdit":
        velocity, projections = net(x, time, context=tokens)
        outputs = [velocity, taken[0][1], *projections]
    else:
        outputs = [net(x, time, context=tokens, attn_mask=mask.float())]
        outputs.append(taken[0][:, : model.grid**2])
    handle.remove()
    return outputs


def compare(case, source):
    """Raise AssertionError unless outputs and all gradients agree with torch's."""
    family, _, net, model = reference_of(case, source)
    part = PARTS[family](model)
    variables = import_part(parity.state_of(net), part, source="it")
    side = model.latent_size
    x = parity.normal(3, side, side, model.latent_channels, seed=1)
    tokens, mask = text_of(model)
    leaves = [parity.to_nchw(x).requires_grad_(), torch.tensor(tokens).requires_grad_()]
    velocity, *others = run(family, net, model, *leaves, mask)
    expected = [velocity.permute(0, 2, 3, 1), *others]

    def outputs_of(params, x, tokens):
        condition = {"tokens": tokens, "mask": mask}
        out = model.apply({**variables, "params": params}, x, TIME, condition)
        return [out.prediction, out.tokens, *out.projections]

    by_params = parity.assert_outputs_equal(
        outputs_of, variables["params"], (x, tokens), expected, leaves
    )
    by_name = export_part(variables | {"params": by_params}, part, {})
    by_name = {name: array for name, array in by_name.items() if name in part.slots}
    parity.assert_tensors_close(by_name, parity.gradients_of(net))


@pytest.mark.parametrize(("case", "source"), BOTH)
def test_values_and_gradients_equal(case, source):
    compare(case, source)


@pytest.mark.parametrize(("case", "source"), BOTH)
def test_names_go_in_and_out_bit_by_bit(case, source):
    family, _, net, model = reference_of(case, source)
    parity.assert_names_come_back(PARTS[family](model), net)


@pytest.mark.parametrize("case", CASES)
def test_the_dimensions_follow_from_the_tensors(case):
    family, config, net, model = reference_of(case)
    state = parity.state_of(net)
    found = DIMENSIONS[family](state, source="it")
    assert found.pop("family", family) == family
    assert found.pop("text_width") == config["text_width"]
    if family == "ddt":
        assert found.pop("text_length") == config["text_length"]
        assert "text of 6 tokens of width 24" in ddt.text_of(state)
    assert found == {name: getattr(model, name) for name in found}
    assert {"depth", "num_heads", "patch_size", "hidden_size", "latent_channels"} <= set(found)


def test_the_last_modulation_of_fuse_dit_gives_the_scale_first():
    family, _, net, model = reference_of("fuse-dit")
    state = parity.state_of(net)
    swapped = {
        name: np.roll(state[name], len(state[name]) // 2, axis=0)
        for name in ("norm_out.linear.weight", "norm_out.linear.bias")
    }
    x, (tokens, mask) = parity.normal(3, 8, 8, 4, seed=1), text_of(model)
    expected = run(family, net, model, parity.to_nchw(x), torch.tensor(tokens), mask)[0]
    apply = parity.quick_jit(model.apply)
    for changed, fits in (({}, True), (swapped, False)):
        variables = import_part(state | changed, fuse_dit_part(model), source="it")
        out = apply(variables, x, TIME, {"tokens": tokens, "mask": mask})
        error = parity.relative_error(out.prediction, parity.to_nhwc(expected))
        assert error < 1e-4 if fits else error > 0.1


def initial(model):
    return parity.quick_jit(model.init)(jax.random.key(0), *blank_inputs(model))


def random_variables(model):
    variables = initial(model)
    leaves, structure = jax.tree.flatten(variables)
    return structure.unflatten(
        [parity.normal(*leaf.shape, seed=i) * 0.3 for i, leaf in enumerate(leaves)]
    )


@pytest.mark.parametrize("case", ["fuse-dit", "DDT", "DDT with a class token"])
def test_masked_tokens_change_nothing_and_others_do(case):
    of_class = (parity.normal(3, 12, seed=2),) if "class token" in case else ()
    model = ours_of(*CASES[case.removesuffix(" with a class token")])
    model = model.clone(class_token_dim=12) if of_class else model
    variables = random_variables(model)
    x = parity.normal(3, model.latent_size, model.latent_size, model.latent_channels, seed=1)
    tokens, mask = text_of(model)

    @parity.quick_jit
    def predict(variables, tokens):
        condition = {"tokens": tokens, "mask": mask}
        return model.apply(variables, x, TIME, condition, *of_class).prediction

    before = predict(variables, tokens)
    for i in range(mask.shape[1]):
        changed = tokens.copy()
        changed[:, i] += 1.0
        difference = np.abs(predict(variables, changed) - before).max((1, 2, 3))
        np.testing.assert_array_less(1e-4, difference[mask[:, i]])
        np.testing.assert_array_equal(difference[~mask[:, i]], 0.0)


def test_mmdit_reads_the_padding():
    model = ours_of("mmdit", MMDIT | dict(size=4, depth=2, text_width=8, teacher_dims=()))
    variables = random_variables(model)
    x, (tokens, mask) = parity.normal(3, 4, 4, 4, seed=1), text_of(model)

    @parity.quick_jit
    def predict(variables, tokens, mask):
        return model.apply(variables, x, TIME, {"tokens": tokens, "mask": mask}).prediction

    outputs = [
        predict(variables, tokens + np.float32(more), mask & valid)
        for more, valid in ((0.0, True), (0.0, False), (~mask[..., None], True))
    ]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert (np.abs(outputs[0] - outputs[2]).max((1, 2, 3)) > 1e-3).tolist() == [False, True, True]


@pytest.mark.parametrize("size", [32, 64])
def test_the_position_table_is_the_center_of_diffusers(size):
    model = ours_of("fusedit", FUSE_DIT | dict(size=size, channels=1, depth=1))
    constants = {"constants": initial(model)["constants"]}
    theirs = PatchEmbed(32, 32, 2, 1, 64, pos_embed_max_size=64)
    ours = constants["constants"]["position_table"]
    np.testing.assert_allclose(ours, theirs.pos_embed, rtol=0, atol=1e-6)
    ours = model.apply(constants, method="_positions")
    expected = theirs.cropped_pos_embed(size, size)[0]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("step", "low", "high"), [(0.0, 0.998, 1.0), (4.0, 0.7, 0.95)])
def test_a_small_grids_positions_may_lie_further_apart(step, low, high):
    model = ours_of("fusedit", FUSE_DIT | dict(size=8, channels=1, depth=1))
    model = model.clone(position_step=step)
    table = model.apply({"constants": initial(model)["constants"]}, method="_positions")
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    assert low < (unit @ unit.T)[0, 1] < high  # of two neighbors among 4 x 4


@pytest.mark.parametrize(
    ("family", "arch", "size", "channels", "text", "dims", "count"),
    [
        ("fusedit", "FuseDiT-3B/2", 32, 16, (256, 2048), (), 2_660_490_816),
        ("mmdit", "MMDiT-24/2", 32, 4, (77, 768), (768,), 512_415_504),
        ("ddt", "DDT-XL/1", 16, 32, (256, 1024), (), 611_408_436),
    ],
)
def test_the_published_sizes(family, arch, size, channels, text, dims, count):
    row = BACKBONES[family]
    preset = row.presets[arch]
    model = row.build(
        latent_size=size, latent_channels=channels, teacher_dims=dims,
        conditioner=Text(*text, EMBEDDING[family]), **preset,
    )  # fmt: skip
    row.check(model, {"family": family, "arch": arch}, "config.backbone")
    shapes = jax.eval_shape(model.init, jax.random.key(0), *blank_inputs(model))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count
    config = dict(text_length=text[0], text_width=text[1], **preset)
    if family == "ddt":
        config |= dict(
            input_size=size, in_channels=channels, hidden_size=[1152, 2048], depth=[28, 2],
            num_heads=[16, 16], time_tokens=4,
        )  # fmt: skip
    else:
        config |= dict(
            size=size, channels=channels, encoder_depth=8, teacher_dims=dims, projector_dim=2048
        )
    makes = [torch_text_backbones.MODELS[family]]
    makes += [original_text.MAKE[family]] if original_text.CHECKOUTS[family] else []
    for make in makes:
        with torch.device("meta"):
            assert sum(p.numel() for p in make(**config).parameters()) == count


def test_fuse_dit_starts_as_its_original():
    """Xavier on each linear layer by itself; modulations, output and the norms' scales at 0."""
    model = ours_of("fusedit", FUSE_DIT)
    params = initial(model)["params"]
    block = params["blocks_1"]
    for layer, shape in (("q", (64, 64)), ("text_k", (64, 32)), ("v", (64, 32))):
        kernel = block["attn"][layer]["kernel"]
        assert kernel.shape == shape
        assert 0.9 < np.abs(kernel).max() / (6 / sum(shape)) ** 0.5 <= 1.0
    assert 0.015 < params["text_embed"]["linear"]["kernel"].std() < 0.025
    assert 0.015 < params["time_embed"]["fc1"]["kernel"].std() < 0.025
    for zero in (block["modulation"], block["norm1"], params["final_layer"], params["text_embed"]):
        for name, leaf in zero.items():
            if name != "linear" or zero is params["final_layer"]:
                assert not any(a.any() for a in jax.tree.leaves(leaf))


def test_mmdit_starts_as_pytorch_does():
    """Uniform within 1 / sqrt(fan in), biases too, also where other backbones start at 0."""
    small = dict(size=4, hidden_size=64, num_heads=2, depth=2, text_width=24, teacher_dims=())
    params = initial(ours_of("mmdit", MMDIT | small))["params"]
    layers = {
        "patch_embed": 16, "time_embed/fc1": 256, "text_embed/linear": 24,
        "blocks_0/context/modulation": 64, "blocks_1/patches/mlp/fc2": 256,
        "final_layer/modulation": 64, "final_layer/linear": 64,
    }  # fmt: skip
    for path, fan_in in layers.items():
        layer = params
        for name in path.split("/"):
            layer = layer[name]
        assert 0.9 < np.abs(layer["kernel"]).max() * fan_in**0.5 <= 1.0, path
        assert 0.5 < np.abs(layer["bias"]).max() * fan_in**0.5 <= 1.0, path


def test_the_condition_of_text():
    text = Text(5, 24)
    shapes = {name: (leaf.shape, leaf.dtype.name) for name, leaf in text.spec().items()}
    assert shapes == {"tokens": ((5, 24), "float32"), "mask": ((5,), "bool")}
    assert text.null() is None
    with pytest.raises(UserError, match="a condition of text comes from captions"):
        text.from_labels(jnp.zeros(3, jnp.int32))
    with pytest.raises(UserError, match=f"'t5': use one of {', '.join(EMBEDDINGS)}"):
        Text(5, 24, "t5")


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("fusedit", dict(conditioner=ClassLabel(5)), "needs the tokens and mask of a condition"),
        ("fusedit", dict(position_step=-1.0), r"position_step is -1.0: give 0"),
        ("fusedit", dict(position_step=float("nan")), r"position_step is nan: give 0"),
        ("fusedit", dict(kv_heads=3), r"num_heads is 4: it must be divisible by the 3 heads of"),
        ("fusedit", dict(kv_heads=0), "kv_heads 0, head_width 16 and mlp_width 96: give 1 or more"),
        ("fusedit", dict(latent_size=130), "65 x 65 tokens, .* has 64 x 64: lower"),
        ("fusedit", dict(hidden_size=66), "hidden_size is 66: it must be divisible by 4"),
        ("fusedit", dict(latent_size=9), "patch size 2 does not divide the latent of 9 x 9"),
        ("fusedit", dict(encoder_depth=3), "encoder_depth is 3: it must lie between 1 and"),
        ("mmdit", dict(conditioner=ClassLabel(5)), "needs the tokens of a condition, but a Class"),
        ("mmdit", dict(num_heads=5), "hidden_size is 96: it must be divisible by the 5 heads"),
    ],
)
def test_sizes_that_do_not_fit_are_named(family, changes, message):
    model = ours_of(family, {"fusedit": FUSE_DIT, "mmdit": MMDIT}[family]).clone(**changes)
    row = BACKBONES[family]
    with pytest.raises(UserError, match=message):
        row.check(model, {"family": family, **row.options}, "config.backbone")
