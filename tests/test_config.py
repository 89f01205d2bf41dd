"""Defaults, recipes, and the checks before anything starts."""

import json
import pathlib
import re

import pytest
import tiny
from ml_collections import ConfigDict

from repae_jax.config import RECIPES, apply_recipe, base
from repae_jax.config.modules import build_backbone, build_encoder, build_tokenizer
from repae_jax.config.needs import check_files
from repae_jax.config.overrides import apply_overrides, read_config
from repae_jax.config.storage import differences, to_json
from repae_jax.config.validate import check_devices, validate
from repae_jax.errors import UserError

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
# Studies are no configurations of a run: tests/study has them.
CONFIGS = sorted(path for path in FOLDER.glob("*.py") if not path.name.startswith("study_"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_config_is_possible_in_every_recipe(path, recipe):
    config = read_config(f"{path}:{recipe}", [])
    if config.data.source == "latents" and "tokenizer" in config.train:
        with pytest.raises(UserError, match=r"config\.data\.source is 'latents'"):
            validate(config)
        return
    if config.tokenizer.family == "pixels" and "tokenizer" in config.train:
        with pytest.raises(UserError, match=r"family is 'pixels', which has nothing to train"):
            validate(config)
        return
    if recipe == "lsgm" and config.objective.interpolant == "ddpm":
        with pytest.raises(UserError, match=r"needs the velocity of linear or cosine"):
            validate(config)
        return
    if recipe == "lsgm" and config.tokenizer.family in ("dcae", "rae"):
        with pytest.raises(UserError, match=r"prior_weight is .*deterministic"):
            validate(config)
        return
    if recipe == "vavae":
        check_vavae(config)
        return
    weightless = config.tokenizer.family != "pixels" and not config.tokenizer.weights
    if "tokenizer" not in config.train and weightless:
        with pytest.raises(UserError, match=r"config\.tokenizer\.weights is empty"):
            validate(config)
        config.tokenizer.weights = "somewhere"
    validate(config)


def check_vavae(config):
    """The latents must have the grid of the first teacher, if there is one."""
    tokenizer = build_tokenizer(config)
    fits = False
    if config.teachers and hasattr(tokenizer, "last_encoder_layer"):  # RAE's encoder is frozen
        encoder = build_encoder(next(iter(config.teachers.values())), config.data.resolution)
        fits = encoder.grid(config.data.resolution) == config.data.resolution // tokenizer.factor
    if fits:
        validate(config)
        return
    with pytest.raises(
        UserError, match=r"vf_weight is 0\.1, but .*(must match|is empty|names no last layer)"
    ):
        validate(config)


def test_the_published_recipe_is_the_default():
    # Figures of the original's command line (train_repae.py) and its loss configuration.
    config = read_config(str(CONFIGS[0].parent / "imagenet256_repae_sdvae.py"), [])
    for name in ("backbone", "tokenizer", "discriminator"):
        assert config.optimizer[name].learning_rate == 1e-4
        assert config.optimizer[name].weight_decay == 0
        assert config.optimizer[name].max_grad_norm == 1.0
    assert (config.batch_size, config.run.steps, config.ema_decay) == (256, 400_000, 0.9999)
    assert (config.backbone.arch, config.backbone.encoder_depth, config.condition.drop) == (
        "SiT-XL/2",
        8,
        0.1,
    )
    assert (config.objective.backbone_alignment, config.objective.tokenizer_alignment) == (0.5, 1.5)
    assert (config.objective.kl_weight, config.objective.adversarial_weight) == (1e-6, 0.1)
    assert config.lpips.rescale_inputs


def test_the_published_recipe_of_jit():
    # Figures of its command line (main_jit.py), whose time is one minus ours, and of its models.
    config = read_config(str(FOLDER / "imagenet256_jit.py"), [])
    adamw, sampling = config.optimizer.backbone, config.sampling
    assert (config.train, config.batch_size, config.ema_decay) == (("backbone",), 1024, 0.9999)
    assert adamw.learning_rate == 5e-5 * config.batch_size / 256
    assert (adamw.b1, adamw.b2, adamw.weight_decay) == (0.9, 0.95, 0.0)
    epoch = 1_281_167 // 8 // 128  # batches of 128 on each of 8 GPUs
    assert (config.run.steps, adamw.warmup_steps) == (200 * epoch, 5 * epoch)
    assert (config.time.weighting, config.time.mean, config.time.scale) == ("lognormal", 0.8, 0.8)
    assert config.objective.least_time == config.backbone.least_time == 0.05
    assert (sampling.method, sampling.steps, sampling.guidance_scale) == ("heun", 50, 3.0)
    assert (sampling.guidance_low, sampling.guidance_high) == (0.0, 1 - 0.1)


def test_the_published_recipe_of_rae():
    # Figures of its files configs/stage2/training/ImageNet256/DiTDH-XL_DINOv2-B.yaml and
    # configs/stage1/training/DINOv2-B_decXL.yaml.
    path = str(FOLDER / "imagenet256_rae_dinov2.py")
    config = read_config(path, [])
    validate(config)
    adamw, sampling = config.optimizer.backbone, config.sampling
    assert (config.train, config.batch_size, config.ema_decay) == (("backbone",), 1024, 0.9995)
    assert (adamw.learning_rate, adamw.b2, adamw.final_rate) == (2e-4, 0.95, 2e-5)
    assert (adamw.decay, adamw.decay_start, adamw.decay_steps) == ("linear", 40 * 1251, 800 * 1251)
    shift = (768 * 16 * 16 / 4096) ** 0.5
    assert config.time.shift == sampling.shift == shift == pytest.approx(6.93, abs=2e-3)
    assert (config.time.weighting, config.objective.least_time) == ("lognormal", 0.0)
    # 50 points from 1 to 1 - 0.999
    assert (sampling.method, sampling.steps) == ("euler", 49)
    assert sampling.last_time == pytest.approx(1 - 0.999)
    assert sampling.guidance_scale == 1.0
    network = build_backbone(config, build_tokenizer(config))
    assert (network.hidden_size, network.depth, network.patch_size) == (1152, 28, 1)
    assert (network.head_size, network.head_depth, network.latent_channels) == (2048, 2, 768)

    config = read_config(f"{path}:vae", [])
    validate(config)
    adamw, epoch = config.optimizer.tokenizer, 1_281_167 // 512
    assert (config.train, config.batch_size) == (("tokenizer", "discriminator"), 512)
    objective, judge = config.objective, config.optimizer.discriminator
    assert (objective.discriminator_start, objective.generator_start) == (6 * epoch, 8 * epoch)
    assert (objective.adversarial_weight, objective.adaptive_weight) == (0.75, True)
    assert (judge.learning_rate, judge.b2, judge.decay_steps) == (2e-4, 0.95, 16 * epoch)
    assert (adamw.learning_rate, adamw.b2, adamw.final_rate) == (2e-4, 0.95, 2e-5)
    assert (adamw.decay, adamw.warmup_steps, adamw.decay_steps) == ("cosine", epoch, 16 * epoch)
    assert (adamw.weight_decay, adamw.max_grad_norm) == (0.0, float("inf"))
    assert (config.run.steps, config.objective.latent_noise) == (16 * epoch, 0.8)
    # train_stage1.py: Resize(384, BICUBIC), RandomCrop(256), and no flip
    assert (config.data.crop, config.data.random_crop, config.data.flip) == ("bicubic", 384, False)
    # L1 of pixels in [0, 1], which is half that in [-1, 1]; LPIPS in [-1, 1]
    assert config.objective.reconstruction_weight == 0.5 * config.objective.perceptual_weight
    assert not config.lpips.rescale_inputs


def test_the_published_recipe_of_raev2():
    # Figures of its files configs/stage2/training/imagenet-dinov3l-k7.yaml and
    # configs/stage1/training/dinov3l-k7-imagenet.yaml.
    path = str(FOLDER / "imagenet256_raev2_dinov3.py")
    config = read_config(path, [])
    validate(config)
    muon, epoch = config.optimizer.backbone, 1251
    assert (config.train, config.batch_size, config.ema_decay) == (("backbone",), 1024, 0.9995)
    assert (muon.name, muon.learning_rate, muon.final_rate) == ("muon", 2e-4, 2e-5)
    assert (muon.decay, muon.decay_start, muon.decay_steps) == ("linear", 25 * epoch, 50 * epoch)
    assert (muon.weight_decay, muon.max_grad_norm, muon.warmup_steps) == (0.0, 1.0, 0)
    assert config.time.shift == config.sampling.shift == (262144 / 4096) ** 0.5
    assert (config.run.steps, config.objective.least_time) == (80 * epoch, 0.05)
    assert (config.sampling.steps, config.sampling.guidance_scale) == (50, 1.0)
    vae = build_tokenizer(config)
    network = build_backbone(config, vae)
    assert (network.hidden_size, network.depth, network.num_heads) == (1440, 28, 20)
    assert (network.head_size, network.head_depth, network.head_heads) == (2048, 2, 16)
    assert (network.time_tokens, network.class_tokens, network.predicts_data) == (4, 8, True)
    assert vae.encoder_layers == (11, 13, 15, 17, 19, 21, 23)
    config.objective.least_time = 0.0
    with pytest.raises(UserError, match="least_time is 0.0, but config.backbone of the family"):
        validate(config)
    config.backbone.predicts_data = False
    validate(config)

    first, of_rae = (
        read_config(f"{FOLDER / name}.py:vae", [])
        for name in ("imagenet256_raev2_dinov3", "imagenet256_rae_dinov2")
    )
    validate(first)
    assert (first.data.random_crop, first.data.flip) == (0, False)  # its images are 256 x 256
    assert first.discriminator == of_rae.discriminator
    for key in ("reconstruction_weight", "latent_noise", "generator_start", "fake_bytes"):
        assert first.objective[key] == of_rae.objective[key]
    for network in ("tokenizer", "discriminator"):
        assert first.optimizer[network] == of_rae.optimizer[network]


def test_unknown_recipe_is_named():
    with pytest.raises(UserError, match="no recipe 'repa-e'"):
        apply_recipe(base(), "repa-e")


def set_key(config: ConfigDict, key: str, value) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        config = config[parent]
    with config.ignore_type():
        config[leaf] = value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("backbone.patch_size", 3, "patch size 3 does not divide the latent of 8 x 8"),
        ("backbone.encoder_depth", 3, "encoder_depth is 3: it must lie between 1 and"),
        ("backbone.encoder_depth", 0, "encoder_depth is 0"),
        ("backbone.hidden_size", 18, "hidden_size is 18"),
        ("backbone.arch", "SiT-XXL/2", "SiT-XXL/2"),
        ("backbone.depth", None, "config.backbone.depth is not set"),
        ("tokenizer.arch", "f9", "f9"),
        ("tokenizer.groups", 3, "groups is 3"),
        ("tokenizer.attention_levels", (3,), "attention_levels has 3"),
        ("data.resolution", 30, "not divisible by the tokenizer's down-sampling factor 4"),
        ("teachers.small.patch_size", 4, "8 x 8 tokens, the backbone 4 x 4"),
        ("teachers.small.preprocessing", "dinov3", "dinov3"),
        ("teachers.small.preprocessing", "dinov2", "patch size 8 does not divide 28 pixels"),
        ("train", ("backbone", "gan"), "'gan'"),
        ("train", ("discriminator",), "nothing to train"),
        ("train", ("backbone", "tokenizer"), "adversarial_weight is 0.1 without a discriminator"),
        ("train", ("backbone",), "the tokenizer is frozen"),
        ("batch_size", 0, "batch_size is 0"),
        ("run.steps", -1, "run.steps is -1"),
        ("condition.drop", 1.5, "drop is 1.5"),
        ("dtype", "float16", "float16"),
        ("time.weighting", "cosine", "weighting is 'cosine'"),
        ("objective.interpolant", "edm", "interpolant is 'edm'"),
        ("objective.latent_norm", "none", "latent_norm is 'none'"),
        ("objective.kl_weight", float("nan"), "kl_weight is nan"),
        (
            "optimizer.tokenizer.learning_rate",
            -1e-4,
            "optimizer.tokenizer.learning_rate is -0.0001",
        ),
        ("optimizer.tokenizer.decay_steps", 2, "the tokenizer's at step 2, and nothing"),
        ("optimizer.backbone.warmup_steps", -1, "warmup_steps is -1"),
        ("sampling.method", "ddim", "ddim"),
        ("sampling.guidance_scale", -0.5, "-0.5"),
    ],
)
def test_impossible_values_are_named(key, value, message):
    config = tiny.get_config()
    set_key(config, key, value)
    with pytest.raises(UserError) as caught:
        validate(config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("way_out", ["fewer", "slowly"])
def test_rates_that_end_before_the_run_are_named_with_the_words_that_help(way_out):
    config = tiny.get_config()
    config.run.steps = 4000
    for name, steps in (("backbone", 1450), ("tokenizer", 1450), ("discriminator", 5000)):
        config.optimizer[name].decay_steps = steps
    with pytest.raises(UserError) as caught:
        validate(config)
    words = re.findall(r"--config\.[\w.]+=\d+", str(caught.value))
    validate(apply_overrides(config, words[:1] if way_out == "fewer" else words[1:]))
    assert words[0] == "--config.run.steps=1450"
    assert [word.split(".")[2] for word in words[1:]] == ["backbone", "tokenizer"]


def test_guidance_needs_a_null_class():
    config = tiny.get_config()
    config.sampling.guidance_scale = 2.0
    validate(config)
    config.condition.drop = 0.0
    with pytest.raises(UserError, match="no null condition"):
        validate(config)


def test_batch_must_divide_over_the_devices():
    config = tiny.get_config()
    check_devices(config, 4)
    with pytest.raises(
        UserError, match="batch_size is 8, not divisible by the 3 devices: use 6 or 9"
    ):
        check_devices(config, 3)


@pytest.mark.parametrize(
    "key", ["tokenizer.weights", "tokenizer.statistics", "discriminator.weights", "data.path"]
)
def test_missing_files_are_named(key, tmp_path):
    config = tiny.get_config()
    config.teachers = ConfigDict()
    check_files(config)
    set_key(config, key, str(tmp_path / "missing.pt"))
    with pytest.raises(UserError, match=f"config.{key} is .*missing.pt.*does not exist"):
        check_files(config)


def test_missing_teacher_says_how_to_make_it(tmp_path):
    config = tiny.get_config()
    config.teachers.small.weights = str(tmp_path / "teacher.safetensors")
    with pytest.raises(UserError, match="pretrain-teacher"):
        check_files(config)


def test_lpips_needs_its_weights():
    config = tiny.get_config()
    config.teachers = ConfigDict()
    config.objective.perceptual_weight = 1.0
    with pytest.raises(UserError, match="perceptual_weight is 1.0, but"):
        check_files(config)


def test_differences_name_the_keys():
    old, new = tiny.get_config(), tiny.get_config()
    new.backbone.depth = 3
    new.teachers.small.weights = "other"
    lines = differences(json.loads(to_json(old)), json.loads(to_json(new)))
    assert lines == [
        "config.backbone.depth: 2 -> 3",
        "config.teachers.small.weights: 'teacher.safetensors' -> 'other'",
    ]


@pytest.mark.parametrize(
    ("key", "value"), [("decay", "linear"), ("decay_start", 3), ("final_rate", 1e-5)]
)
def test_a_decay_that_nothing_reads_is_named(key, value):
    config = tiny.get_config()
    config.optimizer.backbone[key] = value
    with pytest.raises(UserError, match=rf"backbone\.{key} is .*set .*backbone\.decay_steps"):
        validate(config)
    config.optimizer.backbone.decay_steps = config.run.steps
    validate(config)


def test_one_image_has_no_other_to_differ_from():
    config = tiny.get_config("repa")
    config.tokenizer.weights = "somewhere"
    config.objective.dispersive_weight = 0.25
    validate(config)
    config.compute.micro_batches = config.batch_size
    with pytest.raises(UserError, match=r"dispersive_weight is .* a micro-batch has 1 image"):
        validate(config)
