"""The `report` command: a trained run's numbers and pictures on one page."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.config.modules import build_sampler
from repae_jax.config.storage import to_json
from repae_jax.data.pipeline import eval_batches
from repae_jax.data.source import Source
from repae_jax.evaluation.curves import loss_curves
from repae_jax.evaluation.latents import latent_statistics, pca_colors
from repae_jax.evaluation.reconstruction import mean_psnr
from repae_jax.evaluation.report import Section, write_report
from repae_jax.models.tokenizers.codec import make_codec
from repae_jax.objectives.metrics import CURVES, PANELS
from repae_jax.runs.captions import grid_inputs
from repae_jax.runs.initial_state import initial_tokenizer
from repae_jax.runs.metrics import read_history
from repae_jax.runs.open_run import Run, sampling_weights
from repae_jax.runs.state import averaged_tokenizer
from repae_jax.sampling.class_labels import balanced_labels
from repae_jax.sampling.generate import generate_all, make_generate
from repae_jax.utils import background
from repae_jax.utils.figures import class_grid, pairs_figure, pca_figure, save_png
from repae_jax.utils.finite import NotFinite

HELDOUT = 1000  # maximal number of held-out images to reconstruct
SHOWN = 20
_ROWS, _COLUMNS = 10, 10  # of the grid of generated images

# label, value, note
Summary = list[tuple[str, str, str]]


@dataclasses.dataclass
class Page:
    """A report under construction."""

    folder: pathlib.Path
    summary: Summary = dataclasses.field(default_factory=list)
    sections: list[Section] = dataclasses.field(default_factory=list)

    def add(self, title: str, name: str, picture, text: str) -> None:
        """Add a section with a picture, which is saved as `name`.png."""
        path = save_png(self.folder / f"{name}.png", picture)
        self.sections.append(Section(title, text, path, alt=title))


def write_run_report(
    run: Run,
    source: Source,
    folder: pathlib.Path,
    *,
    heldout: bool = True,
    samples: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> tuple[pathlib.Path, Summary]:
    """Write `report.html` into the run's work directory.

    Args:
      run: the run.
      source: images to reconstruct, with captions if the run has captions.
      folder: the folder for the page's pictures.
      heldout: whether `source` has held-out images. Otherwise it has latents of the training
        split: then their captions are used, and nothing is reconstructed.
      samples: number of images to generate.
      seed: seed of the generated images.
      progress: show a bar.

    Returns:
      The page's path and the summary at its head.

    Raises:
      NotFinite: generated images or reconstructions are NaN or infinite.
    """
    page = Page(folder)
    read = background.start(read_history, run.workdir)  # imports TensorFlow for seconds
    if run.models.backbone is not None:
        _generated(run, source, heldout, page, samples, seed, progress)
    if heldout:
        _reconstructed(run, source, page)
    history = read.result()
    if history:
        shown = [name for name, metrics in CURVES.items() if history.keys() & set(metrics)]
        about = [f"{name}: {PANELS[name]}." for name in shown]
        text = " ".join(["Training, step by step.", *about])
        page.add("Loss curves", "losses", loss_curves(history, CURVES), text)
    prefix = "evaluation/"
    measures = {tag[len(prefix) :]: (tag,) for tag in sorted(history) if tag.startswith(prefix)}
    if measures:
        text = "Of few images: to follow the run by, not to compare with published figures."
        page.add("Measures of the run", "measures", loss_curves(history, measures), text)
    path = write_report(
        run.workdir / "report.html",
        title=f"{run.config.name or 'run'}: step {int(run.state.step)}",
        summary=page.summary,
        sections=page.sections,
        config_text=to_json(run.config),
    )
    return path, page.summary


def _generated(
    run: Run,
    source: Source,
    heldout: bool,
    page: Page,
    samples: int,
    seed: int,
    progress: bool,
) -> None:
    config = run.config
    of_text = run.models.text_encoder is not None
    if of_text:  # text-to-image models are used with guidance
        sampler = build_sampler(config)
        inputs, rows, names = grid_inputs(config, source, _ROWS, _COLUMNS)
    else:
        sampler = build_sampler(config, guidance_scale=1.0)
        rows = balanced_labels(samples, config.data.num_classes)
        inputs = {"label": rows}
        names = [str(c) for c in range(min(_ROWS, config.data.num_classes))]
    images = generate_all(
        make_generate(run.models, sampler),
        sampling_weights(run.state),
        jax.random.key(seed),
        inputs,
        batch_size=min(100, len(rows)),
        progress=progress,
    )
    guidance = f"with guidance {sampler.guidance_scale:g}" if sampler.guided else "without guidance"
    of_caption = "held-out caption" if heldout else "caption of the training images"
    text = (
        f"One row a {of_caption if of_text else 'class'}, drawn {guidance}, by "
        f"{sampler.method} in {sampler.steps} steps from the moving average, seed {seed}: the "
        "first ones, none picked."
    )
    grid = class_grid(images, rows, names, _COLUMNS)
    of = "caption" if of_text else "class"
    page.add(f"Generated images by {of}", "generated", grid, text)
    if config.data.source == "digits":
        _judge_digits(page, images, rows)


def _judge_digits(page: Page, images, labels) -> None:
    from repae_jax.data.digits import load_digits_split, to_scan
    from repae_jax.evaluation.digit_classifier import agreement, fit_digit_svm

    train, heldout = load_digits_split("train"), load_digits_split("heldout")
    svm = fit_digit_svm(train.raw.reshape(-1, 64), train.labels)
    own = agreement(svm, heldout.raw.reshape(-1, 64), heldout.labels)
    generated = agreement(svm, to_scan(images), labels)
    page.summary += [
        (
            "Generated digits read as requested",
            f"{100 * generated.accuracy:.1f} %",
            f"{generated.count} digits, by an SVM fitted on the real training digits",
        ),
        (
            "The SVM on held-out real digits",
            f"{100 * own.accuracy:.1f} %",
            f"{own.count} scans that neither it nor the run has seen",
        ),
    ]


def _reconstructed(run: Run, heldout: Source, page: Page) -> None:
    batches = eval_batches(heldout, min(HELDOUT, len(heldout)))
    images = np.asarray(jnp.asarray(next(iter(batches))["image"]))
    encode, decode = make_codec(run.models.tokenizer)
    variables = averaged_tokenizer(run.state)
    latents = encode(variables, images)
    reconstructions, finite = map(np.asarray, decode(variables, latents))
    if not finite.all():
        raise NotFinite(
            f"{run.workdir}: the VAE's reconstruction of held-out image {finite.argmin()} is NaN "
            "or infinite: the run has diverged, take an earlier checkpoint (--step N)"
        )
    psnr = mean_psnr(images, reconstructions)
    page.summary.append(
        ("Reconstruction of held-out images", f"{psnr:.2f} dB", f"mean PSNR of {len(images)}")
    )
    variance = latent_statistics(np.asarray(latents)).variance
    page.summary.append(("Latent variance", f"{variance:.3f}", "of posterior means, all values"))
    picture = pairs_figure(images[:SHOWN], reconstructions[:SHOWN])
    text = f"Mean PSNR over {len(images)} held-out images: {psnr:.2f} dB (posterior means)."
    page.add("Held-out images and their reconstructions", "reconstructions", picture, text)

    first = encode(initial_tokenizer(run.config, run.models), images[:SHOWN])
    before, after = pca_colors([np.asarray(first), np.asarray(latents[:SHOWN])])
    text = (
        "The first three principal components of the latents as red, green and blue, with the "
        "VAE's weights before the first step and now; colors mean the same within a row only."
    )
    picture = pca_figure(images[:SHOWN], {"before": before, "after": after})
    page.add("The latent space", "latents", picture, text)
