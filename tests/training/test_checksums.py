"""Flipped bits: whatever file of a run one is in, no other weights come out of it in silence."""

import contextlib
import gc
import json
import os
import random
import shutil

import jax
import numpy as np
import pytest
import tiny
from absl import logging as absl_logging
from run_fixtures import random_run

from repae_jax.errors import UserError
from repae_jax.runs import workdir as work_directory
from repae_jax.runs.build import build_models, state_template
from repae_jax.runs.checkpoints import Checkpoints, restore_latest, saved_steps
from repae_jax.utils.sealed import seal

__all__ = ["random_run"]
FLIPS = 1000 if os.environ.get("REPAE_THOROUGH") else 60


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def leaves(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def without_moments():
    """A template of the tiny configuration's state, on one device."""
    config = tiny.get_config()
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = state_template(config, build_models(config), sharding)
    return template.replace(opt_state={})


def restored(workdir, template):
    checkpoints = Checkpoints(workdir, read_only=True)
    with contextlib.closing(checkpoints):
        state, _ = checkpoints.restore(template)
    return state


def test_no_flipped_bit_gives_other_weights_in_silence(random_run, tmp_path):
    workdir, rng = tmp_path / "run", random.Random(0)
    shutil.copytree(random_run, workdir)
    files = [path for path in files_of(workdir / "checkpoints" / "4") if path.stat().st_size]
    whole, found = leaves(restore_latest(workdir)), 0
    for _ in range(FLIPS):
        path = rng.choice(files)
        bit = rng.randrange(8 * path.stat().st_size)
        flip(path, bit)
        try:
            assert leaves(restore_latest(workdir)) == whole, (path, bit)
        except UserError as error:
            found += str(workdir / "checkpoints" / "4") in str(error)
        flip(path, bit)
    print(f"{FLIPS} bits, {found} found, the others without effect")
    assert found > 0.8 * FLIPS  # what is written last, without an array, has no checksum
    assert leaves(restore_latest(workdir)) == whole


def test_the_files_without_a_checksum_hold_no_array(random_run):
    folder = random_run / "checkpoints" / "4"
    summed = json.loads((folder / "checksums.json").read_text())["files"]
    names = {str(path.relative_to(folder)) for path in files_of(folder)}
    assert names - summed.keys() == {"checksums.json", "_CHECKPOINT_METADATA", "commit_success.txt"}


@pytest.mark.parametrize(
    "files",
    [{"a": 5}, {"a": [1]}, {"a": ["1", "2"]}, {"a": [1, 2]}, {"a": [True, "x"]}, [], 3, None],
)
def test_sealed_checksums_of_another_form_are_damage(files, random_run, tmp_path):
    shutil.copytree(random_run, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "4" / "checksums.json"
    path.write_text(json.dumps(seal({"algorithm": "xxh3_128", "files": files})))
    with pytest.raises(UserError, match=r"checkpoints/4 is damaged: checksums.json is damaged"):
        restore_latest(tmp_path / "run")


def test_checksums_nested_beyond_measure_are_damage(random_run, tmp_path):
    shutil.copytree(random_run, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "4" / "checksums.json"
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"checkpoints/4 is damaged: checksums.json is damaged"):
        restore_latest(tmp_path / "run")


@pytest.mark.parametrize("name", ["²", "٣", "07", "9" * 250, "4.tmp"])
def test_only_what_orbax_calls_a_step_is_one(name, random_run, tmp_path):
    shutil.copytree(random_run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / name).mkdir()
    assert saved_steps(tmp_path / "run") == [4]
    assert leaves(restore_latest(tmp_path / "run")) == leaves(restore_latest(random_run))


def test_missing_checksums_are_damage(random_run, tmp_path):
    shutil.copytree(random_run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "4" / "checksums.json").unlink()
    with pytest.raises(UserError, match="its checksums are missing"):
        restore_latest(tmp_path / "run")


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000], ids=["empty", "list", "deep"])
def test_damaged_checksums_are_damage(text, random_run, tmp_path):
    shutil.copytree(random_run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "4" / "checksums.json").write_text(text)
    with pytest.raises(UserError, match=r"checksums\.json is damaged"):
        restore_latest(tmp_path / "run")


