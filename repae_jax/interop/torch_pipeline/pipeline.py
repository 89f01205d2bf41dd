"""The pipeline of a run: from classes or prompts to images, in PyTorch and diffusers alone."""

import math
from collections.abc import Callable

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

UNCONDITIONAL = -1  # the label of no class
OUTPUTS = ("pil", "np", "pt", "latent")


class RepaePipeline(DiffusionPipeline):
    """Generates images of classes, or of prompts.

    Components:
      transformer: predicts the velocity, or the noise, of latents.
      scheduler: the sampler; its config holds the run's own settings, which are the defaults.
      vae: decodes the latents; None for a model of pixels.
      text_encoder, tokenizer: of a model of prompts.

    Entries of its config:
      id2label: {"0": the name of class 0, ...}; None without names.
      text_length: the most tokens of a prompt.
      pad_token_id: fills the end of a shorter prompt.
      mask_padding: whether padding is left out, as of language models; CLIP's takes part.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["vae", "text_encoder", "tokenizer"]  # noqa: RUF012

    def __init__(
        self,
        transformer,
        scheduler,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        id2label: dict | None = None,
        text_length: int = 0,
        pad_token_id: int = 0,
        mask_padding: bool = True,
    ):
        super().__init__()
        self.register_modules(
            transformer=transformer, scheduler=scheduler, vae=vae, text_encoder=text_encoder,
            tokenizer=tokenizer,
        )  # fmt: skip
        self.register_to_config(
            id2label=id2label, text_length=text_length, pad_token_id=pad_token_id,
            mask_padding=mask_padding,
        )  # fmt: skip
        self.labels = {name: int(number) for number, name in (id2label or {}).items()}

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | list[int | str] | None = None,
        prompt: str | list[str] | None = None,
        *,
        negative_prompt: str = "",
        num_images: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        method: str | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        class_token: torch.Tensor | None = None,
        step_noise: Callable[[int], torch.Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ):
        """Generate images.

        Args:
          class_labels: of a model of classes, numbers or names; -1 is no class.
          prompt: of a model of prompts.
          negative_prompt: what guidance leads away from; "" is the empty prompt of the training.
          num_images: images of each class or prompt.
          num_inference_steps, method: of the sampler; None: the run's.
          guidance_scale: 1 is none, 0 samples without a condition; None: the run's.
          guidance_interval: the lowest and the highest time of guidance, 0 to 1; None: the run's.
          generator: of all noise; a list has one for each image.
          latents: the initial standard normal noise (B, c, h, w), in place of the generator's.
          class_token: the initial noise (B, D) of a class token.
          step_noise: step, from 0 -> its noise (B, c, h, w); with a class token a pair with (B, D).
          output_type: "pil"; "np", float (B, H, W, 3) from 0 to 1; "pt", float (B, 3, H, W) from 0
            to 1; "latent", the normalized latents (B, c, h, w).
          return_dict: return an object with `images`, or a tuple.

        Raises:
          ValueError: an argument has no meaning for this model, or is out of range; or latents or
            pixels become NaN or infinite.
        """
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type is {output_type!r}: use one of {', '.join(OUTPUTS)}")
        if isinstance(num_images, bool) or not isinstance(num_images, int) or num_images < 1:
            raise ValueError(f"num_images is {num_images!r}: give a whole number from 1 up")
        scheduler, device = self.scheduler, self._execution_device
        scheduler.set_timesteps(num_inference_steps, device, method=method)
        scale, low, high = self._guidance(guidance_scale, guidance_interval)
        condition = self._condition(class_labels, prompt, num_images, device)
        count = len(next(iter(condition.values())))
        null = None
        if scale != 1.0:
            null = self._null(negative_prompt, count, condition, device)
        elif negative_prompt:
            raise ValueError(
                "negative_prompt has no effect at a guidance_scale of 1: give another scale"
            )
        states = self._noise(count, generator, latents, class_token, device)
        states = tuple(scheduler.config.noise_scale * state for state in states)
        for index in self.progress_bar(range(len(scheduler.timesteps))):
            guided = scale != 1.0 and scheduler.is_guided(index, low, high)
            t = scheduler.timesteps[index].expand(count)
            if guided:
                outputs = self._guided(states, t, condition, null, scale)
            else:
                outputs = self._predict(states, t, condition)
            noise, step = None, scheduler.step_of(index)
            if scheduler.stochastic:
                noise = self._step_noise(step, step_noise, generator, states)
            states = scheduler.step(outputs, index, states, noise)
            if not all(torch.isfinite(state).all() for state in states):
                raise ValueError(
                    f"latents are NaN or infinite from sampling step {step + 1} on: lower the "
                    "guidance scale, or load the weights as float32"
                )
        images = states[0] if output_type == "latent" else self._images(states[0], output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _guidance(self, scale, interval):
        config = self.scheduler.config
        scale = config.guidance_scale if scale is None else scale
        if not 0.0 <= scale < math.inf:
            raise ValueError(
                f"guidance_scale is {scale}: give a finite number from 0 up (0 is unconditional, 1 "
                "no guidance)"
            )
        if interval is None:
            interval = config.guidance_low, config.guidance_high
        if len(interval) != 2 or not 0.0 <= interval[0] <= interval[1] <= 1.0:
            raise ValueError(
                f"guidance_interval is {interval}: give two times with 0 <= low <= high <= 1"
            )
        return float(scale), *interval

    def _condition(self, class_labels, prompt, num_images, device):
        """The transformer's arguments for all images: labels (B,), or states and mask of a text."""
        if self.text_encoder is None:
            if prompt is not None or class_labels is None:
                raise ValueError("this is a model of classes: give class_labels, and no prompt")
            many = isinstance(class_labels, list | tuple | np.ndarray | torch.Tensor)
            given = list(class_labels) if many else [class_labels]
            labels = torch.tensor([self._label(label) for label in given], device=device)
            if not len(labels):
                raise ValueError("class_labels is empty: give a class")
            return {"class_labels": labels.repeat_interleave(num_images)}
        if class_labels is not None or prompt is None:
            raise ValueError("this is a model of prompts: give a prompt, and no class_labels")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts or not all(isinstance(one, str) for one in prompts):
            raise ValueError(f"prompt is {prompt!r}: give a text, or a list of texts")
        text, mask = self.encode_prompts(prompts, device)
        found = {"text": text, "mask": mask}
        return {name: part.repeat_interleave(num_images, dim=0) for name, part in found.items()}

    def _label(self, label):
        config = self.transformer.config
        if isinstance(label, str):
            if label not in self.labels:
                known = ", ".join(list(self.labels)[:5]) or "numbers alone"
                raise ValueError(f"class_labels has {label!r}: the classes are {known}, ...")
            return self.labels[label]
        number = int(label)
        if number != label or not UNCONDITIONAL <= number < config.num_classes:
            raise ValueError(
                f"class_labels has {label}: the model's classes are 0 to {config.num_classes - 1}"
            )
        return self._null_label() if number == UNCONDITIONAL else number

    def _null_label(self):
        config = self.transformer.config
        if not config.null_class:
            raise ValueError(
                "the model was trained without dropped classes, so it has no null class: give "
                "classes, and a guidance_scale of 1"
            )
        return config.num_classes

    def _null(self, negative_prompt, count, condition, device):
        """The condition that guidance leads away from, for all images."""
        if self.text_encoder is None:
            if negative_prompt:
                raise ValueError("this is a model of classes, which takes no negative_prompt")
            return {"class_labels": torch.full_like(condition["class_labels"], self._null_label())}
        text, mask = self.encode_prompts([negative_prompt], device)
        found = {"text": text, "mask": mask}
        return {name: part.expand(count, *part.shape[1:]) for name, part in found.items()}

    def encode_prompts(self, prompts, device=None):
        """The states (B, L, C) of prompts, and their mask (B, L): False for padding.

        The end of a prompt of more than `text_length` tokens is not read.
        """
        config, device = self.config, device or self._execution_device
        length = config.text_length
        rows = self.tokenizer(prompts, truncation=True, max_length=length)["input_ids"]
        ids = torch.full((len(rows), length), config.pad_token_id)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row, dtype=ids.dtype)
            mask[number, : len(row)] = True
        ids, mask = ids.to(device), mask.to(device)
        if not config.mask_padding:
            return self.text_encoder(input_ids=ids).last_hidden_state.float(), mask
        if not mask.any():
            width = self.transformer.config.text_width
            return torch.zeros(*ids.shape, width, device=device), mask
        inside = torch.where(mask, ids, 0)  # the id of padding may lie outside of the vocabulary
        states = self.text_encoder(input_ids=inside, attention_mask=mask.long()).last_hidden_state
        return torch.where(mask[..., None], states.float(), 0.0), mask

    def _noise(self, count, generator, latents, class_token, device):
        """The initial noise: latents, and a class token."""
        config = self.transformer.config
        side = config.latent_size
        shapes = {"latents": (count, config.latent_channels, side, side)}
        if of_class := getattr(config, "class_token_dim", 0):
            shapes["class_token"] = (count, of_class)
        elif class_token is not None:
            raise ValueError("class_token is given, but the model denoises none: leave it out")
        given = {"latents": latents, "class_token": class_token}
        states = []
        for name, shape in shapes.items():
            noise = given[name]
            if noise is None:
                noise = randn_tensor(shape, generator, device, torch.float32)
            elif tuple(noise.shape) != shape:
                raise ValueError(f"{name} has the shape {tuple(noise.shape)}: give {shape}")
            states.append(noise.to(device, torch.float32))
        return tuple(states)

    def _step_noise(self, step, step_noise, generator, states):
        if step_noise is None:
            return tuple(
                randn_tensor(tuple(state.shape), generator, state.device, torch.float32)
                for state in states
            )
        noise = step_noise(step)
        noise = noise if isinstance(noise, tuple | list) else (noise,)
        wrong = [tuple(part.shape) for part in noise]
        if wrong != [tuple(state.shape) for state in states]:
            raise ValueError(f"step_noise({step}) has the shapes {wrong}: give those of the noise")
        return tuple(part.to(states[0].device) for part in noise)

    def _predict(self, states, t, condition):
        """The transformer's outputs, a tuple."""
        latents, *class_token = states
        extra = {"class_token": class_token[0]} if class_token else {}
        found = self.transformer(latents, t, **condition, **extra)
        return found if isinstance(found, tuple) else (found,)

    def _guided(self, states, t, condition, null, scale):
        """uncond + scale (cond - uncond) in the guided channels, cond in the others."""
        config, channels = self.scheduler.config, states[0].shape[1]
        of_class = config.class_token_guidance or scale
        whole = not config.guidance_channels
        unguided = scale == 0.0 and whole and not config.class_token_guidance
        if unguided and not self.scheduler.of_chain:
            return self._predict(states, t, null)
        twice = tuple(torch.cat([state, state]) for state in states)
        both = {name: torch.cat([part, null[name]]) for name, part in condition.items()}
        outputs = self._predict(twice, torch.cat([t, t]), both)
        guided = []
        for number, output in enumerate(outputs):
            cond, uncond = output.float().chunk(2)
            mixed = uncond + (of_class if number else scale) * (cond - uncond)
            if not number:
                first = config.guidance_channels or channels
                mixed = torch.cat([mixed[:, :first], cond[:, first:]], dim=1)
            guided.append(mixed)
        return tuple(guided)

    def _images(self, latents, output_type):
        """Latents -> images; pixels are cut off below as in training's samples, not rounded."""
        images = self._decode(self.transformer.denormalize(latents)).float()
        if not torch.isfinite(images).all():
            raise ValueError("pixels are NaN or infinite, though the latents are not")
        images = (images + 1.0) / 2.0
        if output_type == "pt":
            return images.clamp(0.0, 1.0)
        images = images.permute(0, 2, 3, 1).cpu()
        if output_type == "np":
            return images.clamp(0.0, 1.0).numpy()
        pixels = 255.0 * images
        pixels = (pixels.round() if self.vae is None else pixels).clamp(0.0, 255.0)
        return [Image.fromarray(image) for image in pixels.to(torch.uint8).numpy()]

    def _decode(self, latents):
        """Latents (B, c, h, w) -> images (B, 3, H, W), about [-1, 1]."""
        vae = self.vae
        if vae is None:
            return latents
        kind = type(vae).__name__
        latents = latents.to(next(vae.decoder.parameters()).dtype)
        if kind in ("AutoencoderKLQwenImage", "AutoencoderKLWan"):  # videos of one frame
            return vae.decode(latents[:, :, None]).sample[:, :, 0]
        if kind == "AutoencoderKLFlux2":  # 2 x 2 positions are the channels of one
            x = latents.unflatten(1, (-1, 2, 2)).permute(0, 1, 4, 2, 5, 3)
            latents = x.flatten(4, 5).flatten(2, 3)
        if kind == "AutoencoderRAE":  # it reverses its own normalization, and gives [0, 1]
            latents = vae._normalize_latents(latents) * vae.config.scaling_factor
            return 2.0 * vae.decode(latents).sample - 1.0
        return vae.decode(latents).sample
