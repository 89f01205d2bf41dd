"""Every key of a configuration has a type and a range, and a run's edited file is checked."""

import json
import shutil
import typing

import jax
import numpy as np
import pytest
import tiny
from typing_extensions import is_typeddict

from repae_jax.cli import main
from repae_jax.config import base, teacher
from repae_jax.config.schema import SEED, Config, _schema, check_values
from repae_jax.config.sections import SECTIONS
from repae_jax.errors import UserError
from repae_jax.runs import workdir as work_directory
from repae_jax.runs.build import build_models, state_shapes
from repae_jax.runs.checkpoints import Checkpoints
from repae_jax.utils.schema import check_schema


def keys_of_schema(schema, prefix=""):
    for name, kind in typing.get_type_hints(schema).items():
        if is_typeddict(kind):
            yield from keys_of_schema(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def keys_of(section, prefix=""):
    for name, value in section.items():
        if hasattr(value, "items") and name != "teachers":
            yield from keys_of(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_no_key_is_forgotten():
    config = base()
    for section in SECTIONS:  # their keys depend on the family
        check_schema(config[section].to_dict(), _schema(section, config[section].family), source="")
        assert _schema(section, config[section].family).__annotations__.keys() == set(
            config[section]
        )
        del config[section]
    known = [key for key in keys_of_schema(Config) if key not in SECTIONS]
    assert sorted(known) == sorted(keys_of(config))
    assert sorted(keys_of_schema(_schema("teacher", "vit"))) == sorted(keys_of(teacher()))


def test_the_defaults_lie_in_their_ranges():
    config = base()
    config.teachers.dinov2 = teacher("dinov2-b")
    check_values(config)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_seeds_at_the_bounds_are_seeds(seed):
    check_schema(seed, SEED, source="seed")
    jax.random.key(seed)
    np.random.default_rng(seed)
    for beyond in (-1, 2**32):
        with pytest.raises(UserError):
            check_schema(beyond, SEED, source="seed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A work directory with a checkpoint of zeros."""
    workdir = tmp_path_factory.mktemp("edited") / "run"
    config = tiny.get_config()
    shapes = state_shapes(config, build_models(config)).replace(opt_state={})
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    work_directory.claim(workdir, config)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(4, state, {})
    checkpoints.close()
    return workdir


# key -> (another value, what the line says of it)
EDITS = {
    "seed": (None, "config.seed is None: it must be a valid integer"),
    "batch_size": (0, "config.batch_size is 0: give at least 1"),
    "compute.backbone_remat": ("x", "config.compute.backbone_remat is 'x': use none"),
    "data": (None, "config.data is None"),
    "data.resolution": (10**9, "config.data.resolution is 1000000000: give at most 16384"),
    "data.num_classes": (True, "config.data.num_classes is True: it must be a valid integer"),
    "optimizer.backbone.b1": (
        float("nan"),
        "config.optimizer.backbone.b1 is nan: it must be a finite",
    ),
    "sampling.steps": (-1, "config.sampling.steps is -1: give at least 1"),
    "backbone.depth": (10**9, "config.backbone.depth is 1000000000: give at most 256"),
    "backbone.hidden_size": (32, "the configuration needs"),  # than the checkpoint
    "backbone.mlp_ratio": (-4.0, "config.backbone.mlp_ratio is -4.0: give at least"),
    "backbone.num_heads": (0, "config.backbone.num_heads is 0: give at least 1"),
    "teachers.small.depth": ([[[1]]], "config.teachers.small.depth"),
    "tokenizer.multipliers": (
        [],
        "config.tokenizer.multipliers is []: list must have at least 1 item",
    ),
    "tokenizer.num_res_blocks": (
        10**9,
        "config.tokenizer.num_res_blocks is 1000000000: give at most 16",
    ),
    "teachers": (
        {"module.small": {}},
        "config.teachers has the key 'module.small': give a name without dots",
    ),
    "optimizer.tokenizer.max_grad_norm": (
        float("nan"),
        "config.optimizer.tokenizer.max_grad_norm is nan",
    ),
    "run.data_timeout": (1e300, "config.run.data_timeout is 1e+300: give at most 1e+09"),
    "sede": (3, "has the key config.sede, which this version does not know"),
}


@pytest.mark.parametrize("key", EDITS)
@pytest.mark.parametrize("command", ["inspect", "sample", "convert"])
def test_an_edited_run_is_one_line(key, command, run, tmp_path, capsys):
    value, message = EDITS[key]
    if command == "inspect" and "needs" in message:
        pytest.skip("inspect shows what the configuration says")
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    config = json.loads((run / "config.json").read_text())
    del config["sha256"]  # the edit is meant
    *sections, last = key.split(".")
    section = config
    for name in sections:
        section = section[name]
    section[last] = value
    (copy / "config.json").write_text(json.dumps(config))
    before = sorted(tmp_path.rglob("*"))
    words = {
        "inspect": ["inspect", str(copy)],
        "sample": ["sample", "--workdir", str(copy), "--output", str(tmp_path / "x.png")],
        "convert": ["convert", str(copy), str(tmp_path / "vae"), "--quiet"],
    }[command]
    assert main(words) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_an_absent_key_is_told_and_has_its_default(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    config = json.loads((run / "config.json").read_text())
    del config["sha256"]  # the edit is meant
    del config["seed"], config["run"]["data_timeout"]
    (copy / "config.json").write_text(json.dumps(config))
    for _ in range(2):
        assert work_directory.load_config(copy).seed == 0
    told = capsys.readouterr().err
    assert told == (
        f"warning: {copy / 'config.json'} lacks config.run.data_timeout and 1 more keys: their "
        "defaults are taken\n"
    )


def test_a_table_of_positions_beyond_any_memory_is_refused():
    from repae_jax.config.validate import validate

    config = tiny.get_config()
    config.data.resolution = 16_384
    config.backbone.hidden_size = 4096
    config.teachers.small.patch_size = 8
    with pytest.raises(UserError, match="2048 x 2048 tokens of width 4096, whose table"):
        validate(config)