@pytest.mark.parametrize("sizes", ["whole", "none", "damaged", "odd"])
def test_checkpoints_from_before_checksums_open(sizes, random_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(random_run, workdir)
    folder = workdir / "checkpoints" / "4"
    (folder / "checksums.json").unlink()
    metadata = folder / "_CHECKPOINT_METADATA"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"custom_metadata": {}}))
    noted = {"4": {str(p.relative_to(folder)): p.stat().st_size for p in files_of(folder)}}
    text = {"whole": json.dumps(noted), "damaged": json.dumps(noted)[:-9], "odd": '{"4": [1]}'}
    if sizes != "none":
        (workdir / "checkpoints" / "sizes.json").write_text(text[sizes])
    assert leaves(restore_latest(workdir)) == leaves(restore_latest(random_run))
    if sizes == "whole":
        path = folder / "data" / "metadata"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(UserError, match="metadata is not 2 bytes long any more"):
            restore_latest(workdir)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_cut_file_without_checksums_is_damage_or_without_effect(random_run, tmp_path):
    """Whichever file it is, and whether Orbax misses a name, an index or a piece of an array."""
    workdir = tmp_path / "run"
    shutil.copytree(random_run, workdir)
    folder = workdir / "checkpoints" / "4"
    (folder / "checksums.json").unlink()
    (folder / "_CHECKPOINT_METADATA").unlink()
    template = without_moments()
    few = {"backbone": {"blocks_0": template.params["backbone"]["blocks_0"]}}
    template = template.replace(params=few, ema={}, frozen={}, batch_stats={})
    whole, causes = leaves(restored(random_run, template)), set()
    for path in files_of(folder / "state"):
        content = path.read_bytes()
        for size in {0, 100, len(content) // 2} & set(range(len(content))):
            path.write_bytes(content[:size])
            try:
                assert leaves(restored(workdir, template)) == whole, (path, size)
            except UserError as error:
                causes.add(type(error.__cause__.__cause__))
            path.write_bytes(content)
    gc.collect()  # what Orbax no longer awaits is reported here, where it is expected
    assert Exception in causes  # of Orbax, around the error of a piece of an array


def test_several_processes_compare_a_share_each(random_run, tmp_path):
    from repae_jax.runs.integrity import check_checkpoint

    folder = tmp_path / "checkpoints" / "4"
    shutil.copytree(random_run / "checkpoints" / "4", folder)
    for path in files_of(folder / "state"):
        if not path.stat().st_size:
            continue
        flip(path, 0)
        finders = 0
        for part in range(3):
            try:
                check_checkpoint(folder, part, 3)
            except UserError:
                finders += 1
        assert finders == 1, path
        flip(path, 0)


def test_a_flipped_bit_or_an_edit_of_the_configuration_is_said(random_run, tmp_path):
    path, rng = tmp_path / "config.json", random.Random(0)
    text = (random_run / "config.json").read_text()
    path.write_text(text)
    whole, found = work_directory.load_config(tmp_path).to_dict(), 0
    for _ in range(300):
        bit = rng.randrange(8 * len(text))
        flip(path, bit)
        try:
            assert work_directory.load_config(tmp_path).to_dict() == whole, bit
        except UserError as error:
            found += str(path) in str(error)
        flip(path, bit)
    assert found > 150  # the others are white space
    edited = json.loads(text)
    edited["sampling"]["steps"] = 7
    path.write_text(json.dumps(edited))
    with pytest.raises(UserError, match="damaged or was edited .* delete the key 'sha256' in it"):
        work_directory.load_config(tmp_path)
    del edited["sha256"]
    path.write_text(json.dumps(edited))
    assert work_directory.load_config(tmp_path).sampling.steps == 7


def test_arrays_of_another_network_are_no_damage(random_run):
    """As of a backbone whose code has changed since."""
    template = without_moments()
    backbone = {**template.params["backbone"], "new": template.step}
    changed = template.replace(params={**template.params, "backbone": backbone})
    restored(random_run, template)
    message = r"checkpoints/4 has no array \['params'\]\['backbone'\]\['new'\].*code has changed"
    with pytest.raises(UserError, match=message):
        restored(random_run, changed)


def test_opening_for_reading_logs_nothing(random_run, caplog):
    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.WARNING)  # a command sets ERROR for the whole process
    try:
        assert Checkpoints(random_run, read_only=True).latest_step() is not None
        assert absl_logging.get_verbosity() == absl_logging.WARNING
    finally:
        absl_logging.set_verbosity(before)
    assert [record for record in caplog.records if record.name == "absl"] == []
