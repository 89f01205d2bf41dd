"""Opening of a generator for sampling: a work directory, or another project's files in memory."""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from repae_jax.config.overrides import PREFIX, apply_overrides, read_config
from repae_jax.config.validate import validate
from repae_jax.data.tokens import Tokenize
from repae_jax.errors import UserError
from repae_jax.interop import hub
from repae_jax.interop.detect_format import PIPELINE, RUN, Detected, detect
from repae_jax.interop.formats import FORMATS
from repae_jax.interop.pipeline_labels import class_names as labels_of_pipeline
from repae_jax.models.networks import Models
from repae_jax.parallel.mesh import place, replicated
from repae_jax.runs.build import build_models
from repae_jax.runs.captions import make_tokenize
from repae_jax.runs.class_names import one_for_each, recorded_class_names
from repae_jax.runs.conversion import convert, possible_targets
from repae_jax.runs.conversion_targets import MakeConfig, checkpoint_in
from repae_jax.runs.open_run import missing_text_encoder, open_run, sampling_weights
from repae_jax.runs.original_import import import_state
from repae_jax.runs.workdir import is_run, load_config


@dataclasses.dataclass(frozen=True)
class Generator:
    """What images are generated with.

    Attributes:
      name: the source as given, for messages.
      config: the configuration.
      models: the networks.
      weights: from `sampling_weights`, on all devices of the mesh.
      step: the training step of the checkpoint.
      class_names: the names of the classes in their order; None if they are unknown.
      tokenize: turns prompts into token ids; None for a generator of classes.
    """

    name: str
    config: ConfigDict
    models: Models
    weights: Mapping[str, Any]
    step: int
    class_names: tuple[str, ...] | None
    tokenize: Tokenize | None


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a generator comes from.

    Attributes:
      name: a work directory; a file or folder that `convert` turns into one; or a repository on the
        hub, with or without "hf://".
      step: for a work directory, the training step; None: the newest.
      config: a file of a configuration, or a configuration, in place of the one that the files
        determine; None for that.
      overrides: keys of the configuration with other values, such as {"tokenizer.weights": PATH}.
    """

    name: str | pathlib.Path
    step: int | None = None
    config: str | ConfigDict | None = None
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def open(self, mesh: Mesh) -> Generator:
        """Load the generator to all devices of a mesh; nothing is written to the source.

        Raises:
          UserError: there is nothing of this name, it holds no generator, or is damaged.
        """
        if is_run(self.name):
            return self._open_run(pathlib.Path(self.name), str(self.name), mesh)
        found = self._detect()
        opened = checkpoint_in(found, self._make_config)
        if opened is None:
            with self.as_run() as workdir:
                generator = self._open_run(workdir, str(self.name), mesh, of_source=False)
        else:
            generator = self._open_checkpoint(found, *opened, mesh)
        names = labels_of_pipeline(_pipeline_folder(found)) or generator.class_names
        return dataclasses.replace(generator, class_names=one_for_each(names, generator.config))

    @contextlib.contextmanager
    def as_run(self) -> Iterator[pathlib.Path]:
        """Yield a work directory with the generator; a temporary one for other files.

        Raises:
          UserError: see `open`.
        """
        if is_run(self.name):
            yield pathlib.Path(self.name)
            return
        self._detect()
        with tempfile.TemporaryDirectory(prefix="repae_jax_") as folder:
            workdir = pathlib.Path(folder) / "run"
            convert(self._full_name(), workdir, RUN, self._make_config, progress=False)
            yield workdir

    def _open_run(self, workdir, name, mesh, *, of_source=True):
        if of_source and (self.config is not None or self.overrides):
            raise UserError(
                f"{name} is a work directory with its own configuration: leave out config and "
                "overrides"
            )
        _check_backbone(load_config(workdir), name)
        run = open_run(workdir, mesh, step=self.step)
        names = recorded_class_names(workdir, run.config)
        weights = sampling_weights(run.state)
        step, tokenize = int(run.state.step), make_tokenize(run.config)
        return Generator(name, run.config, run.models, weights, step, names, tokenize)

    def _open_checkpoint(self, found, content, config, mesh):
        validate(config)
        _check_backbone(config, str(found.path))
        models = build_models(config)
        state, _ = import_state(content, config, models, str(found.path), False)
        frozen = {**state.frozen, **missing_text_encoder(config, models, state)}
        weights = place(sampling_weights(state.replace(frozen=frozen)), replicated(mesh))
        step, tokenize = int(state.step), make_tokenize(config)
        return Generator(str(self.name), config, models, weights, step, None, tokenize)

    def _detect(self) -> Detected:
        name = self._full_name()
        try:
            found = detect(name)
        except UserError as error:
            if name == str(self.name):
                raise
            raise UserError(f"{self.name} is no file or folder here; {error}") from error
        if RUN not in possible_targets(found):
            raise UserError(
                f"{self.name} ({FORMATS[found.format]}) generates no images: give a work "
                "directory, a checkpoint, or a pipeline's folder"
            )
        if self.step is not None:
            raise UserError(
                f"step is {self.step}, but {self.name} is no work directory: leave it out"
            )
        return found

    def _full_name(self):
        """The name, with "hf://" before one that is nothing here and may be on the hub."""
        name = str(self.name)
        if name.startswith(hub.PREFIX) or pathlib.Path(name).exists() or not hub.is_hub_id(name):
            return name
        return f"{hub.PREFIX}{name}"

    @property
    def _make_config(self) -> MakeConfig:
        words = [f"{PREFIX}{key}={value}" for key, value in self.overrides.items()]

        def make(derive):
            if isinstance(self.config, str | pathlib.Path):
                return read_config(str(self.config), words)
            config = derive() if self.config is None else self.config.copy_and_resolve_references()
            return apply_overrides(config, words)

        return make


def _check_backbone(config, name):
    if "backbone" not in config.train:
        raise UserError(
            f"{name} trained a VAE alone, which generates no images: open it with "
            "repae_jax.AutoencoderKL"
        )


def _pipeline_folder(found):
    """The folder of the pipeline that was detected, or of which a DiT's folder or file is part."""
    path = found.path if found.path.is_dir() else found.path.parent
    return path if found.format == PIPELINE else path.absolute().parent
