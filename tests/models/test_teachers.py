from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
import torch
import torch_vits
from original_teachers import (
    DEPTH,
    DIM,
    HEADS,
    MOCO_DEPTH,
    NEEDS_ORIGINAL,
    file_of,
    original_tokens,
)
from parity import assert_close, quick_jit, state_of, to_nhwc
from torch_vits import openai_names, timm_reference

from repae_jax.config import teacher
from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.interop.files import write_torch
from repae_jax.interop.vit import load_vit
from repae_jax.models.encoders.base import patch_tokens
from repae_jax.models.encoders.families import ENCODERS
from repae_jax.models.encoders.preprocessing import TEACHER_KINDS, preprocess
from repae_jax.models.encoders.vit import VIT_CONFIGS, ViT, create_vit
from repae_jax.models.family import Family
from repae_jax.objectives.objective import Objective
from repae_jax.runs.build import build_models, latent_shape
from repae_jax.runs.weights import load_teacher
from repae_jax.training.forward import make_shared_forward
from repae_jax.training.noise import sample_draws

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
HALVES = ([0.5] * 3, [0.5] * 3)
SCALES = {"clip": CLIP, "pe": HALVES, "vavae": HALVES}


def images(*size):
    return np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)


def in_torch(pixels, kind, dtype=torch.float32):
    """The preprocessing by torch: (B, C, H, W)."""
    x = torch.tensor(pixels, dtype=dtype).permute(0, 3, 1, 2) / 255.0
    mean, std = (torch.tensor(v, dtype=dtype)[:, None, None] for v in SCALES.get(kind, IMAGENET))
    size = x.shape[-1] * 14 // 16
    if kind in ("pe", "vavae"):
        x = torch.nn.functional.interpolate(x, size, mode="bilinear")
    if kind == "clip":
        x = torch.nn.functional.interpolate(x, size, mode="bicubic")
    x = (x - mean) / std
    return torch.nn.functional.interpolate(x, size, mode="bicubic") if kind == "dinov2" else x


@pytest.mark.parametrize("kind", ["dinov2", "clip", "pe", "vavae"])
@pytest.mark.parametrize(
    ("size", "expected_size"), [(256, 224), (512, 448), (320, 280), (384, 336), (48, 42)]
)
def test_resizing_kinds_equal_torch(kind, size, expected_size):
    pixels = images(size, size)
    actual = np.asarray(preprocess(pixels, kind))
    assert actual.shape == (1, expected_size, expected_size, 3)
    # torch in float32 rounds the positions of the samples: 4e-5 of a weight at 512 pixels
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 3e-6)):
        expected = to_nhwc(in_torch(pixels, kind, dtype))
        assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["dinov2", "clip", "pe", "vavae"])
@pytest.mark.parametrize(("size", "token_pixels"), [(512, 32), (96, 24)])
def test_wider_tokens_are_resized_with_antialias_as_torch_does(kind, size, token_pixels):
    pixels = images(size, size)
    mean, std = SCALES.get(kind, IMAGENET)
    x = torch.tensor(pixels.transpose(0, 3, 1, 2) / 255.0)
    side = size * 14 // token_pixels
    mode = "bilinear" if kind in ("pe", "vavae") else "bicubic"
    x = torch.nn.functional.interpolate(x, side, mode=mode, antialias=True)
    expected = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    actual = preprocess(pixels, kind, token_pixels)
    assert_close(actual, to_nhwc(expected), "pixels", 1e-5)


def test_token_pixels_belong_to_kinds_that_resize():
    config = tiny.get_config()
    config.teachers.small.token_pixels = 32
    with pytest.raises(UserError, match="small.token_pixels is 32, but 'native' does not resize"):
        validate(config)
    assert ViT(**VIT_CONFIGS["dinov2-b"], token_pixels=32).grid(512) == 16


def test_imagenet_normalises_only():
    pixels = images(48, 32)
    expected = to_nhwc(in_torch(pixels, "imagenet"))
    assert_close(preprocess(pixels, "imagenet"), expected, "pixels", 1e-6)


def test_native_scales_to_minus_one_to_one():
    pixels = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    actual = preprocess(pixels, "native")
    np.testing.assert_allclose(np.ravel(actual), [-1.0, -0.6, 1.0], atol=1e-6)


@pytest.mark.parametrize("kind", ["dinov2", "clip", "pe", "vavae"])
@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((256, 512), "square images, got 256 x 512"),
        ((300, 300), "multiples of 16 pixels, got 300: use 288 or 304, or a preprocessing that"),
        ((8, 8), "multiples of 16 pixels, got 8: use 16, or"),
    ],
)
def test_resizing_kinds_name_the_sizes_that_work(kind, size, message):
    with pytest.raises(UserError, match=f"the {kind} teacher takes .*{message}"):
        preprocess(images(*size), kind)


