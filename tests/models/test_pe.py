"""PE as a teacher: timm's module, and its authors' code and names."""

import jax
import jax.numpy as jnp
import numpy as np
import original_pe
import pytest
import torch
from exported import export_vit
from original_pe import NEEDS_ORIGINAL
from parity import assert_close, normal, quick_jit, randomise, relative_error, state_of, to_nchw
from parity import to_nhwc as nhwc
from pe_files import (
    DEPTH,
    DIM,
    GRID,
    HEADS,
    KINDS,
    PATCH,
    POOLED,
    pe_tensors,
    small_pe,
    timm_full_size,
    timm_tokens,
)  # fmt: skip

from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.vit import load_vit
from repae_jax.models.encoders import vit as vit_module
from repae_jax.models.encoders.vit import create_vit
from repae_jax.models.rotary import pair_turns

pytest.importorskip("timm")

GRIDS = [(GRID, GRID), (6, 3)]


def images(grid):
    return normal(2, grid[0] * PATCH, grid[1] * PATCH, 3, seed=0)


def leaves_of(tensors):
    return {name: torch.tensor(array, requires_grad=True) for name, array in tensors.items()}


def assert_values_and_gradients(model, tensors, x, expected, x_torch, gradient_of):
    """Tokens, and the gradients of a random weighting of them by the images and all parameters.

    Args:
      model: ours.
      tensors: the content of a file.
      x: images (B, H, W, 3).
      expected: torch's (patch tokens, class token or None).
      x_torch: the leaf that they come from.
      gradient_of: the file's tensors -> their gradients after the backward pass.
    """
    expected = [part for part in expected if part is not None]
    weights = [normal(*part.shape, seed=2 + i) for i, part in enumerate(expected)]
    sum((e * torch.tensor(w)).sum() for e, w in zip(expected, weights, strict=True)).backward()

    def weighted(params, x):
        tokens = [part for part in model.apply({"params": params}, x) if part is not None]
        return sum((t * w).sum() for t, w in zip(tokens, weights, strict=True)), tokens

    variables = load_vit(tensors, model)
    gradient = quick_jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))
    (by_params, by_x), tokens = gradient(variables["params"], x)
    for ours, theirs in zip(tokens, expected, strict=True):
        assert_close(ours, theirs, "tokens")
    assert_close(by_x, nhwc(x_torch.grad), "gradient by the images")
    theirs = load_vit(gradient_of(tensors), model)["params"]
    actual, wanted = tables.flatten(by_params), tables.flatten(theirs)
    assert set(actual) == set(wanted)
    for path, value in wanted.items():
        _assert_gradient(path, actual[path], value)


def _assert_gradient(path, actual, expected):
    if not path.endswith("qkv/bias"):
        return assert_close(actual, expected, path)
    # the key's part nearly vanishes: only what the rotation leaves of it counts
    for ours, theirs in zip(np.split(actual, 3), np.split(expected, 3), strict=True):
        error = np.abs(ours - theirs).max()
        assert error <= 1e-4 * np.abs(expected).max(), (path, error)
    return None


@pytest.mark.parametrize("grid", GRIDS, ids=["native", "resampled"])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_equal_timm(kind, grid):
    tensors, x = pe_tensors(kind), images(grid)
    leaves, x_torch = leaves_of(tensors), to_nchw(x).requires_grad_()
    expected = timm_tokens(kind, leaves, x_torch, grid)
    assert_values_and_gradients(
        small_pe(kind), tensors, x, expected, x_torch,
        lambda tensors: {
            name: np.zeros_like(array) if leaves[name].grad is None else leaves[name].grad.numpy()
            for name, array in tensors.items()
        },
    )  # fmt: skip


def test_every_detail_shows():
    """What a reimplementation may do otherwise changes the tokens by more than the tolerance."""
    kind, grid = "lang", (6, 3)
    tensors, x = pe_tensors(kind), images(grid)
    with torch.no_grad():
        expected, class_token = timm_tokens(kind, leaves_of(tensors), to_nchw(x), grid)
    model = small_pe(kind)
    variables = load_vit(tensors, model)

    def errors(model):
        tokens = quick_jit(model.apply)(variables, x)
        return (
            relative_error(tokens.patch_tokens, expected),
            relative_error(tokens.class_token, class_token),
        )

    assert max(errors(model)) < 1e-5
    assert max(errors(model.clone(scan=True))) < 1e-5
    for changes in (
        dict(table_filter="bicubic"), dict(table_filter="antialias"), dict(norm_epsilon=1e-6),
        dict(activation="tanh_gelu"), dict(rope=""), dict(num_heads=6),
    ):  # fmt: skip
        assert min(errors(model.clone(**changes))) > 1e-4, changes
    for name, turns in {
        "the class token on a patch's place": lambda r, c, w, first: pair_turns(r, c, w, 0),
        "rows before columns": lambda r, c, w, first: np.roll(
            pair_turns(r, c, w, first), w // 4, axis=1
        ),
    }.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vit_module, "pair_turns", turns)
            assert min(errors(model)) > 1e-4, name


