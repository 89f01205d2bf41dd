"""Pictures of images, latents and losses; plain arrays in, pixels out.

Tiles are composed pixel by pixel, never resampled: what a figure shows is what the model made.
Curves use the Okabe-Ito colours, which all common kinds of colour vision can tell apart.
"""

import io
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from repae_jax.atomic import write_atomically

PAPER, INK, FAINT = 255, 34, 0.25
TILE = 64  # smaller images are enlarged, by a whole factor, up to about this many pixels
PAD = 4
CURVE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

History = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def image_grid(images: np.ndarray, columns: int, *, pad: int = 2, scale: int = 1) -> np.ndarray:
    """Lays images out row by row on white.

    Args:
      images: (N, H, W, 3) uint8, N > 0.
      columns: images a row; places left over in the last row stay white.
      pad: white pixels between images and around them.
      scale: whole factor by which every pixel is enlarged.

    Returns:
      uint8 (rows * (scale H + pad) + pad, columns * (scale W + pad) + pad, 3).

    Raises:
      ValueError: images of another shape or dtype, or columns or scale under 1.
    """
    images = _checked(images)
    if columns < 1 or scale < 1:
        raise ValueError(f"columns and scale must be at least 1, got {columns} and {scale}")
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    height, width = height * scale + pad, width * scale + pad
    grid = np.full((rows * height + pad, columns * width + pad, 3), PAPER, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * height + pad, index % columns * width + pad
        tile = image.repeat(scale, 0).repeat(scale, 1)
        grid[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return grid


def class_grid(
    images: np.ndarray, labels: np.ndarray, classes: Sequence[str], per_class: int
) -> np.ndarray:
    """One row a class, its name at the left: the first `per_class` images of each.

    Args:
      images: (N, H, W, 3) uint8.
      labels: (N,) integers, indices into `classes`.
      classes: the rows' names; a class with too few images leaves places white.
      per_class: images a row.

    Returns:
      uint8 (height, width, 3).

    Raises:
      ValueError: images of another shape or dtype, not as many labels, or no classes.
    """
    images, labels = _checked(images), np.asarray(labels)
    if labels.shape != images.shape[:1] or not len(classes):
        raise ValueError(
            f"{len(images)} images need as many labels and at least one class, got labels of "
            f"shape {labels.shape} and {len(classes)} classes"
        )
    rows = np.full((len(classes), per_class, *images.shape[1:]), PAPER, np.uint8)
    for index in range(len(classes)):
        chosen = images[labels == index][:per_class]
        rows[index, : len(chosen)] = chosen
    return _labelled_rows(rows, [str(name) for name in classes])


def pairs_figure(
    originals: np.ndarray, reconstructions: np.ndarray, *, columns: int = 10
) -> np.ndarray:
    """Each reconstruction right under its original; both (N, H, W, 3) uint8.

    Returns:
      uint8 (height, width, 3), in bands of at most `columns` pairs.

    Raises:
      ValueError: images of another shape or dtype, or not as many of each.
    """
    return _strips({"original": originals, "reconstruction": reconstructions}, columns)


def pca_figure(
    images: np.ndarray, before: np.ndarray, after: np.ndarray, *, columns: int = 10
) -> np.ndarray:
    """Images, and under each its latent as colours before and after training.

    Args:
      images: (N, H, W, 3) uint8.
      before, after: (N, h, w, 3) uint8, from `latents.pca_colours`; each latent position is
        shown as a block of the image's size / h.
      columns: images a band.

    Returns:
      uint8 (height, width, 3).

    Raises:
      ValueError: images of another shape or dtype, or not as many of each.
    """
    return _strips({"image": images, "before": before, "after": after}, columns)


def loss_curves(history: History, groups: Mapping[str, Sequence[str]]):
    """Small multiples: one panel a group, one curve a metric.

    Long curves are drawn faintly, with a moving average over a fiftieth of their length on top.
    A panel whose values are positive and span over two orders of magnitude is logarithmic, and
    says so. Values that are not finite leave gaps.

    Args:
      history: metric -> (steps, values), of equal length.
      groups: panel title -> its metrics; metrics that history lacks are left out, and so are
        panels of which nothing is left (a run without a GAN has no GAN losses).

    Returns:
      a matplotlib Figure, not registered with pyplot.

    Raises:
      ValueError: nothing is left to draw, or steps and values differ in length.
    """
    from matplotlib.figure import Figure

    panels = {
        title: {name: _curve(name, *history[name]) for name in names if name in history}
        for title, names in groups.items()
    }
    panels = {title: curves for title, curves in panels.items() if curves}
    if not panels:
        raise ValueError(f"no curves: the history has {sorted(history)}, the groups {dict(groups)}")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(9.6 if columns == 2 else 6.4, 2.7 * rows), layout="constrained")
    for index, (title, curves) in enumerate(panels.items()):
        _draw_panel(figure.add_subplot(rows, columns, index + 1), title, curves)
    return figure


def depth_figure(
    times: Sequence[float],
    tables: Mapping[str, np.ndarray],
    references: Mapping[str, Mapping[str, float]],
):
    """A quantity over a network's blocks and noise levels: a heat map and curves for each.

    Args:
      times: noise levels (T,).
      tables: title -> (T, depth) values.
      references: title -> {name: value}, drawn as dashed lines.

    Returns:
      a matplotlib Figure, not registered with pyplot.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.0 * len(tables)), layout="constrained")
    for row, (title, table) in enumerate(tables.items()):
        blocks = np.arange(1, table.shape[1] + 1)
        axes = figure.add_subplot(len(tables), 2, 2 * row + 1)
        image = axes.imshow(table, aspect="auto", cmap="viridis", interpolation="nearest")
        axes.set_yticks(range(len(times)), [f"t = {time:g}" for time in times])
        shown = blocks[:: max(1, len(blocks) // 8)]
        axes.set_xticks(shown - 1, shown)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("block")
        figure.colorbar(image, ax=axes)
        axes = figure.add_subplot(len(tables), 2, 2 * row + 2)
        for index, (time, values) in enumerate(zip(times, table, strict=True)):
            colour = CURVE_COLOURS[index % len(CURVE_COLOURS)]
            axes.plot(blocks, values, color=colour, marker=".", label=f"t = {time:g}")
        for name, value in references.get(title, {}).items():
            axes.axhline(value, color="#888888", linestyle="--", linewidth=1)
            axes.annotate(name, (blocks[0], value), fontsize=8, va="bottom")
        axes.set_xlabel("block")
        axes.legend(fontsize=8, frameon=False)
    return figure


def save_png(path: str | os.PathLike, picture) -> pathlib.Path:
    """Writes a uint8 (H, W, 3) array or a matplotlib Figure as PNG, atomically; gives the path.

    Raises:
      ValueError: an array of another shape or dtype.
      UserError: the file cannot be written.
    """
    buffer = io.BytesIO()
    if hasattr(picture, "savefig"):
        picture.savefig(buffer, format="png", dpi=160)
    else:
        from PIL import Image

        Image.fromarray(_checked(np.asarray(picture)[None])[0]).save(buffer, format="png")
    return write_atomically(path, buffer.getvalue())


def _strips(kinds, columns):
    """Bands of `columns` images; in a band one row a kind, all enlarged to the first's size."""
    first = _checked(next(iter(kinds.values())))
    for name, images in kinds.items():
        if len(_checked(images)) != len(first):
            raise ValueError(f"{len(first)} images need as many of {name!r}, got {len(images)}")
    height, width = first.shape[1:3]
    stacked = np.stack([_enlarged(images, height, width) for images in kinds.values()])
    columns = min(columns, len(first))
    missing = -len(first) % columns
    stacked = np.pad(stacked, ((0, 0), (0, missing), *[(0, 0)] * 3), constant_values=PAPER)
    bands = np.split(stacked, stacked.shape[1] // columns, axis=1)
    drawn = [_labelled_rows(band, list(kinds)) for band in bands]
    gap = np.full((4 * PAD, *drawn[0].shape[1:]), PAPER, np.uint8)
    return np.concatenate([part for band in drawn for part in (gap, band)][1:])


def _enlarged(images, height, width):
    """Nearest neighbour, each source pixel over an equal share of the target's."""
    rows = np.arange(height) * images.shape[1] // height
    return images[:, rows][:, :, np.arange(width) * images.shape[2] // width]


def _labelled_rows(rows, names):
    """A grid of (R, columns, H, W, 3) tiles with `names` (R,) right-aligned at its left."""
    from PIL import Image, ImageDraw

    columns, height, width = rows.shape[1:4]
    scale = max(1, TILE // width)
    tiles = rows.reshape(-1, *rows.shape[2:])
    grid = image_grid(tiles, columns, pad=PAD, scale=scale)
    font = _font(max(15, grid.shape[1] // 55))
    margin = int(max(font.getlength(name) for name in names)) + 3 * PAD
    canvas = np.full((grid.shape[0], margin + grid.shape[1], 3), PAPER, np.uint8)
    canvas[:, margin:] = grid
    canvas = Image.fromarray(canvas)
    draw = ImageDraw.Draw(canvas)
    pitch = height * scale + PAD
    for index, name in enumerate(names):
        middle = PAD + index * pitch + height * scale // 2
        draw.text((margin - PAD, middle), name, fill=(INK,) * 3, font=font, anchor="rm")
    return np.array(canvas)


def _font(size):
    """The font of the curves; it comes with matplotlib and knows most alphabets."""
    import matplotlib
    from PIL import ImageFont

    folder = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(str(folder / "DejaVuSans.ttf"), size)


def _curve(name, steps, values):
    steps, values = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    if steps.ndim != 1 or steps.shape != values.shape:
        raise ValueError(f"{name}: steps {steps.shape} and values {values.shape} differ in length")
    return steps, np.where(np.isfinite(values), values, np.nan)


def _draw_panel(axes, title, curves):
    for index, (name, (steps, values)) in enumerate(curves.items()):
        colour = CURVE_COLOURS[index % len(CURVE_COLOURS)]
        window = len(values) // 50
        if window > 1:
            axes.plot(steps, values, color=colour, alpha=FAINT, linewidth=0.8)
            values = _moving_average(values, window)
        marker = "o" if len(values) == 1 else None
        axes.plot(steps, values, color=colour, linewidth=1.6, marker=marker, label=name)
    logarithmic = _spans_orders(np.concatenate([values for _, values in curves.values()]))
    axes.set_yscale("log" if logarithmic else "linear")
    axes.set_title(f"{title} (logarithmic)" if logarithmic else title, loc="left", fontsize=11)
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=FAINT, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, frameon=True, framealpha=0.85, edgecolor="none")


def _moving_average(values, window):
    finite, kernel = np.isfinite(values), np.ones(window)
    total = np.convolve(np.where(finite, values, 0.0), kernel, "same")
    count = np.convolve(finite, kernel, "same")
    return np.where(finite, total / np.maximum(count, 1), np.nan)


def _spans_orders(values):
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > 0 and values.max() / values.min() > 100)


def _checked(images):
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not images.size:
        raise ValueError(
            f"images must be uint8 (N, H, W, 3) with N > 0, got {images.dtype} {images.shape}"
        )
    return images
