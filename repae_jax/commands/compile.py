"""The `compile` command."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from repae_jax.commands.options import CONFIG_HELP, add_config, read_configuration

if TYPE_CHECKING:
    from repae_jax.aot.report import Report

MOVERS = 6  # parts of the step that the report names
SUMMARY = "compile a configuration's train step for absent TPUs or GPUs"
EPILOG = f"""\
{CONFIG_HELP}
Needs `pip install libtpu`, or `jax[cuda13]` for GPUs; runs without a TPU, a GPU or weights. Prints
memory, collectives, work, and a lower bound of the time from the chip's published rates.

examples:
  compile --config imagenet256_repae_sdvae --topology v5e:4x8 --config.mesh.fsdp=8
  compile --config imagenet256_repae_sdvae --topology v5p:4x4x4 --sweep
  compile --config imagenet256_repae_sdvae --topology h200:8 --batch-per-device 32"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_config(parser)
    parser.add_argument(
        "--topology",
        required=True,
        help="v4, v5e, v5p or v6e, such as v5e:16x16; h100 or h200, such as h200:8",
    )
    parser.add_argument(
        "--batch-per-device", type=int, help="images (default: config.batch_size over all devices)"
    )
    parser.add_argument(
        "--cached",
        choices=["tokens", "images"],
        default="tokens",
        help="content, for the teachers, of a cache of latents that does not exist yet, see encode "
        "--teachers and --images (default: %(default)s)",
    )
    parser.add_argument(
        "--text", action="store_true", help="such a cache also holds the states of captions"
    )
    parser.add_argument("--sweep", action="store_true", help="find the largest batch that fits")
    parser.add_argument("--sampler", action="store_true", help="also compile sampling")
    parser.add_argument(
        "--effort",
        choices=["full", "quick"],
        default="full",
        help="quick: minutes instead of tens of minutes, and a slightly larger program",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per program")


def run(options: argparse.Namespace) -> int:
    """Compile the configuration's programs for the topology and print their needs; returns 0.

    Raises:
      UserError: the topology is unknown, the configuration is wrong, there is no compiler for the
        topology, or the program does not fit.
    """
    config = read_configuration(options).copy_and_resolve_references()
    from repae_jax.aot.chips import parse_topology
    from repae_jax.aot.report import compile_sampler, compile_train, sweep
    from repae_jax.aot.topologies import compiler

    _, count = parse_topology(options.topology)
    if options.batch_per_device:
        config.batch_size = options.batch_per_device * count
    with compiler(options.effort):
        kept = (options.cached, *(["text"] if options.text else []))
        make = sweep if options.sweep else compile_train
        reports = [make(config, options.topology, kept=kept, verbose=not options.json)]
        if options.sampler:
            config.batch_size = reports[0].batch_size
            reports.append(compile_sampler(config, options.topology))
    for report in reports:
        if options.json:
            print(json.dumps({**dataclasses.asdict(report), "seconds": report.seconds}))
        else:
            print(describe(report))
    return 0


def describe(report: Report) -> str:
    """Format a report as text."""
    gb = {name: getattr(report, name) / 1e9 for name in ("peak", "memory", "arguments", "traffic")}
    links = ", ".join(f"{k} {v / 1e9:.3f}" for k, v in sorted(report.links.items())) or "none"
    ms = [1e3 * s for s in (report.compute_seconds, report.memory_seconds, report.link_seconds)]
    return "\n".join(
        [
            f"{report.program} on {report.topology}, {report.batch_size} images "
            f"({report.batch_size / report.devices:g} per device), "
            f"compiled in {report.compile_seconds:.0f} s",
            f"  batches of           {report.batches}",
            f"  memory per device    {gb['peak']:.2f} GB at the peak of {gb['memory']:.1f}: "
            f"{'fits' if report.fits else 'DOES NOT FIT'} (arguments {gb['arguments']:.2f}, "
            f"temporaries {report.temporaries / 1e9:.2f})",
            f"  work                 {report.work / 1e12:.3f} TFLOP per image, "
            f"{report.flops / 1e12:.3f} with rematerialization",
            f"  collectives, GB      {links}",
            f"  images               {report.form}",
            f"  memory traffic       {gb['traffic']:.1f} GB{_movers(report)}",
            f"  at published rates   compute {ms[0]:.1f} ms, memory {ms[1]:.1f} ms, "
            f"links {ms[2]:.1f} ms",
            f"  so at best           {1e3 * report.seconds:.1f} ms, "
            f"{report.batch_size / report.seconds:.0f} images/s, "
            f"{100 * report.mfu:.0f} % of the peak",
        ]
    )


def _movers(report):
    """The parts of the step that move most, in percent of its traffic."""
    largest = sorted(report.movers.items(), key=lambda item: -item[1])[:MOVERS]
    shares = [f"{name} {100 * moved / report.traffic:.0f} %" for name, moved in largest]
    return f", of it {', '.join(shares)}" if shares else ""
