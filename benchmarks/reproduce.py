"""Records what every recipe, sampler, export and measure gives on a tiny configuration.

    PYTHONPATH=. python benchmarks/reproduce.py before.json
    ... change the code ...
    PYTHONPATH=. python benchmarks/reproduce.py after.json --against before.json

A refactoring keeps every figure: the second call compares the two records bit by bit, prints what
differs and by how much, and ends with 1 if anything does. A record holds on the machine that made
it. States are compared by the contents of their arrays alone, so names may change. It takes about
five minutes on two cores.
"""

import argparse
import contextlib
import hashlib
import io
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Mapping

import numpy as np

from repae_jax.cli import main

REPOSITORY = pathlib.Path(__file__).parents[1]
TINY = REPOSITORY / "tests" / "helpers" / "tiny.py"
STEPS = 3
# Where the configuration has what these runs change.
VAE, OBJECTIVE, BACKBONE = "tokenizer", "objective", "backbone"
RECIPES = (
    "vae", "repae", "repa", "vanilla", "repae_no_stop_gradient", "repae_no_latent_norm",
    "repae_no_regularisation",
)  # fmt: skip
FROZEN_VAE = ("repa", "vanilla")
VARIANTS = {
    "cosine": {
        f"{OBJECTIVE}.interpolant": "cosine", "time.weighting": "lognormal",
        f"{OBJECTIVE}.reconstruction": "l2", f"{OBJECTIVE}.lecam_weight": 0.1,
        f"{OBJECTIVE}.discriminator_start": 1, f"{BACKBONE}.qk_norm": True,
    },
    "in parts": {"compute.micro_batches": 2, "compute.scan_blocks": True, "data.flip": True},
    "bfloat16": {"dtype": "bfloat16"},
}  # fmt: skip
SAMPLERS = {
    "euler": (),
    "heun": ("--guidance-scale", "2.5", "--guidance-low", "0.2", "--guidance-high", "0.9"),
    "euler-maruyama": ("--guidance-scale", "2.5", "--guidance-high", "0.75"),
}


def record(folder: pathlib.Path) -> dict[str, dict]:
    """Everything, made in `folder`: {what: {"values": {name: [hex]}, "arrays": digest}}."""
    made = {}
    teacher = folder / "teacher.safetensors"
    weights = {"teachers.small.weights": teacher}
    run("pretrain-teacher", *configured("", weights), "--quiet")
    made["teacher"] = {"arrays": digest(safetensors(teacher).items(), named=True)}
    vae = folder / "vae"
    for recipe in RECIPES:
        keys = dict(weights) if recipe not in ("vae", "vanilla") else {}
        keys |= {f"{VAE}.weights": vae} if recipe in FROZEN_VAE else {}
        made[f"train {recipe}"] = train(folder / recipe, recipe, keys)
    for name, keys in VARIANTS.items():
        made[f"train {name}"] = train(folder / name, "repae", keys | weights)
    measured = {
        "evaluation.every": STEPS, "evaluation.network": "small", "evaluation.samples": 16,
        "evaluation.cknna_images": 16,
    }  # fmt: skip
    made["train, measured"] = train(folder / "measured", "repae", measured | weights)

    trained = folder / "repae"
    for method, options in SAMPLERS.items():
        path = folder / f"{method}.npz"
        options = ("--method", method, "--steps", "4", "--count", "12", "--seed", "3", *options)
        run("generate", "--workdir", trained, "--output", path, *options, "--quiet")
        with np.load(path) as archive:
            made[f"generate {method}"] = {"arrays": digest(archive.items(), named=True)}

    cached = folder / "cached"
    keys = weights | {f"{VAE}.weights": trained}
    run("encode", *configured("repa", keys), "--output", cached, "--teachers", "--mirrored",
        "--batch-size", "64", "--quiet")  # fmt: skip
    made["encode"] = {"arrays": digest(sorted(records(cached)), named=True)}
    keys |= {"data.source": "latents", "data.path": cached, "data.flip": True}
    made["train on latents"] = train(folder / "latents", "repa", keys)

    run("convert", trained, folder / "exported" / "0000003.pt", "--quiet")
    made["export, original"] = {"arrays": digest(checkpoint(folder / "exported"), named=True)}
    run("convert", trained, folder / "diffusers", "--quiet")
    exported = safetensors(folder / "diffusers" / "diffusion_pytorch_model.safetensors")
    made["export, diffusers"] = {"arrays": digest(exported.items(), named=True)}
    run("convert", folder / "exported" / "0000003.pt", folder / "imported", "--quiet")
    made["import"] = {"arrays": digest(state(folder / "imported"))}

    images = folder / "images"
    run("generate", "--workdir", trained, "--output", images, "--count", "12", "--quiet")
    output = folder / "vae.json"
    run("evaluate-vae", trained, images, "--output", output, "--quiet")
    made["evaluate-vae"] = {"values": numbers(json.loads(output.read_text()))}
    output = folder / "alignment"
    run("evaluate-alignment", "--workdir", trained, "--output", output, "--quiet")
    (file,) = output.glob("*.json") if output.is_dir() else [output]
    made["evaluate-alignment"] = {"values": numbers(json.loads(file.read_text()))}
    return made


