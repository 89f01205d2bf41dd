"""A generator as one object that is called: `repae_jax.Pipeline.from_pretrained`."""

from __future__ import annotations

import functools
import pathlib
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from repae_jax.interop import hub
from repae_jax.models.tokenizers.base import is_identity
from repae_jax.parallel.mesh import make_mesh
from repae_jax.runs.conversion import convert
from repae_jax.runs.pipeline_call import What, check_call
from repae_jax.runs.pretrained import PretrainedVAE
from repae_jax.runs.pretrained_run import Generator, Source
from repae_jax.runs.workdir import is_run
from repae_jax.sampling.generate import generate_all, generate_with_trail, make_generate
from repae_jax.utils.figures import TILE, image_grid
from repae_jax.utils.images import to_uint8
from repae_jax.utils.schema import Count, check_schema

if TYPE_CHECKING:
    from PIL.Image import Image

_PROGRAMS = 16  # compiled samplers that are kept


class Trace(NamedTuple):
    """Images, and the latents after K of the steps that made them.

    Attributes:
      images: uint8 (N, H, W, 3).
      steps: the K numbers of the steps, from 1 up.
      frames: uint8 (K, N, H, W, 3), the latents decoded as they are, with their noise.
      latents: float32 (K, N, h, w, c), not normalized; the last ones are those of the images.
    """

    images: np.ndarray
    steps: tuple[int, ...]
    frames: np.ndarray
    latents: np.ndarray


