"""Flipped bits in the files that leave: none gives other tensors in silence."""

import json
import os
import random

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from repae_jax.errors import UserError
from repae_jax.interop import files, intact

FLIPS = 3000 if os.environ.get("REPAE_THOROUGH") else 400
rng = np.random.default_rng(0)
TENSORS = {
    "encoder.weight": rng.standard_normal((3, 5, 7)).astype(np.float32),
    "bias": rng.standard_normal(9).astype(np.float16),
    "scale": np.array(0.18215, np.float32),
    "steps": np.arange(4),
    "empty": np.zeros((0, 3), np.float32),
    "wide": rng.standard_normal((6, 4)).astype(ml_dtypes.bfloat16),
}
NOTES = {"groups": "8", "accuracy": "0.5"}


def write(path):
    if path.suffix == ".safetensors":
        files.write_safetensors(path, TENSORS, NOTES)
    else:
        files.write_torch(path, {"model": TENSORS, "steps": 7, "args": {"lr": 1e-4}})


def content(path):
    """All that a reader gives, comparable bit by bit."""

    def bits(value):
        if isinstance(value, dict):
            return {key: bits(item) for key, item in value.items()}
        return (
            (value.dtype.name, value.shape, value.tobytes()) if hasattr(value, "dtype") else value
        )

    notes = files.read_metadata(path) if path.suffix == ".safetensors" else {}
    # (of the checksum's own name a flipped bit makes another note)
    return bits(files.read_stored(path)), {name: notes.get(name) for name in NOTES}


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_no_flipped_bit_gives_other_tensors_in_silence(name, tmp_path):
    path, draws, found = tmp_path / name, random.Random(0), 0
    write(path)
    whole, size = content(path), path.stat().st_size
    for number in range(FLIPS):
        bit = draws.randrange(8 * size)
        flip(path, bit)
        os.utime(path, (number, number))  # each is looked at anew
        try:
            assert content(path) == whole, bit
        except UserError as error:
            found += str(path) in str(error) and "\n" not in str(error)
        flip(path, bit)
    print(f"{name}: {FLIPS} bits, {found} found, the others without effect")
    assert found > FLIPS / 4  # much of a small archive is padding


def test_other_readers_see_plain_files(tmp_path):
    write(tmp_path / "x.safetensors")
    for name, array in load_file(tmp_path / "x.safetensors").items():
        assert array.tobytes() == np.asarray(TENSORS[name]).tobytes()
    with safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
        assert file.metadata().items() > NOTES.items()
    assert files.read_metadata(tmp_path / "x.safetensors") == NOTES


def test_the_same_content_is_the_same_file(tmp_path):
    notes = {f"ä{name}": '"\n\x1f' for name in range(9)}
    written = set()
    for _ in range(5):
        files.write_safetensors(tmp_path / "x.safetensors", TENSORS, notes)
        written.add((tmp_path / "x.safetensors").read_bytes())
    assert len(written) == 1
    assert files.read_metadata(tmp_path / "x.safetensors") == notes
    assert set(files.read_stored(tmp_path / "x.safetensors")) == set(TENSORS)


def test_files_of_others_open_as_before(tmp_path):
    for metadata in (None, {"format": "pt"}):
        save_file(TENSORS, tmp_path / "x.safetensors", metadata)
        assert set(files.read_stored(tmp_path / "x.safetensors")) == set(TENSORS)
    weights = {"a": torch.arange(100.0)}
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save(weights, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert files.read_stored(tmp_path / "x.pt")["a"].tolist() == weights["a"].tolist()
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert files.read_stored(tmp_path / "old.pt")["a"].tolist() == weights["a"].tolist()


def test_a_checksum_is_of_names_types_shapes_and_notes():
    def checksum(tensors=TENSORS, notes=NOTES):
        return intact.sealed_notes(tensors, notes)[intact.CHECKSUM]

    whole = checksum()
    assert checksum(dict(reversed(TENSORS.items()))) == whole
    renamed = {name.replace("bias", "bios"): array for name, array in TENSORS.items()}
    others = [
        renamed,
        TENSORS | {"bias": TENSORS["bias"].view(np.int16)},
        TENSORS | {"steps": TENSORS["steps"].reshape(2, 2)},
        {name: array for name, array in TENSORS.items() if name != "empty"},
    ]
    found = {json.dumps(checksum(tensors)) for tensors in others}
    assert len(found | {whole, checksum(notes=NOTES | {"groups": "4"})}) == 6


def test_parts_that_overlap_are_refused(tmp_path):
    """A small file that claims to hold a large one many times over is not read through."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\0" * 1000)
        (part,) = archive.infolist()
        archive.filelist += [part] * 50
    with pytest.raises(UserError, match="overlap"):
        files.read_stored(tmp_path / "x.pt")
