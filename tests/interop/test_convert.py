"""`convert` between formats and containers, and what it refuses."""

import itertools
import shutil

import diffusers_vae
import jax
import ml_dtypes
import numpy as np
import parity
import pytest
import torch
from runs import TINY
from safetensors import safe_open
from weight_files import (
    VAE,
    inspect,
    ldm_tensors,
    parts_of,
    random,
    refused,
    second_stage,
    tree,
    write_statistics,
)

from repae_jax.cli import main
from repae_jax.interop import files
from repae_jax.interop.detect_format import detect
from repae_jax.interop.formats import FORMATS
from repae_jax.models.encoders.vit import ViT
from repae_jax.runs.weights import save_teacher

OF_A_RUN = "checkpoint, fuse-dit, diffusers, vae, pipeline, transformer, dit-pipeline"


@pytest.fixture(scope="module")
def sources(run, checkpoint, tmp_path_factory):
    """One file or folder of several formats."""
    folder = tmp_path_factory.mktemp("sources")
    parts = parts_of(checkpoint, "model", "discriminator")
    torch.save(parts["model"], folder / "sit.pt")
    torch.save(parts["discriminator"], folder / "discriminator.pt")
    torch.save(second_stage(checkpoint, "repa"), folder / "repa.pt")
    torch.save(ldm_tensors(), folder / "vae.pt")
    write_statistics(folder / "statistics.pt")
    parity.randomise(diffusers_vae.make_vae(VAE)).save_pretrained(folder / "diffusers")
    names = {path.stem: path for path in folder.iterdir()}
    return names | {"run": run, "repae": checkpoint}


@pytest.mark.parametrize(
    ("source", "to", "possible"),
    [
        ("discriminator", "diffusers", "file"),
        ("discriminator", "vae", "file"),
        ("sit", "vae", "run, file"),
        ("sit", "checkpoint", "run, file"),
        ("statistics", "diffusers", "file"),
        ("vae", "run", "diffusers, vae"),
        ("vae", "file", "diffusers, vae"),
        ("diffusers", "checkpoint", "diffusers, vae"),
        ("repa", "diffusers", "run"),
        ("repa", "checkpoint", "run"),
        ("repae", "checkpoint", "run, diffusers, vae"),
        ("run", "run", OF_A_RUN),
        ("run", "file", OF_A_RUN),
    ],
)
def test_the_wrong_family_is_named(source, to, possible, sources, tmp_path, capsys):
    target = tmp_path / ("x.pt" if to in ("vae", "file", "checkpoint") else "x")
    line = refused(["convert", sources[source], target, "--to", to], capsys)
    assert f"{sources[source]} ({FORMATS[source]}) cannot be converted to {to!r}" in line
    assert line.endswith(f"choose one of {possible}\n")
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("source", ["discriminator", "sit", "statistics", "repa"])
@pytest.mark.parametrize("command", ["train", "convert"])
def test_another_network_as_the_vae_is_named(command, source, sources, tmp_path, capsys):
    words = ["--config", f"{TINY}:repa", f"--config.tokenizer.weights={sources[source]}", "--quiet"]
    if command == "train":
        words = ["train", *words, "--workdir", tmp_path / "run"]
        model = ViT(patch_size=8, native_grid=4, dim=8, depth=1, num_heads=2)
        images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
        params = random(jax.eval_shape(model.init, jax.random.key(0), images))["params"]
        teacher = tmp_path.parent / f"{tmp_path.name}_teacher.safetensors"
        save_teacher(str(teacher), params, {})
        words.append(f"--config.teachers.small.weights={teacher}")
    else:
        words = ["convert", sources["repa"], tmp_path / "run", *words]
    line = refused(words, capsys)
    assert f"{sources[source]}: not the weights of an AutoencoderKL" in line
    if command == "convert":
        assert tree(tmp_path) == set()


CHECKPOINT = "'checkpoint' writes a file whose name ends in .pt or .pth"


ANY_FILE = "{!r} writes a file whose name ends in .pt, .pth or .safetensors"


FOLDER = "{!r} writes a folder, whose name does not end in '.pt'"


@pytest.mark.parametrize(
    ("source", "name", "to", "message"),
    [
        ("run", "x.onnx", None, CHECKPOINT),
        ("run", "x.safetensors", None, CHECKPOINT),
        ("run", "x", "checkpoint", CHECKPOINT),
        ("run", "x.pt", "diffusers", FOLDER.format("diffusers")),
        ("repae", "x.pt", "run", FOLDER.format("run")),
        ("vae", "x.bin", None, ANY_FILE.format("vae")),
        ("vae", "x", "vae", ANY_FILE.format("vae")),
        ("sit", "x.ckpt", None, ANY_FILE.format("file")),
        ("sit", "x", "file", ANY_FILE.format("file")),
    ],
)
def test_the_targets_name_must_fit(source, name, to, message, sources, tmp_path, capsys):
    words = ["convert", sources[source], tmp_path / name, *(["--to", to] if to else [])]
    line = refused(words, capsys)
    assert f"{tmp_path / name}: {message}" in line
    assert tree(tmp_path) == set()


