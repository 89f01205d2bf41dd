"""The arguments of a pipeline's call, checked and as `generate_all` takes them."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from repae_jax.config.modules import build_sampler
from repae_jax.errors import UserError
from repae_jax.parallel.mesh import padded_batch_size, place_key
from repae_jax.runs.captions import tokenized, warn_of_cut_prompts, with_negative_prompt
from repae_jax.runs.pretrained_run import Generator
from repae_jax.sampling.class_names import class_numbers
from repae_jax.sampling.generate import Inputs, number_of
from repae_jax.sampling.layouts import prompt_text
from repae_jax.sampling.prompts import prompt_indices, spread
from repae_jax.sampling.sampler import Sampler, check_null_class
from repae_jax.utils.schema import Batch, Count, check_schema, short_repr

_PER_DEVICE = 32  # images per batch and device, as `generate` has it
_SEEDS = 2**32

What = int | str | None | Sequence[int | str | None]


class Call(NamedTuple):
    """A checked call: the sampler, and the arguments of `generate_all` beside the program."""

    sampler: Sampler
    arguments: dict[str, Any]


def check_call(
    generator: Generator,
    mesh: Mesh,
    what: What,
    *,
    images_per_prompt: int = 1,
    seed: int = 0,
    guidance_interval: tuple[float, float] | None = None,
    negative_prompt: str | None = None,
    batch_size: int | None = None,
    one_batch: bool = False,
    **options: Any,
) -> Call:
    """Check the arguments of `Pipeline.__call__`.

    Args:
      generator: the networks, their weights and their configuration.
      mesh: the devices.
      what, images_per_prompt, seed, guidance_interval, negative_prompt, batch_size: see there.
      one_batch: compute all images at once.
      options: keys of `config.sampling`; None is the configuration's value.

    Raises:
      UserError: a class is unknown, a prompt is empty, or an option is out of range.
    """
    if guidance_interval is not None:
        options |= _interval(guidance_interval)
    inputs, indices = _inputs(generator, what, images_per_prompt)
    sampler = _sampler(generator, inputs, options)
    count = number_of(inputs)
    if batch_size is not None:
        check_schema(batch_size, Batch, source="batch_size")
    size = padded_batch_size(mesh, count if one_batch else batch_size, _PER_DEVICE, count)
    arguments = dict(
        weights=_weights(generator, negative_prompt, sampler),
        key=place_key(mesh, _checked_seed(seed)),
        inputs=inputs,
        batch_size=size,
        indices=indices,
        mesh=mesh,
    )
    return Call(sampler, arguments)


def _inputs(generator, what, each) -> tuple[Inputs, np.ndarray | None]:
    """The inputs of all images, and the indices of their noise; None for 0, 1, 2, ..."""
    what = what.tolist() if hasattr(what, "tolist") else what
    what = [what] if what is None or isinstance(what, int | str) else list(what)
    check_schema(each, Count, source="images_per_prompt")
    if generator.tokenize is None:
        if each != 1:
            raise UserError(
                f"images_per_prompt is {each}, but {generator.name} takes classes: repeat them in "
                "the list"
            )
        return {"label": _labels(generator, what)}, None
    if not what:
        raise UserError("the list of prompts is empty: give at least one")
    prompts = [prompt_text(text, "the prompt") for text in what]
    warn_of_cut_prompts(generator.tokenize, prompts)
    inputs = spread(tokenized(generator.tokenize, prompts), each)
    return inputs, prompt_indices(prompts, each)


def _labels(generator, what):
    config = generator.config
    if None in what and config.condition.drop == 0:
        raise UserError(
            "a class is None, which asks for the null class, but this generator was trained with "
            "config.condition.drop 0 and has none: give classes"
        )
    return class_numbers(what, generator.class_names, config.data.num_classes)


def _sampler(generator, inputs, options) -> Sampler:
    config = generator.config
    _check_options(config.sampling, options)
    if "label" in inputs and (inputs["label"] < 0).all():  # no class to guide towards
        scale = options.get("guidance_scale")
        if scale not in (None, 0.0, 1.0):
            raise UserError(
                f"guidance_scale is {scale}, but there is no class to guide towards: leave one of "
                "them out"
            )
        options = options | {"guidance_scale": 1.0}
    sampler = build_sampler(config, **options)
    check_null_class(sampler, config.condition.drop)
    return sampler


def _check_options(section, options):
    for name, value in options.items():
        if name not in section:
            close = difflib.get_close_matches(name, list(section), n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(section)}"
            raise UserError(f"the sampler has no option {name}: {hint}")
        if isinstance(section[name], float) and not _is_number(value):
            raise UserError(f"{name} is {short_repr(value)}: give a number")


def _weights(generator, negative_prompt, sampler) -> Mapping[str, Any]:
    if not negative_prompt:
        return generator.weights
    if generator.tokenize is None:
        raise UserError(
            f"negative_prompt is {short_repr(negative_prompt)}, but {generator.name} takes "
            "classes: leave it out"
        )
    prompt = prompt_text(negative_prompt, "negative_prompt")
    if not sampler.guided:
        raise UserError(
            f"negative_prompt is {short_repr(prompt)}, but at a guidance scale of 1 it has no "
            "effect: set guidance_scale above 1"
        )
    return with_negative_prompt(generator.weights, generator.models, generator.tokenize, prompt)


def _interval(interval):
    try:
        low, high = map(float, interval)
    except (TypeError, ValueError):
        raise UserError(
            f"guidance_interval is {short_repr(interval)}: give two times, such as (0.0, 0.75)"
        ) from None
    return {"guidance_low": low, "guidance_high": high}


def _is_number(value):
    """Whether a value is a number, or None for the configuration's."""
    number = isinstance(value, int | float | np.integer | np.floating)
    return value is None or (number and not isinstance(value, bool))


def _checked_seed(seed):
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < _SEEDS:
        raise UserError(f"seed is {short_repr(seed)}: give a whole number from 0 to {_SEEDS - 1}")
    return int(seed)
