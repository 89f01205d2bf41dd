"""Curves and heat maps as matplotlib figures, which `figures.save_png` writes.

Curves use the Okabe-Ito colors, which are distinct for all common kinds of color vision.
"""

from collections.abc import Mapping, Sequence

import numpy as np

CURVE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FAINT = 0.25

History = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def loss_curves(history: History, groups: Mapping[str, Sequence[str]]):
    """Draw loss curves: one panel per group, one curve per metric.

    Long curves are drawn faintly, with a moving average over a fiftieth of their length on top.
    A panel whose values are positive and span over two orders of magnitude is logarithmic, and its
    title says so. NaN and infinite values leave gaps.

    Args:
      history: metric -> (steps, values), of equal length.
      groups: panel title -> its metrics; metrics that `history` lacks are left out, and so are
        panels without metrics (a run without a GAN has no GAN losses).

    Returns:
      A matplotlib Figure, not registered with pyplot.

    Raises:
      ValueError: `history` has none of the metrics, or steps and values differ in length.
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
    """Draw quantities over a network's blocks and noise levels: a heat map and curves for each.

    Args:
      times: noise levels (T,).
      tables: title -> values (T, depth).
      references: title -> {name: value}, drawn as dashed lines.

    Returns:
      A matplotlib Figure, not registered with pyplot.
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
            color = CURVE_COLORS[index % len(CURVE_COLORS)]
            axes.plot(blocks, values, color=color, marker=".", label=f"t = {time:g}")
        for name, value in references.get(title, {}).items():
            axes.axhline(value, color="#888888", linestyle="--", linewidth=1)
            axes.annotate(name, (blocks[0], value), fontsize=8, va="bottom")
        axes.set_xlabel("block")
        axes.legend(fontsize=8, frameon=False)
    return figure


def spectra_figure(spectra: Mapping[str, tuple[np.ndarray, np.ndarray]]):
    """Draw power spectra on a logarithmic axis, one curve per name.

    Args:
      spectra: name -> (frequencies in cycles per position, power), from `latents.power_spectrum`;
        the lowest frequency, the mean, is left out.

    Returns:
      A matplotlib Figure, not registered with pyplot.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, (frequencies, power)) in enumerate(spectra.items()):
        color = CURVE_COLORS[index % len(CURVE_COLORS)]
        axes.plot(frequencies[1:], power[1:], color=color, marker=".", label=name)
    axes.set_yscale("log")
    axes.set_xlabel("cycles per latent position")
    axes.set_ylabel("power / variance")
    axes.legend(fontsize=8, frameon=False)
    return figure


def channels_figure(channels: Mapping[str, tuple[np.ndarray, np.ndarray]]):
    """Draw mean and standard deviation of every channel, one panel per name.

    Args:
      channels: name -> (mean (c,), standard deviation (c,)).

    Returns:
      A matplotlib Figure, not registered with pyplot.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 2.4 * len(channels)), layout="constrained")
    for row, (name, (mean, std)) in enumerate(channels.items()):
        axes = figure.add_subplot(len(channels), 1, row + 1)
        color = CURVE_COLORS[row % len(CURVE_COLORS)]
        axes.errorbar(range(len(mean)), mean, yerr=std, fmt="o", color=color, capsize=3)
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title(f"{name}: mean and standard deviation", loc="left", fontsize=11)
    axes.set_xlabel("channel")
    return figure


def _curve(name, steps, values):
    steps, values = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    if steps.ndim != 1 or steps.shape != values.shape:
        raise ValueError(f"{name}: steps {steps.shape} and values {values.shape} differ in length")
    return steps, np.where(np.isfinite(values), values, np.nan)


def _draw_panel(axes, title, curves):
    for index, (name, (steps, values)) in enumerate(curves.items()):
        color = CURVE_COLORS[index % len(CURVE_COLORS)]
        window = len(values) // 50
        if window > 1:
            axes.plot(steps, values, color=color, alpha=FAINT, linewidth=0.8)
            values = _moving_average(values, window)
        marker = "o" if len(values) == 1 else None
        axes.plot(steps, values, color=color, linewidth=1.6, marker=marker, label=name)
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