def test_a_folder_may_have_a_number_in_its_name(sources, tmp_path):
    assert main(["convert", str(sources["vae"]), str(tmp_path / "e2e-sd3.5-vae")]) == 0
    assert detect(tmp_path / "e2e-sd3.5-vae").format == "diffusers"


TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", TYPES)
def test_the_other_container_and_back(dtype, tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 4, generator=generator)
    tensors = {
        "main.0.weight": values.to(dtype),
        "main.0.bias": values.t().to(dtype),  # not contiguous
        "main.3.num_batches_tracked": torch.tensor(7),
        "main.5.weight": torch.zeros(0, 3, dtype=dtype),
    }
    if dtype.is_floating_point:  # bits that arithmetic would not keep
        odd = torch.tensor([-0.0, float("inf"), float("nan"), torch.finfo(dtype).tiny / 2])
        tensors["main.6.bias"] = odd.to(dtype)
    names = [tmp_path / name for name in ("one.pt", "two.safetensors", "three.pt", "four.pth")]
    torch.save(tensors, names[0])
    for source, target in itertools.pairwise(names):
        assert main(["convert", str(source), str(target)]) == 0
    with safe_open(names[1], framework="pt") as file:
        assert file.metadata()["format"] == "pt"  # which transformers asks for
        middle = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for content in (middle, *(torch.load(name, weights_only=True) for name in names[2:])):
        assert set(content) == set(tensors)
        for name, tensor in tensors.items():
            assert (content[name].dtype, content[name].shape) == (tensor.dtype, tensor.shape), name
            raw = (t.contiguous().reshape(-1).view(torch.uint8) for t in (content[name], tensor))
            assert torch.equal(*raw), name
    assert inspect(names[1], capsys)["weights"] == inspect(names[0], capsys)["weights"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_vae_in_the_other_container_and_back(dtype, tmp_path, capsys):
    tensors = ldm_tensors(dtype)
    one, two, three = (tmp_path / name for name in ("one.pt", "two.safetensors", "three.pt"))
    torch.save(tensors, one)
    write_statistics(tmp_path / "one-latents-stats.pt")
    capsys.readouterr()
    assert main(["convert", str(one), str(two)]) == 0
    assert capsys.readouterr().out == (
        f"{two}: the VAE under LDM's names, beside it two-latents-stats.pt\n"
    )
    assert main(["convert", str(two), str(three)]) == 0
    numpy = {torch.bfloat16: ml_dtypes.bfloat16, torch.float16: np.float16}.get(dtype, np.float32)
    assert {array.dtype for array in files.read_stored(two).values()} == {np.dtype(numpy)}
    for path, expected in (
        (three, tensors),
        (tmp_path / "three-latents-stats.pt", torch.load(tmp_path / "one-latents-stats.pt")),
    ):
        actual = torch.load(path, weights_only=True)
        assert set(actual) == set(expected)
        for name, tensor in expected.items():
            assert actual[name].dtype == tensor.dtype
            assert torch.equal(actual[name], tensor), name


def test_what_stands_beside_the_target_stays(sources, run, tmp_path, capsys):
    for path, source in (("x-latents-stats.pt", run), ("x-discriminator-ckpt.pt", run)):
        (tmp_path / path).write_bytes(b"precious")
        line = refused(["convert", source, tmp_path / "x.safetensors", "--to", "vae"], capsys)
        assert f"{tmp_path / path} exists already" in line
        assert tree(tmp_path) == {path}
        assert (tmp_path / path).read_bytes() == b"precious"
        (tmp_path / path).unlink()
    # but a VAE's own statistics serve both containers of it
    shutil.copy(sources["vae"], tmp_path / "v.pt")
    write_statistics(tmp_path / "v-latents-stats.pt")
    before = (files.read_stored(tmp_path / "v-latents-stats.pt"))["latents_scale"].tobytes()
    assert main(["convert", str(tmp_path / "v.pt"), str(tmp_path / "v.safetensors")]) == 0
    after = files.read_stored(tmp_path / "v-latents-stats.pt")["latents_scale"].tobytes()
    assert after == before


def test_other_groups_need_a_file_that_tells_them(run, tmp_path, capsys):
    line = refused(["convert", run, tmp_path / "x.pt", "--to", "vae"], capsys)
    assert "groups and not the usual 32" in line
    assert tree(tmp_path) == set()
    assert main(["convert", str(run), str(tmp_path / "x.safetensors"), "--to", "vae"]) == 0
    assert inspect(tmp_path / "x.safetensors", capsys)["VAE"].endswith(", 2 groups")
    written = {"x.safetensors", "x-latents-stats.pt", "x-discriminator-ckpt.pt"}
    assert tree(tmp_path) == written


@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_help_names_the_formats(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for word in ("work directory", "training checkpoint", "REPA", "LDM", "diffusers", "teacher",
                 "LPIPS", "hf://owner/name"):  # fmt: skip
        assert word in text, word