def train(workdir: pathlib.Path, recipe: str, keys: Mapping) -> dict:
    """The metrics of a few steps, and what the state then is."""
    keys = {"run.steps": STEPS, "run.checkpoint_every": STEPS, **keys}
    run("train", *configured(recipe, keys), "--workdir", workdir, "--quiet")
    return {"values": history(workdir), "arrays": digest(state(workdir))}


def configured(recipe: str, keys: Mapping) -> list[str]:
    """The words of a command that takes the tiny configuration."""
    file = f"{TINY}:{recipe}" if recipe else str(TINY)
    return ["--config", file, *(f"--config.{key}={value}" for key, value in keys.items())]


def run(*words: object) -> None:
    """A command, quietly; a failure ends the script with what it printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = main([str(word) for word in words])
    if status:
        sys.exit(f"{' '.join(map(str, words))}: {status}\n{said.getvalue()}")


def history(workdir: pathlib.Path) -> dict[str, list[str]]:
    """Every metric of every step, exactly."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(workdir / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    found = {}
    for name in events.Tags()["tensors"]:
        values = [make_ndarray(event.tensor_proto) for event in events.Tensors(name)]
        timing = name == "images_per_second"
        if not timing and all(value.ndim == 0 and value.dtype.kind == "f" for value in values):
            found[name] = [float(value).hex() for value in values]
    return found


def state(workdir: pathlib.Path) -> list[tuple[str, np.ndarray]]:
    """The arrays of the newest checkpoint, as Orbax itself reads them."""
    import jax
    import orbax.checkpoint as ocp

    newest = max((p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()), key=_step)
    restored = ocp.PyTreeCheckpointer().restore(newest / "state")
    return [("", np.asarray(leaf)) for leaf in jax.tree.leaves(restored)]


def _step(path):
    return int(path.name)


def records(folder: pathlib.Path) -> list[tuple[str, np.ndarray]]:
    """The bytes of every shard that `encode` wrote."""
    shards = [p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".json", ".txt")]
    return [
        (p.name, np.frombuffer(p.read_bytes(), np.uint8))
        for p in sorted(shards)
        if not p.name.startswith(".")
    ]


def safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """A file's tensors."""
    from safetensors.numpy import load_file

    return load_file(path)


def checkpoint(folder: pathlib.Path) -> list[tuple[str, np.ndarray]]:
    """The tensors of a checkpoint that the original reads, by their places."""
    import torch

    (path,) = folder.glob("*.pt")
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, weights_only=True)

    def walk(value, place):
        if isinstance(value, Mapping):
            return [pair for key in value for pair in walk(value[key], f"{place}/{key}")]
        return [(place, value.numpy())] if isinstance(value, torch.Tensor) else []

    return walk(content, "")


def digest(arrays: Iterable[tuple[str, np.ndarray]], *, named: bool = False) -> str:
    """A checksum of arrays in any order, with or without their names."""
    each = []
    for name, array in arrays:
        array = np.ascontiguousarray(array)
        head = f"{name if named else ''} {array.dtype} {array.shape}".encode()
        each.append(hashlib.sha256(head + array.tobytes()).hexdigest())
    return f"{len(each)} arrays, {hashlib.sha256(''.join(sorted(each)).encode()).hexdigest()[:16]}"


def numbers(value: object, name: str = "") -> dict[str, list[str]]:
    """Every number of a JSON value by its place."""
    if isinstance(value, Mapping):
        pairs = [numbers(part, f"{name}/{key}") for key, part in value.items()]
    elif isinstance(value, list):
        pairs = [numbers(part, f"{name}/{index}") for index, part in enumerate(value)]
    else:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return {name: [float(value).hex()]} if is_number else {}
    return {key: part for pair in pairs for key, part in pair.items()}


def differences(old: Mapping[str, dict], new: Mapping[str, dict]) -> list[str]:
    """One line for everything that is not the same."""
    lines = [f"{what}: only in one record" for what in sorted(old.keys() ^ new.keys())]
    for what in sorted(old.keys() & new.keys()):
        before, after = (record.get("values", {}) for record in (old[what], new[what]))
        lines += [f"{what}: {name} only in one" for name in sorted(before.keys() ^ after.keys())]
        for name in sorted(before.keys() & after.keys()):
            if before[name] != after[name]:
                lines.append(f"{what}: {name} {_apart(before[name], after[name])}")
        if old[what].get("arrays") != new[what].get("arrays"):
            lines.append(f"{what}: {old[what].get('arrays')} -> {new[what].get('arrays')}")
    return lines


def _apart(before, after):
    pairs = [(float.fromhex(a), float.fromhex(b)) for a, b in zip(before, after, strict=False)]
    steps = ", ".join(f"{abs(a - b) / max(abs(a), 1e-30):.1e}" for a, b in pairs)
    return f"by {steps} relative"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=pathlib.Path, help="the record, JSON")
    parser.add_argument("--against", type=pathlib.Path, help="an earlier record to compare with")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made_in:
        recorded = record(pathlib.Path(made_in))
    options.output.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    print(f"{len(recorded)} records in {options.output}")
    if options.against:
        found = differences(json.loads(options.against.read_text()), recorded)
        print("\n".join(found) or "all the same, bit by bit")
        sys.exit(bool(found))
