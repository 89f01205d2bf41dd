"""The report of a study on one page: tables, curves, pictures."""

import math
import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from repae_jax.evaluation.curves import CURVE_COLORS, FAINT
from repae_jax.evaluation.report import Section, write_report
from repae_jax.study.plan import MEASURES, Job, judges_prompts
from repae_jax.study.results import (
    Result,
    arm_mean,
    at_work,
    correlation,
    effect,
    figure,
    work,
    write_results,
)
from repae_jax.study.run import LATENTS, SAMPLES
from repae_jax.utils.atomic_files import write_atomically
from repae_jax.utils.figures import save_png
from repae_jax.utils.lock import writing_in

ARMS = (
    "Mean over the seeds, and its standard error. All seeds share one teacher and one judge, so "
    "the error excludes the variation between teachers and between judges."
)
CLAIMS = (
    "Differences are taken seed by seed, in the better arm's favor, over the seeds that have both "
    "figures. The verdict follows from the 95 % interval (Student's distribution) of that "
    "difference, for each claim separately: of twenty claims without an effect, one is expected "
    "not to be open. At equal work: after the total operations of the cheaper arm, if both start "
    "from the same VAE; the dearer arm is then in the middle of its learning rate's schedule. A "
    "frozen VAE and a teacher count at every step, though their results could be cached."
)
_MARKERS = "osD^vP*X<>ph"


def write_study(study: ConfigDict, output: pathlib.Path, results: Sequence[Result]) -> pathlib.Path:
    """Write `results.jsonl`, `tables.md` and `report.html` into the study's folder.

    Args:
      study: the study.
      output: the study's folder.
      results: the results of the finished runs.

    Returns:
      The report's path.
    """
    with writing_in(output / "report"):
        return _write(study, output, results)


def _write(study, output, results):
    write_results(output / "results.jsonl", results)
    arms, claims, together = made = [table(study, results) for table in _TABLES]
    write_atomically(output / "tables.md", _text(study, made, results).encode())
    last = study.measured_at[-1]
    pictures = output / "report"
    sections = [
        Section(f"All arms at step {last}", f"{ARMS}\n\n{_about(study, results)}", table=arms),
        Section("Claims", CLAIMS, table=claims),
        Section("Correlations", "Correlations over all runs of all arms.", table=together),
    ]  # fmt: skip
    for name in _found(results, last):
        path = save_png(pictures / f"{name}.png", _curves(study, results, name))
        sections.append(Section(MEASURES[name][0], "", path, alt=MEASURES[name][0]))
    for name, entry in study.arms.items():
        for kind, what in ((SAMPLES, "samples"), (LATENTS, "latents")):
            path = Job(name, 0).workdir(output) / kind
            if path.is_file():
                sections.append(Section(f"{entry.title}: {what}, seed 0", "", path))
    return write_report(
        output / "report.html",
        title=f"Study {study.name}",
        sections=sections,
        config_text=study.to_json_best_effort(indent=2, sort_keys=True),
    )


def tables(study: ConfigDict, results: Sequence[Result]) -> str:
    """The tables of arms, claims and correlations, in Markdown."""
    return _text(study, [table(study, results) for table in _TABLES], results)


def arms_table(study: ConfigDict, results: Sequence[Result]) -> list[list[str]]:
    """The table of every arm's figures at the last step; the first row is the heading."""
    last = study.measured_at[-1]
    measures = _found(results, last)
    rows = [["arm", "seeds", *measures, "GFLOP an image", "diverged"]]
    for name, entry in study.arms.items():
        own = [result for result in results if result["arm"] == name]
        if not own:
            continue
        figures = [str(arm_mean(results, name, measure, last)) for measure in measures]
        diverged = sum(bool(result["diverged"]) for result in own)
        cost = f"{own[0]['gflop_per_image']:.3g}"
        rows.append([entry.title, str(len(own)), *figures, cost, f"{diverged} of {len(own)}"])
    return rows


def claims_table(study: ConfigDict, results: Sequence[Result]) -> list[list[str]]:
    """The table of every claim's effect at equal steps, and at the cheaper arm's work."""
    last = study.measured_at[-1]
    rows = [[
        "claim", "measure", "better", "worse", "difference", "95 % interval", "verdict",
        "seeds ahead", "at equal work",
    ]]  # fmt: skip
    for entry in study.claims.values():
        found = effect(results, entry, last)
        sides = [study.arms[side].title for side in (entry.better, entry.worse)]
        lost = f" ({found.diverged} by divergence)" if found.diverged else ""
        rows.append([
            entry.text,
            entry.measure,
            f"{sides[0]}: {found.better}",
            f"{sides[1]}: {found.worse}",
            str(found.difference),
            found.difference.shown_interval(),
            found.verdict,
            f"{found.ahead} of {found.difference.count + found.diverged}{lost}",
            _equal_work(study, results, entry),
        ])  # fmt: skip
    return rows


