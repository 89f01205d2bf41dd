"""Random runs of every backbone and condition, and their pipelines in torch beside our sampler."""

import atexit
import functools
import pathlib
import shutil
import tempfile

import jax
import numpy as np
import tiny
import tiny_text
import torch
from clip_folders import VOCABULARY, clip_tokenizer
from run_fixtures import random_leaf

from repae_jax.config import apply_recipe, backbone, condition, text_encoder, tokenizer
from repae_jax.config.modules import build_sampler
from repae_jax.config.validate import validate
from repae_jax.data.tokens import grammar_tokenizer
from repae_jax.models.backbones.base import class_token_dim
from repae_jax.models.text_encoders.base import null_states
from repae_jax.models.tokenizers.base import is_identity
from repae_jax.runs import workdir as work_directory
from repae_jax.runs.build import build_models, state_shapes
from repae_jax.runs.captions import make_tokenize, tokenized
from repae_jax.runs.checkpoints import Checkpoints
from repae_jax.runs.open_run import open_run, sampling_weights
from repae_jax.sampling.generate import make_generate
from repae_jax.sampling.noise import image_noise, step_noise

SIZES = dict(patch_size=2, hidden_size=16, depth=2, num_heads=2, encoder_depth=1)
HEAD = dict(head_size=24, head_depth=1, head_heads=2)
FUSE = dict(family="fusedit", **SIZES, kv_heads=1, head_width=8, mlp_width=16)
LABELS = [0, 3, 9, -1]
PROMPTS = ["a red circle", "two large blue squares left of a tree, and a word beyond", ""]
SEED, STEP = 3, 4


def of_classes(family, recipe="vanilla", **options):
    """The tiny configuration with another backbone."""
    config = tiny.get_config(recipe)
    config.tokenizer.weights = "vae"
    config.backbone = backbone(family=family, **(SIZES | options))
    return config


def of_class_token(family, **options):
    """One that denoises the teacher's class token (REG)."""
    return of_classes(family, "repa", class_token_dim=8, **options)


def of_noise(**options):
    """A DiT."""
    config = of_classes("dit", **options)
    config.objective.interpolant = "ddpm"
    config.sampling.method = "ddpm"
    return config


def of_data(**options):
    """One that predicts the data."""
    config = of_classes(**options)
    config.objective.least_time = 0.05
    return config


def of_pixels():
    """JiT as it is published."""
    config = of_data(
        family="jit", patch_size=8, bottleneck=6, context_tokens=3, context_start=1, mlp_ratio=3.0
    )
    config.tokenizer = tokenizer(family="pixels")
    return config


def of_prompts(embedding="gemma", **network):
    """One of captions, with the grammar's text encoder, whose states are whitened."""
    config = tiny_text.get_config("vanilla")
    config.tokenizer.weights = "vae"
    config.backbone = backbone(**network)
    config.condition = condition("text", drop=0.25, embedding=embedding)
    return config


def of_clip():
    """REPA's MMDiT with CLIP's text tower."""
    config = of_prompts("linear", family="mmdit", **SIZES)
    config.text_encoder = text_encoder(
        family="clip_text", vocabulary=49_408, hidden_size=16, depth=1, num_heads=2, mlp_hidden=16,
        projection=8, length=12,
    )  # fmt: skip
    config.text_encoder.weights = "clip"
    return config


def without_null_class():
    """A SiT that was never trained without a class."""
    config = of_classes("sit")
    config.condition.drop = 0.0
    return config


CASES = {
    "sit": functools.partial(tiny.get_config, "repae"),
    "sit qk_norm": functools.partial(of_classes, "sit", qk_norm=True, mlp_ratio=3.0),
    "sit without null class": without_null_class,
    "sit reg": functools.partial(of_class_token, "sit"),
    "lightningdit": functools.partial(of_classes, "lightningdit", qk_norm=True, shift=False),
    "lightningdit plain": functools.partial(
        of_classes, "lightningdit", swiglu=False, rms_norm=False, rotary=False, qk_norm=True
    ),
    "lightningdit reg": functools.partial(of_class_token, "lightningdit"),
    "dit": of_noise,
    "dit of fixed variance": functools.partial(of_noise, learn_sigma=False, qk_norm=True),
    "ditdh": functools.partial(of_classes, "ditdh", qk_norm=True, **HEAD),
    "ditdh of one width": functools.partial(of_classes, "ditdh", **{**HEAD, "head_size": 16}),
    "ddt": functools.partial(of_classes, "ddt", time_tokens=2, class_tokens=3, **HEAD),
    "ddt of data": functools.partial(of_data, family="ddt", predicts_data=True, **HEAD),
    "ddt reg": functools.partial(of_class_token, "ddt", time_tokens=1, **HEAD),
    "ddt of text": functools.partial(of_prompts, "rms_norm", family="ddt", **SIZES, **HEAD),
    "jit": of_pixels,
    "jit of latents": functools.partial(
        of_data, family="jit", bottleneck=6, context_tokens=0, context_start=1
    ),
    "fusedit": functools.partial(of_prompts, **FUSE),
    "fusedit linear": functools.partial(of_prompts, "linear", **FUSE),
    "mmdit": of_clip,
    "mmdit with a norm": functools.partial(of_prompts, "rms_norm", family="mmdit", **SIZES),
}