def test_other_shapes_are_refused():
    for shape in ((16, 16, 3), (1, 3, 16, 16)):
        with pytest.raises(ValueError, match=r"RGB images \(B, H, W, 3\), got"):
            preprocess(np.zeros(shape, np.uint8), "dinov2")


def test_unknown_kind_lists_the_known_ones():
    with pytest.raises(UserError, match=r"'siglip'.*dinov2, clip, pe, vavae, imagenet, native"):
        preprocess(images(8, 8), "siglip")


def test_floats_are_refused():
    with pytest.raises(ValueError, match=r"uint8.*float32"):
        preprocess(images(8, 8).astype(np.float32), "native")


def test_presets_bring_their_preprocessing_and_keys_override_it():
    assert teacher("clip-l").preprocessing == "clip"
    assert teacher("mocov3-b").preprocessing == "imagenet"
    assert teacher("pe-core-l").preprocessing == "pe"
    assert teacher("pe-core-b").preprocessing == "native"
    assert teacher("ijepa-h").preprocessing == "dinov2"
    assert teacher("dinov2-b-reg").preprocessing == "dinov2"
    assert teacher("clip-l", preprocessing="native").preprocessing == "native"
    assert teacher().preprocessing == "dinov2"
    assert {create_vit(name).preprocessing for name in VIT_CONFIGS} <= set(TEACHER_KINDS)


SMALL = dict(patch_size=16, hidden_size=24, depth=1, num_heads=3)


def config_at(resolution, **teachers):
    """The tiny configuration with 16 pixels a token of the SiT, as of the published teachers."""
    config = tiny.get_config()
    config.data.resolution = resolution
    config.backbone.patch_size = 4
    del config.teachers.small
    config.teachers.update(teachers)
    return config