def test_the_tokens_are_those_before_the_final_norm():
    tensors, x = pe_tensors("core"), images((GRID, GRID))
    model = small_pe("core")
    normed = load_vit(tensors, model.clone(final_norm=True))["params"]["norm"]
    np.testing.assert_array_equal(normed["scale"], tensors["visual.ln_post.weight"])
    tokens = model.apply(load_vit(tensors, model), x).patch_tokens
    assert np.abs(np.asarray(tokens).mean(-1)).max() > 0.05  # a norm would leave its bias only


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entry", [None, "weights", "state_dict"])
def test_files_in_every_wrapping(kind, entry):
    tensors, model = pe_tensors(kind), small_pe(kind)
    expected = tables.flatten(load_vit(tensors, model))
    wrapped = {f"module.{name}": array for name, array in tensors.items()}
    for content in (tensors, wrapped):
        content = content if entry is None else {entry: content}
        actual = tables.flatten(load_vit(content, model))
        assert set(actual) == set(expected)
        for path, array in expected.items():
            np.testing.assert_array_equal(actual[path], array, err_msg=path)


def test_an_image_tower_alone_is_read():
    tensors, model = pe_tensors("core"), small_pe("core")
    alone = {n.removeprefix("visual."): a for n, a in tensors.items() if n.startswith("visual.")}
    actual, expected = (tables.flatten(load_vit(t, model)) for t in (alone, tensors))
    for path, array in expected.items():
        np.testing.assert_array_equal(actual[path], array, err_msg=path)


@pytest.mark.parametrize("kind", KINDS)
def test_timms_names(kind):
    """A file of timm's, pooling and final norm included, and back."""
    from timm.models import eva

    tensors, model = pe_tensors(kind), small_pe(kind)
    leaves = {name: torch.tensor(array) for name, array in tensors.items()}
    named = eva._convert_pe(leaves, None, prefix="visual." if kind == "core" else "")
    named = {name: tensor.numpy() for name, tensor in named.items()}
    variables = load_vit(named, model)
    jax.tree.map(np.testing.assert_array_equal, variables, load_vit(tensors, model))
    again = export_vit(variables, model, "timm", marked=False)
    kept = {n: a for n, a in named.items() if not n.startswith(("attn_pool.", "norm.", "head."))}
    assert set(again) == set(kept)
    for name, array in kept.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


def test_another_vit_of_timm_with_a_norm_before_the_blocks_is_refused():
    """timm's CLIP: its last norm tells it from Lang and Spatial, and Core has the pooling."""
    import timm

    clip = timm.create_model(
        "vit_base_patch16_clip_224", img_size=16, patch_size=PATCH, embed_dim=DIM, depth=DEPTH,
        num_heads=HEADS,
    )  # fmt: skip
    tensors = {name: array.numpy() for name, array in clip.state_dict().items()}
    for kind in ("core", "lang", "spatial"):
        with pytest.raises(UserError, match="^F: "):
            load_vit(tensors, small_pe(kind), "F")


def test_clips_file_of_the_same_names_and_shapes_is_refused():
    tensors = pe_tensors("core")
    clip = {name: array for name, array in tensors.items() if "attn_pool" not in name}
    with pytest.raises(UserError, match=r"^F: the weights of CLIP, but the model is PE's"):
        load_vit(clip, small_pe("core"), "F")
    with pytest.raises(UserError, match=r"^F: the weights of PE, but the model is CLIP's"):
        load_vit(tensors, create_vit("clip-l", dim=DIM, depth=DEPTH), "F")


def test_missing_and_unexpected_tensors_are_named():
    tensors, model = pe_tensors("lang"), small_pe("lang")
    name = "transformer.resblocks.1.ls_2.gamma"
    without = {n: a for n, a in tensors.items() if n != name}
    with pytest.raises(UserError, match=rf"^F: tensor '{name}' is missing$"):
        load_vit(without, model, "F")
    with pytest.raises(UserError, match="^F: unexpected tensor 'transformer.resblocks.0.ls_1"):
        load_vit(tensors, small_pe("spatial"), "F")


