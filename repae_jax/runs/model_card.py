"""The model card of a pipeline's folder: what the run is, how to use it, and its figures."""

import math

from repae_jax.models.backbones.families import BACKBONES
from repae_jax.models.text_encoders.families import TEXT_ENCODERS
from repae_jax.models.tokenizers.base import is_identity
from repae_jax.runs.metrics import FOLDER, read_history
from repae_jax.runs.open_run import Run

_SHOWN = ("evaluation/", "loss", "diffusion")  # the beginnings of the figures' names
_CLASSES = "images = pipe(class_labels=[0, 1], generator=torch.manual_seed(0)).images"
_PROMPTS = 'images = pipe(prompt="a red circle", generator=torch.manual_seed(0)).images'


def card_of(run: Run) -> str:
    """The text of a run's model card, in Markdown with its header."""
    of_text = run.models.text_encoder is not None
    name = run.config.name or "a run of repae_jax"
    tag = "text-to-image" if of_text else "unconditional-image-generation"
    return "\n".join(
        [
            "---",
            "library_name: diffusers",
            f"pipeline_tag: {tag}",
            "tags: [repa-e, repae_jax]",
            "---",
            "",
            f"# {name}",
            "",
            "A latent diffusion transformer, trained with repae_jax (REPA-E, arXiv 2504.10483, in "
            "JAX). This",
            "folder holds everything that PyTorch needs: it takes `torch`, `diffusers`"
            + (" and `transformers`." if of_text else "."),
            "",
            "```python",
            "import torch",
            "from diffusers import DiffusionPipeline",
            "",
            'pipe = DiffusionPipeline.from_pretrained("FOLDER", trust_remote_code=True)',
            _PROMPTS if of_text else _CLASSES,
            'images[0].save("image.png")',
            "```",
            "",
            "The code is in the folder: `repae_pipeline.py`, and a `.py` file beside each part.",
            "The docstring of the pipeline's `__call__` has the arguments.",
            "",
            "## The run",
            "",
            *_table(("", ""), _facts(run)),
            "",
            "`run.json` holds the whole configuration.",
            "",
            "## Defaults of the sampler",
            "",
            *_table(("setting", "value"), _sampling(run)),
            *_figures(run),
            "",
        ]
    )


def _facts(run):
    config, models = run.config, run.models
    section = config.tokenizer
    facts = {
        "backbone": BACKBONES[config.backbone.family].text(models.backbone),
        "tokenizer": "none: the images are the latents"
        if is_identity(models.tokenizer)
        else f"{type(models.tokenizer).__name__} {section.get('arch') or ''}".strip(),
        "trained": ", ".join(config.train),
        "steps": f"{int(run.state.step):,} of {config.batch_size} images",
        "data": f"{config.data.source} {config.data.name}".strip()
        + f", {config.data.resolution} x {config.data.resolution} pixels",
        "weights": f"moving average, decay {config.ema_decay}",
    }
    if models.text_encoder is not None:
        family = TEXT_ENCODERS[config.text_encoder.family]
        facts["text encoder"] = family.text(models.text_encoder)
    else:
        facts["classes"] = str(config.data.num_classes)
    if config.teachers:
        facts["aligned with"] = ", ".join(config.teachers)
    return facts.items()


def _sampling(run):
    return [(name, value) for name, value in sorted(run.config.sampling.to_dict().items())]


def _figures(run):
    """The newest figures that the run logged up to its step."""
    if not (run.workdir / FOLDER).is_dir():  # before the import of TensorFlow
        return []
    step, rows = int(run.state.step), []
    for name, (steps, values) in sorted(read_history(run.workdir).items()):
        kept = [pair for pair in zip(steps, values, strict=True) if pair[0] <= step]
        if name.startswith(_SHOWN) and kept and math.isfinite(kept[-1][1]):
            rows.append((name, f"{kept[-1][1]:.4g}", f"{kept[-1][0]:,}"))
    if not rows:
        return []
    return ["", "## Figures", "", *_table(("measure", "value", "step"), rows)]


def _table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in lines]