@pytest.mark.parametrize("preset", VIT_CONFIGS)
@pytest.mark.parametrize("resolution", [256, 512, 320, 384, 224])
def test_every_preset_gives_the_tokens_of_the_sit(preset, resolution):
    validate(config_at(resolution, it=teacher(preset)))
    model = create_vit(preset, depth=1, dim=16, num_heads=1)
    pixels = jax.ShapeDtypeStruct((1, resolution, resolution, 3), np.uint8)
    prepared = jax.eval_shape(model.prepare, pixels)
    tokens, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], prepared)
    assert tokens.shape == (1, (resolution // 16) ** 2, 16) == (1, model.grid(resolution) ** 2, 16)


def test_a_resolution_that_gives_no_whole_tokens_is_named():
    config = config_at(264, it=teacher("dinov2-b"))
    config.backbone.patch_size = 2
    with pytest.raises(UserError, match=r"data\.resolution is 264.*teachers\.it: .*16.*256 or"):
        validate(config)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (teacher("clip-l", preprocessing="dinov2"), "'dinov2', but clip-l was trained with 'clip'"),
        (teacher("mocov3-b", preprocessing="clip"), "mocov3-b was trained with 'imagenet'"),
        (teacher("pe-core-b", preprocessing="pe"), "pe-core-b was trained with 'native'"),
        (teacher("clip-l", preprocessing="imagenet"), "patch size 14 does not divide 256"),
        (
            teacher("mae-l", preprocessing="siglip"),
            "use one of dinov2, clip, pe, vavae, imagenet, native",
        ),
        (teacher("siglip-x"), "arch is 'siglip-x': use one of"),
        (teacher(patch_size=16, depth=1, num_heads=1), "it.hidden_size is not set"),
        (teacher("mae-l", stem=(8,)), "stem is (8,), but mae-l has none"),
        (teacher(**SMALL, stem=(8,) * 5), "stem has 5 levels"),
        (teacher(**SMALL, stem=(8, 12)), "stem is (8, 12): use widths that are multiples of 8"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value.arch,
)
def test_impossible_teachers_are_named(entry, message):
    with pytest.raises(UserError) as caught:
        validate(config_at(256, it=entry))
    assert message in str(caught.value)
    assert "config.teachers.it" in str(caught.value)


def test_a_family_without_presets_has_its_own_options(monkeypatch):
    left = {"depth": 1, "num_heads": 2}
    row = Family(
        ViT,
        {"patch_size": int, "dim": int, "preprocessing": "native"},
        custom=lambda fields, side: {"native_grid": side // fields["patch_size"], **left},
    )
    monkeypatch.setitem(ENCODERS, "plain", row)
    for entry, message in (
        (teacher("x", family="plain", patch_size=16, dim=8), "it.arch is 'x': leave it empty"),
        (teacher(family="plain", patch_size=16), "it.dim is not set"),
        (teacher(family="plain", patch_size=48, dim=8), "patch size 48 does not divide 256"),
    ):
        with pytest.raises(UserError, match=message):
            validate(config_at(256, it=entry))
    config = config_at(256, it=teacher(family="plain", patch_size=16, dim=8))
    validate(config)
    made = build_models(config).teachers["it"]
    expected = {"patch_size": 16, "native_grid": 16, "dim": 8, "preprocessing": "native", **left}
    assert {name: getattr(made, name) for name in expected} == expected


def test_explicit_sizes_override_the_presets():
    entry = teacher("mae-l", patch_size=8, hidden_size=12, depth=1, num_heads=3)
    model = build_models(config_at(256, it=entry)).teachers["it"]
    assert (model.patch_size, model.dim, model.depth, model.num_heads) == (8, 12, 1, 3)
    assert not model.final_norm


@NEEDS_ORIGINAL
@pytest.mark.parametrize("preset", ["mocov3-b", "mae-l", "ijepa-h", "clip-l"])
def test_pixels_to_tokens_equal_the_original(preset, tmp_path):
    content, path = file_of(preset), tmp_path / "teacher.pth"
    write_torch(path, content)
    depth = MOCO_DEPTH if preset == "mocov3-b" else DEPTH
    entry = teacher(preset, hidden_size=DIM, depth=depth, num_heads=HEADS, weights=str(path))
    built = build_models(config_at(256, it=entry)).teachers["it"]
    variables = load_teacher(entry, built, 256)

    def tokens(pixels):
        return patch_tokens(built, variables, pixels)

    pixels = images(256, 256)
    raw_image = torch.tensor(pixels.transpose(0, 3, 1, 2))
    expected = original_tokens(preset, content, raw_image)
    assert expected.shape == (1, 256, DIM)
    assert_close(quick_jit(tokens)(pixels), expected, preset)


@pytest.mark.parametrize("preset", ["dinov2-b", "ijepa-h", "clip-l"])
def test_pixels_to_tokens_equal_torch_at_other_resolutions(preset):
    """The table resampled as timm does, which the original resamples its tables with."""
    patch, resolution, grid = 14, 80, VIT_CONFIGS[preset]["native_grid"]
    reference = timm_reference(preset, patch=patch, grid=grid)
    tensors = state_of(reference.module)
    if preset == "clip-l":
        tensors = openai_names(tensors)
    sizes = {"dim": torch_vits.DIM, "depth": torch_vits.DEPTH, "num_heads": torch_vits.HEADS}
    model = create_vit(preset, **sizes)
    variables = load_vit(tensors, model)
    pixels = images(resolution, resolution)
    with torch.no_grad():
        expected, _ = reference.tokens(in_torch(pixels, "clip" if preset == "clip-l" else "dinov2"))
    assert expected.shape == (1, 5 * 5, torch_vits.DIM)
    tokens = quick_jit(lambda x: patch_tokens(model, variables, x))(pixels)
    assert_close(tokens, expected, preset)


def test_two_teachers_are_prepared_and_read_each_in_its_own_way(tmp_path):
    """From the configuration and the files to what the SiT is aligned with."""
    references = {
        "first": timm_reference("mocov3-b", patch=16, grid=14, dim=12),
        "second": timm_reference("clip-l", patch=14, grid=16),
    }
    first = {f"module.base_encoder.{n}": a for n, a in state_of(references["first"].module).items()}
    second = openai_names(state_of(references["second"].module))
    write_torch(tmp_path / "first.pth", {"state_dict": first})
    write_torch(tmp_path / "second.pth", second)
    small = {"depth": torch_vits.DEPTH, "num_heads": torch_vits.HEADS}
    config = config_at(
        256,
        first=teacher("mocov3-b", hidden_size=12, weights=str(tmp_path / "first.pth"), **small),
        second=teacher("clip-l", hidden_size=24, weights=str(tmp_path / "second.pth"), **small),
    )
    models = build_models(config)
    assert models.backbone.teacher_dims == (12, 24)
    frozen = {n: load_teacher(config.teachers[n], t, 256) for n, t in models.teachers.items()}
    vae = quick_jit(models.tokenizer.init)(
        jax.random.key(0), np.zeros((1, 4, 4, 3)), np.zeros((1, 1, 1, 2))
    )
    state = SimpleNamespace(step=0, frozen={"teachers": frozen})
    draws = sample_draws(jax.random.key(1), 1, latent_shape(config, models))
    shared_forward = make_shared_forward(models, Objective(), reconstruct=False)

    def observed_tokens(pixels):
        batch = {"image": pixels, "label": np.zeros(1, np.int32)}
        return shared_forward({"tokenizer": vae["params"]}, state, batch, draws).teacher_tokens

    pixels = images(256, 256)
    for name, tokens in zip(("first", "second"), quick_jit(observed_tokens)(pixels), strict=True):
        kind = "clip" if name == "second" else "imagenet"
        with torch.no_grad():
            expected, _ = references[name].tokens(in_torch(pixels, kind))
        assert_close(tokens, expected, name)
