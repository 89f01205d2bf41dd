"""Targets: work directories and studies."""

import json

import numpy as np
import tiny_study

from fuzz.original_checkpoints import make_run
from fuzz.target import Target, eighths

_STUDY = tiny_study.__file__


def _write_run(folder):
    make_run(folder / "run", "vanilla")


def _read_run(folder):
    """What `train` resumes with: the configuration, checked; the state; the data's place."""
    import jax

    from repae_jax.config.validate import validate
    from repae_jax.runs.build import build_models, state_template
    from repae_jax.runs.checkpoints import Checkpoints
    from repae_jax.runs.workdir import load_config

    config = load_config(folder / "run")
    validate(config)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = state_template(config, build_models(config), sharding)
    checkpoints = Checkpoints(folder / "run", read_only=True)
    try:
        state, data = checkpoints.restore(template)
    finally:
        checkpoints.close()
    return {"state": state, "data": data}


def _use_run(folder):
    """What `sample`, `generate`, `evaluate` and `report` begin with, and `inspect`."""
    from repae_jax.config.modules import build_sampler
    from repae_jax.runs.inspection import describe
    from repae_jax.runs.open_run import open_run

    describe(folder / "run")
    run = open_run(folder / "run")
    build_sampler(run.config)
    return {"state": run.state}


def _take_vae(folder):
    """A run in the place of a VAE's weights."""
    from repae_jax.runs.open_run import run_vae

    vae = run_vae(folder / "run")
    return {"params": vae.params, "statistics": vae.statistics}


def _write_origin(folder):
    from repae_jax.runs.provenance import Provenance, write_provenance

    groups = {"opt": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0, 1]}]}
    slots = {"opt": {0: {"step": np.float32(3), "exp_avg": np.ones(3, np.float32)}}}
    counters = {"model/bn.num_batches_tracked": np.int64(3)}
    origin = Provenance("repae", 3, {"seed": 0, "model": "SiT-B/2"}, groups, counters, slots)
    write_provenance(folder, origin)


def _read_origin(folder):
    from repae_jax.runs.provenance import read_provenance

    return read_provenance(folder) or {}


_DATA = {
    "source": "folder", "count": 5, "classes": [["ant", 3, "a" * 16], ["bird", 2, "b" * 16]],
    "resolution": 16,
}  # fmt: skip


def _write_fingerprints(folder):
    from repae_jax.data.identity import FILE, write_fingerprints

    write_fingerprints(folder / FILE, {"train": _DATA, "heldout": {**_DATA, "count": 4}})


def _read_fingerprints(folder):
    """What has changed since: with the same data nothing, with others what is others."""
    from repae_jax.data.identity import FILE, changes_since, read_fingerprints
    from repae_jax.errors import UserError

    data = {"train": _DATA, "heldout": {**_DATA, "count": 4}}
    if told := changes_since(folder / FILE, data):
        raise UserError(f"the data have changed: {told}")
    return {"noted": read_fingerprints(folder / FILE)}


def _write_events(folder):
    from clu import metric_writers

    from repae_jax.runs.metrics import FOLDER

    writer = metric_writers.SummaryWriter(str(folder / "run" / FOLDER))
    for step in (1, 2, 3):
        writer.write_scalars(step, {"loss": 1.0 / step, "grad_norm": 0.5 * step})
    writer.close()


def _read_events(folder):
    from repae_jax.runs.metrics import read_history

    history = read_history(folder / "run")
    return {
        f"{name} {step}": value
        for name, (steps, values) in history.items()
        for step, value in zip(steps.tolist(), values.tolist(), strict=True)
    }


# --- studies -----------------------------------------------------------------------------------


def _study():
    from repae_jax.config.overrides import read_config

    return read_config(_STUDY, [])


def _result(arm, seed):
    figures = {str(step): {"frechet": 10.0 / step + seed, "accuracy": 0.5} for step in (2, 4)}
    return {
        "arm": arm, "seed": seed, "figures": figures, "diverged": "", "gflop_per_image": 0.5,
        "config": {"batch_size": 8}, "accuracies": {"the judge": 0.5}, "made_with": {},
        "seconds": {"training": 1.0, "measuring": 1.0},
    }  # fmt: skip


