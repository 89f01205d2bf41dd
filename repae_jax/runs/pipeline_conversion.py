"""Runs as a pipeline's folder, which diffusers opens, and such folders as runs."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from repae_jax.config.modules import build_sampler
from repae_jax.config.recipes import apply_recipe
from repae_jax.config.storage import from_stored, to_json
from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.interop import hub, pipeline_folder
from repae_jax.interop.latent_statistics import Statistics
from repae_jax.interop.pipeline_folder import RUN_FILE, TEXT_ENCODER, VAE, Captions, Generator
from repae_jax.interop.pipeline_labels import class_names as labels_of_pipeline
from repae_jax.interop.vae_files import read_weights
from repae_jax.models.backbones.base import Backbone
from repae_jax.models.networks import Models
from repae_jax.models.tokenizers.base import is_identity, statistics_shape
from repae_jax.runs import workdir as work_directory
from repae_jax.runs.build import build_models, build_optimizers, latent_shape
from repae_jax.runs.captions import keep_tokenizer, make_tokenize
from repae_jax.runs.checkpoints import Checkpoints
from repae_jax.runs.class_names import keep_class_names, recorded_class_names
from repae_jax.runs.initial_state import load_text_encoder
from repae_jax.runs.model_card import card_of
from repae_jax.runs.open_run import missing_text_encoder, open_on_host, vae_of
from repae_jax.runs.optimizers import MUON
from repae_jax.runs.state import TrainState, without_heads
from repae_jax.utils.atomic_files import replacing

# Keys with the places of files, which mean nothing in a folder that others get.
_PLACES = (
    ("data", "path"), ("tokenizer", "weights"), ("tokenizer", "statistics"),
    ("discriminator", "weights"), ("discriminator", "encoder_weights"), ("lpips", "weights"),
    ("lpips", "vgg_weights"), ("text_encoder", "weights"), ("text_encoder", "tokenizer"),
    ("evaluation", "reference"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Opened:
    """A folder's transformer with its run's configuration.

    Attributes:
      step: the step of the run.
      config: the configuration.
      models: its networks.
      tensors: the transformer's, as they are stored.
      variables: the backbone's, float32.
      statistics: the latents', float32.
    """

    step: int
    config: ConfigDict
    models: Models
    tensors: Mapping[str, np.ndarray]
    variables: Mapping[str, Any]
    statistics: Statistics


def generator_of(workdir: pathlib.Path, step: int | None = None) -> Generator:
    """The averaged networks of a run, and what sampling from it needs.

    Args:
      workdir: the run's folder.
      step: read only the checkpoint at this step; None: the newest.

    Raises:
      UserError: there is no run, it has no backbone, or its checkpoint is damaged.
    """
    run = open_on_host(workdir, step)
    backbone, state = run.models.backbone, run.state
    if backbone is None:
        raise UserError(
            f"{workdir}: trained a VAE alone, so it generates nothing: write the VAE (--to "
            "diffusers)"
        )
    others = ("params", "latent_norm", "tokenizer")
    constants = {name: part for name, part in state.ema.items() if name not in others}
    steps, stored, captions = int(state.step), _without_places(run.config), _captions(run)
    return Generator(
        backbone=backbone,
        variables={"params": without_heads(state.ema["params"]), **constants},
        statistics=state.ema["latent_norm"],
        vae=None if is_identity(run.models.tokenizer) else vae_of(run),
        captions=captions,
        sampler=dataclasses.asdict(build_sampler(run.config)),
        class_names=None if captions else recorded_class_names(workdir, run.config),
        run={"step": steps, "config": json.loads(to_json(stored, sealed=True))},
        card=card_of(run),
    )


def config_of(folder: pathlib.Path) -> ConfigDict:
    """The configuration that continues a folder's run: of the backbone alone, without alignment.

    A backbone that denoises a class token keeps its teachers, of which one gives the token.

    Raises:
      UserError: the stored configuration is missing, damaged, or of a later version.
    """
    _, stored = pipeline_folder.read_run(folder)
    config = from_stored(stored, source=f"{folder / RUN_FILE}: config")
    name = config.name
    if "backbone" not in config.train:
        raise UserError(f"{folder / RUN_FILE}: its run trained no backbone")
    apply_recipe(config, "repa" if config.backbone.get("class_token_dim") else "vanilla")
    config.name = name
    config.evaluation.every = 0  # measures take a teacher, or files that are not here
    if (folder / VAE).is_dir():
        config.tokenizer.update(weights=str(folder / VAE), statistics="")
    if (folder / TEXT_ENCODER).is_dir():
        config.text_encoder.weights = str(folder / TEXT_ENCODER)
        config.text_encoder.tokenizer = str(pipeline_folder.tokenizer_file(folder))
    return config


def open_pipeline(folder: pathlib.Path, config: ConfigDict | None = None) -> Opened:
    """Read a folder's transformer, and compare it with a configuration.

    Args:
      folder: the pipeline's folder.
      config: by default that of `config_of`.

    Raises:
      UserError: a part is missing, damaged, or of another model than the configuration.
    """
    step, _ = pipeline_folder.read_run(folder)
    config = config_of(folder) if config is None else config
    validate(config)
    models = build_models(config)
    if models.backbone is None:
        raise UserError(f"{folder}: is a generator, but the configuration has no backbone")
    found = pipeline_folder.read_transformer(folder, models.backbone)
    expected = statistics_shape(models.tokenizer, latent_shape(config, models))
    if found[-1]["var"].shape != expected:
        raise UserError(
            f"{folder}: its latent statistics have the shape {found[-1]['var'].shape}, but those "
            f"of the configuration's tokenizer have {expected}"
        )
    return Opened(step, config, models, *found)


def import_pipeline(
    folder: pathlib.Path,
    workdir: pathlib.Path,
    make_config: Callable[[Callable[[], ConfigDict]], ConfigDict],
) -> None:
    """Turn a pipeline's folder into a work directory; the folder's code is not read.

    The optimizer begins anew. Projection heads are not in the folder: those of a backbone with a
    class token are drawn from the seed.

    Args:
      folder: the pipeline's folder.
      workdir: a new or empty folder.
      make_config: takes the function that derives the configuration from the folder, and returns
        the configuration to use.

    Raises:
      UserError: a part is missing, damaged, or of another model than the configuration.
    """
    opened = open_pipeline(folder, make_config(lambda: config_of(folder)))
    config, steps = opened.config, opened.step
    state = state_of(folder, opened)
    with replacing(workdir) as temporary:
        temporary.mkdir()
        work_directory.claim(temporary, config)
        if opened.models.text_encoder is not None:
            keep_tokenizer(temporary, make_tokenize(config))
        if names := labels_of_pipeline(folder):
            keep_class_names(temporary, names)
        checkpoints = Checkpoints(temporary)
        checkpoints.save(steps, state, {"global_next_index": steps * config.batch_size})
        checkpoints.close()


def _captions(run):
    encoder = run.models.text_encoder
    if encoder is None:
        return None
    frozen = {**run.state.frozen, **missing_text_encoder(run.config, run.models, run.state)}
    tokenize = make_tokenize(run.config)
    return Captions(encoder, frozen["text_encoder"], pathlib.Path(tokenize.path).read_bytes())


def _without_places(config):
    """The configuration without the places of files on this machine."""
    config = config.copy_and_resolve_references()
    sections = [(config[section], key) for section, key in _PLACES]
    sections += [(teacher, "weights") for teacher in config.teachers.values()]
    for section, key in sections:
        if key in section and section[key] and not str(section[key]).startswith(hub.PREFIX):
            section[key] = ""
    return config


def state_of(folder: pathlib.Path, opened: Opened) -> TrainState:
    """The state of the run, as numpy arrays."""
    config, models, statistics = opened.config, opened.models, opened.statistics
    variables, steps = opened.variables, opened.step
    params = {**variables["params"], **_fresh_heads(models.backbone, config.seed)}
    constants = {name: part for name, part in variables.items() if name != "params"}
    tokenizer: dict[str, Any] = {"params": {}}
    if not is_identity(models.tokenizer):
        found, _ = read_weights(folder / VAE, models.tokenizer)
        tokenizer = jax.tree.map(_in_float32, found)
    trained = {"tokenizer": tokenizer.pop("params"), "backbone": params}
    frozen = {
        **({"backbone": constants} if constants else {}),
        **({"tokenizer": tokenizer} if tokenizer else {}),
    }
    if models.text_encoder is not None:
        loaded = load_text_encoder(config, models.text_encoder)
        frozen |= jax.tree.map(_in_float32, jax.device_get(loaded))
    return TrainState(
        step=np.asarray(steps, np.int32),
        params=trained,
        batch_stats={"latent_norm": statistics},
        opt_state={"backbone": _fresh_optimizer(config, params, steps)},
        ema={"params": params, **constants, "latent_norm": statistics},
        frozen=frozen,
    )


def _fresh_optimizer(config, params, steps):
    """The optimizer's state without moments; AdamW's count begins at 0, as they are biased to 0."""
    optimizer = build_optimizers(config)["backbone"]
    if config.optimizer.backbone.name == MUON:
        begun = jax.device_get(optimizer.init(params))
        return optax.tree_utils.tree_set(begun, count=np.asarray(steps, np.int32))
    blank = jax.eval_shape(optimizer.init, params)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), blank)


def _in_float32(array):
    array = np.asarray(array)
    narrow = array.dtype.kind in "fV" and array.dtype != np.float32
    return array.astype(np.float32) if narrow else array


def _fresh_heads(backbone: Backbone, seed: int) -> dict[str, Any]:
    """Projection heads of a backbone, drawn from the seed."""
    tokens = jnp.zeros((1, backbone.grid**2, backbone.hidden_size))
    heads = {}
    for number, dim in enumerate(backbone.teacher_dims):
        module = backbone.projector.module(dim, backbone.grid, jnp.float32)
        init = jax.jit(functools.partial(module.init))
        key = jax.random.fold_in(jax.random.key(seed), number)
        heads[f"projectors_{number}"] = jax.device_get(init(key, tokens))["params"]
    return heads
