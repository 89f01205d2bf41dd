"""What fits which TPU slice and how fast it could be at best: the table of docs/scaling.md.

    python benchmarks/scaling.py runs/scaling.jsonl            compile what is missing there
    python benchmarks/scaling.py runs/scaling.jsonl --only "v5e:4x8 repae_sdvae 256"
    python benchmarks/scaling.py runs/scaling.jsonl --table    print the tables

Every row is a `python -m repae_jax compile` in a process of its own, two to ten minutes of a
processor's time at `--effort quick`; needs `pip install libtpu`, no TPU. Where a chip would get
more images than `AT_ONCE`, the batch is taken in micro-batches.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from repae_jax.aot.chips import parse_topology
from repae_jax.config.overrides import read_config

ROOT = pathlib.Path(__file__).parents[1]
# part of the configuration's file name -> title, for the tables over slices
CONFIGS = {"repae_sdvae": "SiT-XL/2 + f8d4", "repae_vavae": "SiT-XL/1 + f16d32"}
RECIPES = {  # the same, for the table of the other recipes, each with its own batch on one slice
    "repae_lightningdit_vavae": "REPA-E, LightningDiT-XL/1 + f16d32",
    "repae_dit_sdvae": "REPA-E, DiT-XL/2 + f8d4",
    "irepa_sdvae": "iREPA, SiT-XL/2 + f8d4",
    "reg_sdvae": "REG, SiT-XL/2 + f8d4",
    "dit_sdvae": "DiT-XL/2 + f8d4",
    "lightningdit_e2e_vavae": "LightningDiT-XL/1, cached latents",
    "ddt_e2e_vavae": "DDT-XL/1, cached latents",
    "ddt_e2e_flux": "DDT-XL/2, cached latents",
    "jit": "JiT-B/16, pixels",
}
RECIPES_ON = "v5e:4x8"
TEXT = {  # recipes with captions
    "t2i256_e2e_flux": "fuse-dit's DiT (2.66 B) + f8d16, Gemma 2B",
    "t2i256_e2e_flux cached": "the same, latents and states of captions cached",
    "t2i256_repae_sdvae": "REPA-E, text DDT + f8d4, Qwen3 0.6B",
}
# what a row's recipe has in addition where its name ends in "cached"
CACHED = ["--config.data.source=latents", "--config.data.path=runs/no_cache_yet", "--text"]
TEXT_ON = {"v5e:16x16": 64, "v5p:4x4x4": 64}  # slice -> the chips that divide the state
BATCHES = {  # of each slice
    "v5e:2x4": (256,), "v5e:4x8": (128, 256), "v5e:16x16": (256, 1024),
    "v6e:2x4": (256,), "v6e:16x16": (256, 1024),
    "v5p:2x2x2": (256,), "v5p:4x8x8": (256, 1024),
}  # fmt: skip
FSDP = 8  # chips that divide the state: enough that it leaves room
AT_ONCE = {"v5e": 8, "v5p": 32, "v6e": 16}  # images per chip
COMPUTE = {"backbone_remat": "products", "tokenizer_remat": "blocks"}


def rows() -> list[tuple[str, str, int]]:
    """(slice, configuration, batch) of every row."""
    own = ((config, read_config(str(file_of(config)), []).batch_size) for config in RECIPES)
    return [
        *(
            (topology, config, batch)
            for config in CONFIGS
            for topology, batches in BATCHES.items()
            for batch in batches
        ),
        *((RECIPES_ON, config, batch) for config, batch in own),
        *(
            (topology, config, read_config(str(file_of(config)), []).batch_size)
            for config in TEXT
            for topology in TEXT_ON
        ),
    ]


def file_of(config: str) -> pathlib.Path:
    """The file of a key of `CONFIGS`, `RECIPES` or `TEXT`."""
    name = config.removesuffix(" cached") if config in TEXT else f"imagenet256_{config}"
    return pathlib.Path("configs") / f"{name}.py"


def micro_batches(topology: str, batch: int) -> int:
    """How many parts of the batch are taken one after the other."""
    _, chips = parse_topology(topology)
    return max(1, batch // chips // AT_ONCE[topology.partition(":")[0]])


def command(topology: str, config: str, batch: int, effort: str) -> list[str]:
    """The command of one row."""
    words = ["compile", "--config", str(file_of(config)), "--json"]
    words += ["--topology", topology, "--effort", effort, f"--config.batch_size={batch}"]
    words += [f"--config.mesh.fsdp={TEXT_ON[topology] if config in TEXT else FSDP}"]
    words += CACHED if config.endswith(" cached") else []
    compute = {**COMPUTE, "micro_batches": micro_batches(topology, batch)}
    return words + [f"--config.compute.{key}={value}" for key, value in compute.items()]


def measure(path: pathlib.Path, only: str, effort: str) -> None:
    """Append the rows that are not there yet."""
    done = {(r["topology"], r["config"], r["batch_size"]) for r in read(path)}
    for topology, config, batch in rows():
        if (topology, config, batch) in done or only not in f"{topology} {config} {batch}":
            continue
        words = command(topology, config, batch, effort)
        print("python -m repae_jax", *words, flush=True)
        ran = subprocess.run(
            [sys.executable, "-m", "repae_jax", *words], cwd=ROOT, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if ran.returncode == 2:
            row = {"topology": topology, "batch_size": batch, "error": ran.stderr.splitlines()[-1]}
        else:
            ran.check_returncode()
            row = json.loads(ran.stdout.splitlines()[-1])
        with open(path, "a") as file:
            file.write(json.dumps({**row, "config": config, "effort": effort}) + "\n")


def read(path: pathlib.Path) -> list[dict]:
    """The rows that are there."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def print_tables(found: list[dict]) -> None:
    """One table for each configuration."""
    head = ["slice", "chips", "batch", "at once", "arguments, GB", "temporaries, GB", "peak, GB",
            "of, GB", "links, GB", "traffic, GB", "best step, ms", "images/s", "MFU",
            "limit"]  # fmt: skip
    found = sorted(found, key=lambda r: (order(r["topology"]), r["batch_size"]))
    for config, title in CONFIGS.items():
        print(f"\n### {title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
        for r in found:
            if r["config"] == config:
                print(f"| {' | '.join(cells(r))} |")
    print(f"\n### Text to image\n\n| recipe | {' | '.join(head)} |\n|{'---|' * (len(head) + 1)}")
    for config, title in TEXT.items():
        for r in found:
            if r["config"] == config:
                print(f"| {' | '.join([title, *cells(r)])} |")
    head = ["recipe", *head[2:]]
    print(f"\n### Other recipes on {RECIPES_ON}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for config, title in RECIPES.items():
        for r in found:
            if r["config"] == config:
                print(f"| {' | '.join([title, *cells(r)[2:]])} |")


def order(topology: str) -> tuple[str, int]:
    """Sorts slices by chip and size."""
    return topology.partition(":")[0], parse_topology(topology)[1]


def cells(r: dict) -> list[str]:
    """A row of the table."""
    chips, batch = parse_topology(r["topology"])[1], r["batch_size"]
    at_once = batch // chips // micro_batches(r["topology"], batch)
    first = [r["topology"], str(chips), str(batch), str(at_once)]
    if "error" in r:
        return [*first, "does not fit", *[""] * 10]
    seconds = {name: r[f"{name}_seconds"] for name in ("compute", "memory", "link")}
    best = max(seconds.values())
    return [
        *first,
        *(f"{r[key] / 1e9:.2f}" for key in ("arguments", "temporaries", "peak")),
        f"{r['memory'] / 1e9:.0f}",
        f"{sum(r['links'].values()) / 1e9:.2f}",
        f"{r['traffic'] / 1e9:.0f}",
        f"{1e3 * best:.0f}",
        f"{r['batch_size'] / best:.0f}",
        f"{100 * seconds['compute'] * r['work'] / r['flops'] / best:.0f} %",
        max(seconds, key=seconds.get),
    ]


def main() -> None:
    """Measure, or print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=pathlib.Path, help="JSON, one row a line")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--effort", default="quick", choices=["quick", "full"])
    parser.add_argument("--table", action="store_true", help="print the tables")
    options = parser.parse_args()
    if options.table:
        print_tables(read(options.file))
    else:
        options.file.parent.mkdir(parents=True, exist_ok=True)
        measure(options.file, options.only, options.effort)


if __name__ == "__main__":
    main()