def _write_results(folder):
    from repae_jax.study.results import write_results

    results = [_result(arm, seed) for arm in ("sit", "repae") for seed in (0, 1, 2)]
    write_results(folder / "results.jsonl", results)


def _write_unsealed(folder):
    """As older versions did."""
    lines = [json.dumps(_result(arm, seed)) for arm in ("sit", "repae") for seed in (0, 1, 2)]
    (folder / "results.jsonl").write_text("".join(f"{line}\n" for line in lines))


def _read_results(folder):
    from repae_jax.study.agreement import agreement
    from repae_jax.study.results import arm_mean, at_work, effect, read_results

    results = read_results(folder / "results.jsonl")
    claim = next(iter(_study().claims.values()))
    str(agreement(results, [_result(arm, 0) for arm in ("sit", "repae")]))
    return {
        "means": [repr(arm_mean(results, arm, "frechet", 4)) for arm in ("sit", "repae")],
        "effect": repr(effect(results, claim, 4)),
        "at_work": repr(at_work(results, "sit", "frechet", 0.01)),
    }


def _write_study(folder):
    """The shared parts and one run's result, as a study keeps them."""
    from repae_jax.study import shared
    from repae_jax.study.plan import RESULT, Job, run_config
    from repae_jax.study.run import _within
    from repae_jax.utils.atomic_files import write_atomically
    from repae_jax.utils.sealed import seal

    study, output = _study(), folder / "study"
    output.mkdir()
    text = json.dumps(shared._common(study), indent=1)
    write_atomically(output / shared.COMMON, text.encode())
    job = Job("vae", 0)
    result = {
        **_result("vae", 0),
        "config": _within(output, run_config(study, job, output).to_dict()),
    }
    job.workdir(output).mkdir(parents=True)
    (job.workdir(output) / RESULT).write_text(json.dumps(seal(result)))


def _read_study(folder):
    """What a study that is started again reads first."""
    from repae_jax.study.plan import Job
    from repae_jax.study.run import read_result
    from repae_jax.study.shared import check_shared

    study, output = _study(), folder / "study"
    check_shared(study, output)
    result = read_result(study, Job("vae", 0), output)
    return {"figures": result["figures"], "diverged": result["diverged"]} if result else {}


def _write_judge(folder):
    import jax

    from repae_jax.interop.files import write_safetensors
    from repae_jax.interop.tables import flatten
    from repae_jax.study.judge import _network

    study = _study()
    side = study.config.data.resolution
    image = np.zeros((1, side, side, 3), np.float32)
    shapes = jax.eval_shape(_network(study).init, jax.random.key(0), image)
    params = eighths(shapes["params"])
    write_safetensors(folder / "judge.safetensors", flatten(params), {"accuracy": json.dumps(0.5)})


def _read_judge(folder):
    from repae_jax.study.judge import load_judge

    judge = load_judge(_study(), folder / "judge.safetensors")
    return {"params": judge.params, "accuracy": judge.accuracy}


_KEPT = r".*checkpoints/.*"
_RUN = "work directory, resumed"


TARGETS = (
    Target(_RUN, _write_run, _read_run, sealed=_KEPT, follows=".*"),
    Target("work directory, used", _write_run, _use_run, sealed=_KEPT, follows=".*", like=_RUN,
           words=lambda folder, _: ["inspect", str(folder / "run")]),
    Target("work directory as a VAE", _write_run, _take_vae, sealed=_KEPT, follows=".*",
           like=_RUN),
    Target("provenance of an imported run", _write_origin, _read_origin,
           sealed=r".*\.safetensors", follows=".*", optional=".*"),
    Target("data.json of a run", _write_fingerprints, _read_fingerprints, sealed=r".*",
           optional="/noted.*"),
    Target("TensorBoard's events", _write_events, _read_events, optional=".*"),
    Target("results of a study", _write_results, _read_results, sealed=r".*"),
    Target("results of a study, no checksums", _write_unsealed, _read_results, follows=".*",
           names=r".*/(arm|seed|diverged|frechet|accuracy)"),
    Target("a study's own files", _write_study, _read_study, sealed=r".*", optional=".*"),
    Target("judge of a study", _write_judge, _read_judge, sealed=r".*\.safetensors"),
)  # fmt: skip