class Pipeline:
    """A trained generator: `pipeline(classes or prompts)` gives images.

    A call gives the images of the command `generate` with the same checkpoint, options and seed.

    The first call with another number of images (up to a batch), method, number of steps or other
    option of the sampler compiles a program, which takes seconds to minutes. Later calls with the
    same ones use it again, whatever the seed, the classes, the prompts and the negative prompt are.
    The programs of the last 16 samplers are kept.

    Attributes:
      config: the configuration of the generator.
      class_names: the names of the classes in their order; None if the source has none.
      step: the training step of its checkpoint.
    """

    def __init__(self, generator: Generator, source: Source, mesh: Mesh):
        """Use `from_pretrained`."""
        self.config = generator.config
        self.class_names = generator.class_names
        self.step = generator.step
        self._generator, self._source, self._mesh = generator, source, mesh
        self._program = functools.lru_cache(_PROGRAMS)(
            functools.partial(make_generate, generator.models, mesh=mesh)
        )
        self._check = functools.partial(check_call, generator, mesh)

    @classmethod
    def from_pretrained(
        cls,
        name: str | pathlib.Path,
        *,
        step: int | None = None,
        config: str | ConfigDict | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Pipeline:
        """Load a generator to all devices of this process; nothing is written.

        `name` is one of:

        - a work directory of `train`;
        - any file or folder that `convert` turns into a work directory: a checkpoint of the
          original REPA-E, REPA, DiT, LightningDiT, RAE, diffusion-bench, JiT or fuse-dit, bare
          weights, the folder of a DiTPipeline, or one that `save_pretrained` wrote;
        - a repository on the Hugging Face hub that holds such a folder, "owner/name", or a file in
          one, "owner/name/file.pt".

        Args:
          name: as above.
          step: for a work directory, the training step of the checkpoint; None: the newest.
          config: for other files, a configuration in place of the one that they determine: a file
            such as "configs/digits.py:vanilla", or a ConfigDict.
          overrides: for other files, keys of the configuration with other values, such as
            {"tokenizer.weights": "sd-vae"} for a checkpoint without its VAE.

        Raises:
          UserError: `name` does not exist, is damaged or holds no generator, or a network that the
            files lack is not named by the configuration.
        """
        source, mesh = Source(name, step, config, overrides or {}), make_mesh()
        return cls(source.open(mesh), source, mesh)

    def __repr__(self) -> str:
        return f"Pipeline({self._generator.name}, step {self.step}, {self.describe()})"

    def describe(self) -> str:
        """The kind of condition and the size of the images in words."""
        side = self.config.data.resolution
        what = "prompts" if self.takes_prompts else f"{self.config.data.num_classes} classes"
        return f"{what}, images of {side} x {side}"

    @property
    def takes_prompts(self) -> bool:
        """Whether a call takes prompts; otherwise it takes classes."""
        return self._generator.tokenize is not None

    @property
    def is_guidable(self) -> bool:
        """Whether there is a null condition: guidance, and images without a class, need it."""
        return self.config.condition.drop > 0

    def __call__(
        self,
        what: What,
        *,
        images_per_prompt: int = 1,
        seed: int = 0,
        steps: int | None = None,
        method: str | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        negative_prompt: str | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        **options: Any,
    ) -> np.ndarray:
        """Generate images, uint8 (N, H, W, 3); `to_pil` makes pictures of them.

        Args:
          what: one or a list of: class numbers or names, None for an image without a class; or, for
            a generator of captions, prompts. Image i of classes depends on the seed, i and its
            class alone, an image of a prompt on the seed, the prompt and its number among the
            images of the prompt.
          images_per_prompt: images of each prompt, which follow each other.
          seed: 0 to 2**32 - 1.
          steps: integration steps; None: the configuration's, as for the options below.
          method: "euler" or "heun" (ODE), "euler-maruyama" (SDE); of a DiT "ddpm" or "ddim".
          guidance_scale: the scale of classifier-free guidance, 0 or more; 1 is none.
          guidance_interval: the lowest and the highest time with guidance, 0 to 1; 1 is noise.
          negative_prompt: the prompt that guidance leads away from.
          batch_size: images that are computed at once, rounded up to a multiple of the number of
            devices; None: 32 per device.
          progress: show a bar.
          options: further keys of `config.sampling`, such as `shift`.

        Raises:
          UserError: a class is unknown, a prompt is empty, or an option is out of range.
          NotFinite: latents or pixels of an image are NaN or infinite.
        """
        call = self._check(
            what,
            images_per_prompt=images_per_prompt,
            seed=seed,
            steps=steps,
            method=method,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            negative_prompt=negative_prompt,
            batch_size=batch_size,
            **options,
        )
        return generate_all(self._program(call.sampler), **call.arguments, progress=progress)

    def trace(self, what: What, *, frames: int = 8, **options: Any) -> Trace:
        """Generate images in one batch, and keep what they are on the way.

        The images are those of a call, to one level of a pixel.

        Args:
          what: see `__call__`.
          frames: the number of kept steps, at most all; they are evenly spaced and end with the
            last. Another number compiles another program.
          options: as of `__call__`, without `batch_size` and `progress`.

        Raises:
          UserError, NotFinite: see `__call__`.
        """
        check_schema(frames, Count, source="frames")
        call = self._check(what, one_batch=True, **options)
        last = call.sampler.steps
        kept = np.linspace(last / frames, last, frames).round().astype(int).clip(1)
        kept = tuple(np.unique(kept).tolist())
        program = self._program(call.sampler, kept=kept)
        images, latents = generate_with_trail(program, **call.arguments)
        decoded = np.stack([self.decode(states) for states in latents])
        return Trace(images, kept, decoded, latents)

    @functools.cached_property
    def vae(self) -> PretrainedVAE:
        """The tokenizer with its weights, as `repae_jax.AutoencoderKL` gives it."""
        variables = dict(self._generator.weights["tokenizer"])
        norm = jax.tree.map(np.asarray, dict(self._generator.weights["latent_norm"]))
        return PretrainedVAE(
            self._generator.models.tokenizer,
            variables.pop("params", {}),
            statistics={name: norm[name] for name in ("mean", "var")},
            constants=variables,
        )

    def encode(self, images: Any) -> np.ndarray:
        """Images (B, H, W, 3), uint8 or float in [-1, 1] -> float32 latents (B, h, w, c).

        They are the most likely latents of the tokenizer, not normalized. `vae.encode` gives their
        distribution, and `vae.normalize` the latents that the backbone learns.

        Raises:
          TypeError, UserError: images of another type, range or shape.
        """
        return np.asarray(self.vae.encode(images).mean, np.float32)

    def decode(self, latents: Any) -> np.ndarray:
        """Latents (B, h, w, c) of `encode` -> images uint8 (B, H, W, 3).

        Raises:
          TypeError, UserError: latents of another type or shape.
          NotFinite: the images hold NaN or infinite values.
        """
        rounded = is_identity(self._generator.models.tokenizer)
        return np.asarray(to_uint8(self.vae.decode(jnp.asarray(latents)), rounded=rounded))

    def save_pretrained(self, folder: str | pathlib.Path) -> str:
        """Write a new folder as `convert` does with `--to pipeline`, which diffusers opens.

        A generator of other files than a work directory is first converted to a temporary one.

        Returns:
          What was written, in words.

        Raises:
          UserError: the folder exists and is not empty, or the format has no place for this
            generator.
        """
        own = is_run(self._source.name)  # to which other checkpoints may have been added
        with self._source.as_run() as workdir:
            return convert(
                str(workdir),
                pathlib.Path(folder),
                "pipeline",
                lambda derive: derive(),
                step=self.step if own else None,
                class_names=self.class_names,
                progress=False,
            )

    def push_to_hub(
        self, repository: str, *, private: bool | None = None, message: str = ""
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub; returns the address.

        Args:
          repository: owner/name; it is made if it does not exist.
          private: whether a new repository is private; None: as the account has it.
          message: the commit's message.

        Raises:
          UserError: see `save_pretrained`, or the hub refuses the upload (`hf auth login`).
        """
        with tempfile.TemporaryDirectory(prefix="repae_jax_") as folder:
            path = pathlib.Path(folder) / "pipeline"
            self.save_pretrained(path)
            return hub.upload(path, repository, private=private, message=message)

    @staticmethod
    def to_pil(images: np.ndarray) -> list[Image]:
        """Images uint8 (N, H, W, 3) as pictures of PIL."""
        from PIL import Image

        return [Image.fromarray(image) for image in np.asarray(images)]

    @staticmethod
    def grid(images: np.ndarray, columns: int = 8) -> Image:
        """Images uint8 (N, H, W, 3) as one picture of PIL, small ones enlarged by a whole factor.

        Args:
          images: the images.
          columns: images a row.
        """
        from PIL import Image

        images = np.asarray(images)
        scale = max(1, TILE // images.shape[2])
        return Image.fromarray(image_grid(images, min(columns, len(images)), pad=4, scale=scale))