def correlations_table(study: ConfigDict, results: Sequence[Result]) -> list[list[str]]:
    """The table of correlations of CKNNA with the samples' measures, at every measured step."""
    rows = [[
        "step", "measures", "Pearson (of the logarithm)", "Spearman", "runs",
        "Spearman of the arms' means", "arms",
    ]]  # fmt: skip
    for step in study.measured_at:
        measured = _found(results, step)
        for name in (it for it in ("frechet", "class_accuracy", "prompts") if it in measured):
            found = correlation(results, "cknna", name, step)
            pearson, spearman, of_means = (
                "-" if math.isnan(value) else f"{value:.2f}"
                for value in (found.pearson, found.spearman, found.arms_spearman)
            )
            rows.append([
                str(step), f"cknna, {name}", pearson, spearman, str(found.count), of_means,
                str(found.arms),
            ])  # fmt: skip
    return rows


def _found(results, step):
    """The measures that a result has at a step, in the order of `MEASURES`."""
    return [name for name in MEASURES if any(figure(r, name, step) is not None for r in results)]


_TABLES = (arms_table, claims_table, correlations_table)


def _equal_work(study, results, entry):
    """Both arms' figures after the total work of the cheaper arm, as text."""
    if study.arms[entry.better].vae != study.arms[entry.worse].vae:
        return "-"
    last = study.measured_at[-1]
    spent = [
        min((work(r, last) for r in results if r["arm"] == side), default=math.nan)
        for side in (entry.better, entry.worse)
    ]
    if math.isnan(sum(spent)):
        return "-"
    figures = [
        at_work(results, side, entry.measure, min(spent)) for side in (entry.better, entry.worse)
    ]
    return f"{figures[0]} and {figures[1]} after {min(spent):.3g} TFLOP"


def _about(study, results):
    found = results[0]["accuracies"].items()
    if judges_prompts(study):
        shares = {name: f"{100 * reached:.1f} %" for name, reached in found}
        judge = shares.pop("the judge")
        named = ", ".join(f"{name} names {share}" for name, share in shares.items())
        return (
            f"Of the tokens of held-out captions {named}. Of held-out renders the judge names all "
            f"objects of {judge}."
        )
    return (
        "Of the held-out images "
        + ", ".join(f"{name} classifies {100 * reached:.1f} %" for name, reached in found)
        + " correctly."
    )


def _text(study, made, results):
    return "\n\n".join([*map(_markdown, made), _about(study, results)]) + "\n"


def _markdown(table):
    head, *rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in lines
    )


def _curves(study, results, measure):
    """Draw a measure over steps and over work: means of all arms, standard errors as bars."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9.6, 4.2), layout="constrained")
    by_steps, by_work = drawn.subplots(1, 2, sharey=True)
    positive = []
    for number, (name, entry) in enumerate(study.arms.items()):
        own = [result for result in results if result["arm"] == name]
        means = [(step, arm_mean(results, name, measure, step)) for step in study.measured_at]
        means = [(step, value) for step, value in means if value.count]
        if not means:
            continue
        steps = np.array([step for step, _ in means])
        values = np.array([value.value for _, value in means])
        errors = np.nan_to_num([value.error for _, value in means])
        positive += list(values)
        style = {
            "color": CURVE_COLORS[number % len(CURVE_COLORS)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "linestyle": "-" if number < len(CURVE_COLORS) else "--",
            "markersize": 5, "capsize": 2, "linewidth": 1.4, "label": entry.title,
        }  # fmt: skip
        by_steps.errorbar(steps, values, errors, **style)
        by_work.errorbar([work(own[0], step) for step in steps], values, errors, **style)
    if positive and min(positive) > 0 and max(positive) > 10 * min(positive):
        by_steps.set_yscale("log")
    for axes, label in ((by_steps, "step"), (by_work, "TFLOP")):
        axes.set_xlabel(label)
        axes.grid(alpha=FAINT)
    by_work.set_xscale("log")
    by_steps.set_ylabel(measure)
    handles, labels = by_steps.get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside right upper", fontsize=7, frameon=False)
    return drawn