SIZES = {
    "pe-core-t": ("core_tiny_patch16_384", "PE-Core-T16-384"),
    "pe-core-s": ("core_small_patch16_384", "PE-Core-S16-384"),
    "pe-core-b": ("core_base_patch16_224", "PE-Core-B16-224"),
    "pe-core-l": ("core_large_patch14_336", "PE-Core-L14-336"),
    "pe-core-g": ("core_gigantic_patch14_448", "PE-Core-G14-448"),
    "pe-spatial-t": ("spatial_tiny_patch16_512", "PE-Spatial-T16-512"),
    "pe-spatial-s": ("spatial_small_patch16_512", "PE-Spatial-S16-512"),
    "pe-spatial-b": ("spatial_base_patch16_512", "PE-Spatial-B16-512"),
    "pe-spatial-l": ("spatial_large_patch14_448", "PE-Spatial-L14-448"),
    "pe-spatial-g": ("spatial_gigantic_patch14_448", "PE-Spatial-G14-448"),
    "pe-lang-l": ("lang_large_patch14_448", "PE-Lang-L14-448"),
    "pe-lang-g": ("lang_gigantic_patch14_448", "PE-Lang-G14-448"),
}


def exported_shapes(name, naming="authors"):
    """Our preset's tensors under a naming's names, without prefix and mark."""
    model = create_vit(name)
    x = jnp.zeros((1, model.patch_size, model.patch_size, 3))
    shapes = tables.flatten(jax.eval_shape(model.init, jax.random.key(0), x))
    blank = {path: np.broadcast_to(np.float32(0), s.shape) for path, s in shapes.items()}
    marked = naming == "authors" and "core" in name
    tensors = export_vit(tables.unflatten(blank), model, naming, marked=marked)
    named = {n.removeprefix("visual."): a.shape for n, a in tensors.items()}
    named.pop("attn_pool.probe", None)
    return named


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_equal_timms(name):
    from timm.models import eva

    module = timm_full_size(SIZES[name][0])
    with torch.device("meta"):
        ours = {n: torch.empty(s) for n, s in exported_shapes(name).items()}
    converted = {n: tuple(t.shape) for n, t in eva._convert_pe(ours, module, prefix="").items()}
    theirs = {n: tuple(p.shape) for n, p in module.named_parameters()}
    assert converted == {
        n: s for n, s in theirs.items() if not n.startswith(("attn_pool.", "norm.", "head."))
    }
    model = create_vit(name)
    assert set(exported_shapes(name, "timm")) == set(converted)
    assert (model.num_heads, model.norm_epsilon) == (
        module.blocks[0].attn.num_heads, module.blocks[0].norm1.eps
    )  # fmt: skip
    assert (model.native_grid,) * 2 == module.patch_embed.grid_size
    assert model.grid(256) == 16


@NEEDS_ORIGINAL
@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_equal_the_originals(name):
    module = original_pe.full_size(SIZES[name][1])
    theirs = {n: tuple(p.shape) for n, p in module.named_parameters()}
    assert exported_shapes(name) == {
        n: s for n, s in theirs.items() if not n.startswith(("attn_pool.", "ln_post.", "proj"))
    }
    assert create_vit(name).num_heads == module.heads


@NEEDS_ORIGINAL
def test_every_published_tower_has_a_preset():
    names = {n.removesuffix("-Tiling") for n in original_pe.published_names()}
    assert names == {published for _, published in SIZES.values()}


@NEEDS_ORIGINAL
@pytest.mark.parametrize("grid", GRIDS, ids=["native", "resampled"])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_equal_the_original(kind, grid):
    published = SIZES[KINDS[kind][0]][1]
    sizes = dict(patch_size=PATCH, width=DIM, layers=DEPTH, heads=HEADS, image_size=PATCH * GRID)
    if kind == "core":
        sizes |= dict(attn_pooler_heads=2, output_dim=POOLED)
    torch.manual_seed(0)
    module, tower = original_pe.small_tower(published, text=kind == "core", **sizes)
    randomise(module)
    for name, parameter in tower.named_parameters():
        if name in ("conv1.weight", "class_embedding", "positional_embedding"):
            parameter.data.normal_(0.0, 0.02)
    x = images(grid)
    x_torch = to_nchw(x).requires_grad_()
    out = tower.forward_features(x_torch)  # the call of iREPA: before the final norm
    expected = (out, None) if kind == "giant" else (out[:, 1:], out[:, 0])
    assert_values_and_gradients(
        small_pe(kind), state_of(module), x, expected, x_torch,
        lambda tensors: {
            n: np.zeros_like(tensors[n]) if p.grad is None else p.grad.numpy()
            for n, p in module.named_parameters()
        },
    )  # fmt: skip
