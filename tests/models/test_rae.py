"""RAE against diffusers' and transformers' modules."""

import diffusers_rae
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
import transformers

from repae_jax.errors import UserError
from repae_jax.interop.rae import export_rae, load_rae
from repae_jax.interop.vit import load_vit
from repae_jax.models.tokenizers.base import decode, encode, variable_shapes
from repae_jax.models.tokenizers.rae import RAE, RAE_CONFIGS

SIDE = 16  # four latents of factor 4


def images_of(side=SIDE, count=2):
    return np.tanh(parity.normal(count, side, side, 3, seed=0))


def both(model, variables, images):
    """The latents and their reconstruction."""

    def apply(module, images):
        point = module.encode(images)
        return point.mean, module.decode(point.mean)

    return model.apply(variables, images, method=apply)


@pytest.mark.parametrize("kind", diffusers_rae.PATCHES)
def test_values_and_gradients_equal_diffusers(kind):
    net = diffusers_rae.make_rae(kind)
    model = diffusers_rae.module_of(net)
    variables = load_rae(parity.state_of(net), model)
    images = images_of()

    leaf = parity.to_nchw(images).requires_grad_()
    z = net.encode((leaf + 1) / 2).latent * (1 + 1e-5)  # of unit statistics
    decoded = 2 * net.decode(z / (1 + 1e-5)).sample - 1
    expected = [z.permute(0, 2, 3, 1), decoded.permute(0, 2, 3, 1)]
    by_params = parity.assert_outputs_equal(
        lambda params, images: both(model, {**variables, "params": params}, images),
        variables["params"], [images], expected, [leaf],
    )  # fmt: skip
    actual = export_rae({**variables, "params": by_params}, model)
    gradients = {
        f"decoder.{name}": gradient for name, gradient in parity.gradients_of(net.decoder).items()
    }

    def vanishing(name):  # a softmax does not change with the bias of all keys
        return name.replace("to_k", "to_q") if name.endswith("to_k.bias") else None

    parity.assert_tensors_close(
        {name: actual[name] for name in gradients}, gradients, vanishing=vanishing
    )


def test_the_decoder_has_the_authors_positions_and_those_of_diffusers():
    """Only for 16 x 16 latents both are the same."""
    for grid, alike in ((16, True), (4, False)):
        net = diffusers_rae.make_rae(grid=grid, depth=1)
        z = parity.normal(1, grid, grid, diffusers_rae.WIDTH, seed=0)
        with torch.no_grad():
            expected = parity.to_nhwc(2 * net.decode(parity.to_nchw(z) / (1 + 1e-5)).sample - 1)
        variables = load_rae(parity.state_of(net), diffusers_rae.module_of(net))
        for step, equal in ((16 / grid, True), (1.0, alike)):
            model = diffusers_rae.module_of(net, position_step=step)
            error = parity.relative_error(decode(model, variables, z), expected)
            assert (error < 1e-4) == equal, (grid, step, error)


def test_rows_are_not_columns():
    """The positions, the patches and the resizing keep rows and columns apart."""
    net = diffusers_rae.make_rae()
    model = diffusers_rae.module_of(net, position_step=1.0)
    variables = load_rae(parity.state_of(net), model)
    images = images_of()[:, :8]
    z = encode(model, variables, images).mean
    assert z.shape == (2, 2, 4, diffusers_rae.WIDTH)
    pixels = torch.nn.functional.interpolate(
        (parity.to_nchw(images) + 1) / 2, size=(28, 56), mode="bicubic", align_corners=False
    )
    with torch.no_grad():
        tokens = net.encoder((pixels - net.encoder_mean) / net.encoder_std).last_hidden_state
    parity.assert_close(z.reshape(2, 8, -1), tokens[:, 5:], "latents")
    decoded = decode(model, variables, z)
    assert decoded.shape == images.shape
    # the same latents at the same places of a square, of which the rest does not matter
    whole = net.decoder.decoder_pos_embed
    square = diffusers_rae.module_of(net, position_step=1.0).bind(variables).decoder
    table = square._positions(4, 4)
    np.testing.assert_array_equal(square._positions(2, 4), table[:2])
    assert whole.shape == (1, 17, 32)


def test_the_encoder_is_transformers_with_a_norm_without_scale_and_bias():
    """The published encoders have both, and RAE removes them."""
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, image_size=518, patch_size=14
    )
    peer = parity.randomise(transformers.Dinov2WithRegistersModel(config), seed=0).eval()
    model = diffusers_rae.module_of(diffusers_rae.make_rae())
    images = parity.normal(2, 28, 42, 3, seed=0)
    with torch.no_grad():
        scaled = peer(parity.to_nchw(images)).last_hidden_state[:, 5:]
        state = parity.state_of(peer)
        peer.layernorm.weight = peer.layernorm.bias = None
        expected = peer(parity.to_nchw(images)).last_hidden_state[:, 5:]
    params = load_vit(state, model.vit)
    assert "norm" not in params["params"]
    tokens = model.vit.apply(params, images).patch_tokens
    parity.assert_close(tokens, expected, "tokens")
    assert parity.relative_error(tokens, scaled) > 0.01
    np.testing.assert_allclose(tokens.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(tokens.var(-1), 1, atol=1e-4)


def test_only_the_decoder_has_parameters():
    model = diffusers_rae.module_of(diffusers_rae.make_rae())
    shapes = variable_shapes(model)
    assert set(shapes) == {"params", "constants"}
    assert set(shapes["params"]) == {"decoder"}
    assert set(shapes["constants"]) == {"encoder"}
    point, decoded = jax.eval_shape(
        model.apply, shapes, jnp.zeros((2, 8, 12, 3)), jnp.zeros((2, 2, 3, 64))
    )
    assert point.mean.shape == (2, 2, 3, 64)
    assert decoded.shape == (2, 8, 12, 3)


def test_products_are_in_dtype_and_results_in_float32():
    model = diffusers_rae.module_of(diffusers_rae.make_rae()).clone(dtype=jnp.bfloat16)
    images, noise = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 2, 2, 64))
    variables = jax.eval_shape(model.init, jax.random.key(0), images, noise)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    jaxpr = jax.make_jaxpr(model.apply)(variables, images, noise)
    assert {a.dtype for a in jaxpr.out_avals} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("policy", ["products", "blocks"])
def test_rematerialization_changes_no_result(policy):
    net = diffusers_rae.make_rae(depth=1)
    model = diffusers_rae.module_of(net)
    variables = load_rae(parity.state_of(net), model)
    images = images_of(8)
    for one, two in zip(
        both(model, variables, images), both(model.clone(remat=policy), variables, images),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in RAE_CONFIGS if n.startswith("rae-")])
def test_published_sizes_are_those_of_diffusers(name):
    """Names and shapes of every tensor, without allocating one."""
    model = RAE(**RAE_CONFIGS[name])
    with torch.device("meta"):
        reference = diffusers_rae.published(model)
    expected = {n: tuple(a.shape) for n, a in reference.state_dict().items() if "latents" not in n}
    shapes = variable_shapes(model)
    blank = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes)
    assert {n: a.shape for n, a in export_rae(blank, model).items()} == expected


def test_images_of_a_wrong_size_are_named():
    model = diffusers_rae.module_of(diffusers_rae.make_rae())
    with pytest.raises(UserError, match="factor 4 does not divide"):
        jax.eval_shape(
            model.init, jax.random.key(0), jnp.zeros((1, 6, 4, 3)), jnp.zeros((1, 1, 1, 64))
        )