def save_random_run(workdir: pathlib.Path, config) -> pathlib.Path:
    """A run of this configuration with one checkpoint of random weights; returns the folder."""
    validate(config)
    models = build_models(config)
    rng = np.random.default_rng(0)
    shapes = state_shapes(config, models)
    state = jax.tree_util.tree_map_with_path(functools.partial(random_leaf, rng), shapes)
    state = state.replace(step=np.int32(STEP), opt_state={})
    norm = state.ema["latent_norm"]
    norm = {**norm, "var": 0.5 + abs(norm["var"])}  # also where each position has its own
    if is_identity(models.tokenizer):  # whose statistics are always these
        norm = {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}
    state = state.replace(
        ema={**state.ema, "latent_norm": norm},
        batch_stats={**state.batch_stats, "latent_norm": norm},
    )
    constants = state.frozen.get("tokenizer", {}).get("constants", {})
    if "periods" in constants:  # of rotary positions, which are positive
        constants = {**constants, "periods": 1.0 + abs(constants["periods"])}
        frozen = {**state.frozen, "tokenizer": {"constants": constants}}
        state = state.replace(frozen=frozen)
    work_directory.claim(workdir, config)
    if models.text_encoder is not None:
        make = grammar_tokenizer if models.text_encoder.crops else padded_clip_tokenizer
        make().save(str(workdir / "tokenizer.json"))
        make_null = jax.jit(functools.partial(null_states, models.text_encoder))
        null = make_null(state.frozen["text_encoder"])
        frozen = {**state.frozen, "null_condition": jax.tree.map(np.asarray, null)}
        state = state.replace(frozen=frozen)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(STEP, state, {})
    checkpoints.close()
    return workdir


def padded_clip_tokenizer():
    """CLIP's kind of tokenizer, with the ids of OpenAI's for begin and end of text."""
    import json

    from tokenizers import Tokenizer

    content = json.loads(clip_tokenizer().to_str())
    moved = {VOCABULARY - 2: 49_406, VOCABULARY - 1: 49_407}
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {w: moved.get(n, n) for w, n in vocabulary.items()}
    for token in content["added_tokens"]:
        token["id"] = moved.get(token["id"], token["id"])
    for special in content["post_processor"]["special_tokens"].values():
        special["ids"] = [moved.get(n, n) for n in special["ids"]]
    return Tokenizer.from_str(json.dumps(content))


def open_in_torch(folder: pathlib.Path, **options):
    """The pipeline as diffusers opens it, with a cache of code of this process alone."""
    from diffusers import DiffusionPipeline

    keep_code_apart()
    pipe = DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def keep_code_apart():
    """Give diffusers a cache of code of this process alone."""
    from diffusers.utils import dynamic_modules_utils

    folder = tempfile.mkdtemp(prefix="repae_jax_code_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    dynamic_modules_utils.HF_MODULES_CACHE = folder


def is_of_text(run):
    return run.models.text_encoder is not None


def our_images(workdir, asked, **changes):
    """Images (B, H, W, 3) uint8 of our sampler, and the noise that it took, for `torch_images`.

    Args:
      workdir: the run.
      asked: labels or prompts.
      changes: of the sampler.
    """
    run = open_run(workdir)
    sampler = build_sampler(run.config, **changes)
    backbone, key = run.models.backbone, jax.random.key(SEED)
    indices, dim = np.arange(len(asked)), class_token_dim(backbone)
    shape = (backbone.latent_size, backbone.latent_size, backbone.latent_channels)
    if is_of_text(run):
        inputs = tokenized(make_tokenize(run.config), asked)
    else:
        inputs = {"label": np.array(asked, np.int32)}
    generate = make_generate(run.models, sampler)
    made = generate(sampling_weights(run.state), key, indices, inputs)
    assert not np.asarray(made.faults).any()
    noise_of_step = step_noise(key, indices, shape, dim)
    first = in_torch(image_noise(key, indices, shape, dim))
    given = dict(latents=first[0], class_token=first[1] if dim else None)
    if sampler.stochastic:
        noise = [in_torch(noise_of_step(step)) for step in range(sampler.steps)]
        given["step_noise"] = noise.__getitem__
    given |= dict(
        method=sampler.method, num_inference_steps=sampler.steps,
        guidance_scale=sampler.guidance_scale,
        guidance_interval=(sampler.guidance_low, sampler.guidance_high),
    )  # fmt: skip
    return np.asarray(made.images), given


def in_torch(noise):
    """Our noise as torch has it: latents NCHW, and a class token."""
    parts = noise if isinstance(noise, tuple) else (noise,)
    tensors = [torch.tensor(np.asarray(part)) for part in parts]
    return tuple(t.permute(0, 3, 1, 2) if t.ndim == 4 else t for t in tensors)


def torch_images(pipe, asked, **given):
    """Images (B, H, W, 3) uint8 of the pipeline."""
    key = "prompt" if pipe.text_encoder is not None else "class_labels"
    images = pipe(**{key: asked}, **given).images
    return np.stack([np.asarray(image) for image in images])


def distance(one, other):
    """The largest difference of two uint8 arrays."""
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def with_tokenizer(family, recipe="vanilla", **options):
    """The tiny SiT on another tokenizer."""
    config = tiny.get_config()
    config.tokenizer = tokenizer(family=family, weights="vae", **options)
    config = apply_recipe(config, recipe)
    config.backbone.patch_size = 1
    return config
