"""DC-AE against diffusers' module."""

import copy

import jax
import jax.numpy as jnp
import kinks
import numpy as np
import parity
import pytest
import torch

from repae_jax.errors import UserError
from repae_jax.interop.dc_ae import dc_ae_config, export_dc_ae, load_dc_ae
from repae_jax.models.pixel_shuffle import shuffle, unshuffle
from repae_jax.models.tokenizers.base import variable_shapes
from repae_jax.models.tokenizers.dc_ae import AutoencoderDC
from repae_jax.models.tokenizers.dc_ae_layers import attend_linearly

CASES = {
    "SANA's layers": (
        dict(widths=(8, 8), encoder_layers=(1, 1), decoder_layers=(1, 1), attention_levels=(1,),
             scales=(5,), head_width=2, shuffle=False, latent_channels=4),
        (2, 16, 12),
    ),
    "no blocks at the first level": (
        dict(widths=(4, 8, 16), encoder_layers=(0, 1, 2), decoder_layers=(0, 2, 1),
             attention_levels=(2,), head_width=4, latent_channels=4),
        (2, 32, 32),
    ),
    "BatchNorm": (
        dict(widths=(8, 8, 16), encoder_layers=(1, 1, 1), decoder_layers=(1, 2, 1),
             attention_levels=(1, 2), batch_norm_levels=(0, 1), scales=(3,), head_width=8,
             latent_channels=8),
        (1, 32, 24),
    ),
    "fewer positions than channels of a head": (
        dict(widths=(8, 32), encoder_layers=(1, 1), decoder_layers=(1, 1), attention_levels=(1,),
             latent_channels=16),
        (2, 8, 8),
    ),
}  # fmt: skip


def make_reference(model, seed=0):
    """diffusers' module with the dimensions of ours, every weight and statistic random."""
    import diffusers
    from diffusers.models.normalization import RMSNorm

    reference = parity.randomise(diffusers.AutoencoderDC(**dc_ae_config(model)), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for module in reference.modules():
        if isinstance(module, RMSNorm):
            module.weight.data = 1.0 + 2 * module.weight.data
        if isinstance(module, torch.nn.BatchNorm2d):
            count = module.num_features
            module.running_mean.data = 0.2 * torch.randn(count, generator=generator)
            module.running_var.data = 0.5 + torch.rand(count, generator=generator)
    return reference.eval()


def safe_images(reference, size):
    """Images that keep every rectified value away from zero."""

    def distances_of(images):
        def distances(dtype):
            net = copy.deepcopy(reference).to(dtype)
            with kinks.recorded(net) as found:
                net.decode(net.encode(parity.to_nchw(images).to(dtype)).latent)
            return found

        return distances

    candidates = (parity.normal(*size, 3, seed=seed) for seed in range(100))
    return kinks.first_safe(candidates, distances_of)


def reconstruct(model, variables, images):
    """The latents and their reconstruction."""
    return model.apply(variables, images, method=lambda self, x: _both(self, x))


def _both(self, images):
    point = self.encode(images)
    return point.mean, self.decode(point.mean)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_diffusers(case):
    dimensions, size = CASES[case]
    model = AutoencoderDC(**dimensions)
    reference = make_reference(model)
    variables = load_dc_ae(parity.state_of(reference), model)
    images = safe_images(reference, size)

    leaf = parity.to_nchw(images).requires_grad_()
    z = reference.encode(leaf).latent
    expected = [z.permute(0, 2, 3, 1), reference.decode(z).sample.permute(0, 2, 3, 1)]
    by_params = parity.assert_outputs_equal(
        lambda params, images: reconstruct(model, {**variables, "params": params}, images),
        variables["params"], [images], expected, [leaf],
    )  # fmt: skip
    actual = export_dc_ae({**variables, "params": by_params}, model)
    gradients = parity.gradients_of(reference)
    parity.assert_tensors_close({name: actual[name] for name in gradients}, gradients)


def test_names_come_back_in_diffusers_order():
    model = AutoencoderDC(**CASES["BatchNorm"][0])
    reference = make_reference(model)
    state = parity.state_of(reference)
    back = export_dc_ae(load_dc_ae(state, model), model)
    assert list(back) == list(state)
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
        assert back[name].dtype == array.dtype
    reference.load_state_dict({n: torch.tensor(a) for n, a in back.items()}, strict=True)


def test_a_head_is_three_times_its_width_of_consecutive_channels():
    """Whoever takes the three projections as query, key and value computes something else."""
    qkv = parity.normal(1, 2, 3, 24, seed=0)
    ours = attend_linearly(qkv, 4)
    q, k, v = np.split(qkv, 3, axis=-1)  # of two heads each
    heads = [np.concatenate([part[..., 4 * h : 4 * h + 4] for part in (q, k, v)], -1)
             for h in range(2)]  # fmt: skip
    misread = attend_linearly(np.concatenate(heads, -1), 4)
    assert parity.relative_error(ours, misread) > 0.1


def test_a_rectified_query_of_zeros_gives_zeros_and_finite_gradients():
    qkv = np.abs(parity.normal(1, 1, 3, 6, seed=0))
    qkv[..., :2] *= -1  # the query
    out, gradient = jax.value_and_grad(lambda x: attend_linearly(x, 2).sum())(jnp.asarray(qkv))
    assert out == 0
    assert np.isfinite(gradient).all()


def test_shuffle_has_torchs_order_of_channels():
    x = parity.normal(2, 4, 6, 3, seed=0)
    expected = torch.nn.functional.pixel_unshuffle(parity.to_nchw(x), 2)
    np.testing.assert_array_equal(unshuffle(x), parity.to_nhwc(expected))
    np.testing.assert_array_equal(shuffle(unshuffle(x)), x)


def test_statistics_of_batch_norm_are_no_parameters():
    shapes = variable_shapes(AutoencoderDC(**CASES["BatchNorm"][0]))
    assert set(shapes) == {"params", "constants"}
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(shapes["constants"])}
    assert names == {"mean", "var"}


def test_products_are_in_dtype_and_results_in_float32():
    model = AutoencoderDC(**CASES["SANA's layers"][0], dtype=jnp.bfloat16)
    images, noise = jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 2, 2, 4))
    variables = jax.eval_shape(model.init, jax.random.key(0), images, noise)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    jaxpr = jax.make_jaxpr(model.apply)(variables, images, noise)
    assert {a.dtype for a in jaxpr.out_avals} == {jnp.dtype(jnp.float32)}
    products = [e for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    assert {v.aval.dtype for e in products for v in e.invars} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("policy", ["products", "blocks"])
def test_rematerialization_changes_no_result(policy):
    dimensions = CASES["no blocks at the first level"][0]
    model, other = AutoencoderDC(**dimensions), AutoencoderDC(**dimensions, remat=policy)
    images, noise = parity.normal(1, 8, 8, 3, seed=0), jnp.zeros((1, 2, 2, 4))
    variables = model.init(jax.random.key(0), images, noise)
    for one, two in zip(
        reconstruct(model, variables, images), reconstruct(other, variables, images), strict=True
    ):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)


def test_images_of_a_wrong_size_are_named():
    model = AutoencoderDC(**CASES["SANA's layers"][0])
    with pytest.raises(UserError, match="factor 2 does not divide"):
        jax.eval_shape(
            model.init, jax.random.key(0), jnp.zeros((1, 5, 4, 3)), jnp.zeros((1, 2, 2, 4))
        )
