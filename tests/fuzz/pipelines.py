"""Targets: folders of whole generators, as this project writes them for diffusers."""

import shutil

import tiny_text

from fuzz.original_checkpoints import make_run, small_config
from fuzz.saving import convert, inspect
from fuzz.target import Target
from fuzz.vaes import SCALES

RAE = dict(
    family="rae", encoder="dinov3", latent_channels=64, encoder_depth=1, encoder_patch=16,
    decoder_width=16, decoder_depth=1, decoder_heads=2, decoder_hidden=24, factor=4,
    encoder_layers=(0,), normalized_pixels=False, weights="somewhere",
)  # fmt: skip


def _of_classes(folder):
    return small_config("vanilla")


def _of_a_rae(folder):
    """Whose VAE's class is the folder's own."""
    from repae_jax.config import tokenizer

    config = small_config("vanilla")
    config.tokenizer = tokenizer(**RAE)
    return config


def _of_prompts(folder):
    from repae_jax.config import tokenizer
    from repae_jax.data.tokens import grammar_tokenizer

    config = tiny_text.get_config("vanilla")
    kl = small_config("vanilla").tokenizer
    config.tokenizer = tokenizer(**{key: value for key, value in kl.items() if key != "optimizer"})
    config.backbone.update(depth=1, patch_size=8)
    (folder / "run").mkdir()
    grammar_tokenizer().save(str(folder / "run" / "tokenizer.json"))
    return config


def _pipeline(make_config):
    def write(folder):
        from repae_jax.interop.pipeline_folder import write_pipeline
        from repae_jax.runs.pipeline_conversion import generator_of

        make_run(folder / "run", config=make_config(folder))
        write_pipeline(folder / "pipe", generator_of(folder / "run"))
        shutil.rmtree(folder / "run")

    return write


def _read(folder):
    """What `convert` and `Pipeline` make of it."""
    from repae_jax.interop.pipeline_labels import class_names
    from repae_jax.runs.inspection import describe
    from repae_jax.runs.pipeline_conversion import config_of, open_pipeline, state_of

    pipe = folder / "pipe"
    describe(pipe)
    opened = open_pipeline(pipe, config_of(pipe))
    state = state_of(pipe, opened)
    return {
        "step": opened.step,
        "params": {**state.params, "backbone": opened.variables["params"]},
        "statistics": opened.statistics,
        "frozen": state.frozen,
        "class_names": class_names(pipe),
    }


_SEALED = r".*\.safetensors|pipe/run\.json"
TARGETS = tuple(
    Target(f"pipeline of {kind}", _pipeline(make), _read, sealed=_SEALED, follows=SCALES,
           files=r"(?!.*\.(py|md)$).*", words=words)
    for kind, make, words in (
        ("classes", _of_classes, inspect("pipe")),
        ("a RAE of its own class", _of_a_rae, convert("pipe", "run")),
        ("prompts", _of_prompts, inspect("pipe")),
    )
)  # fmt: skip
