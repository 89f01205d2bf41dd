"""Folders and repositories with several files of weights: variants, shards, both containers."""

import json
import shutil

import diffusers_vae
import huggingface_hub
import numpy as np
import parity
import pytest
import torch
from safetensors.numpy import load_file, save_file
from test_vit_names import timm_names
from torch_vits import small
from weight_files import VAE, inspect, ldm_tensors, refused, write_statistics

from repae_jax import AutoencoderKL
from repae_jax.cli import main
from repae_jax.config import teacher
from repae_jax.errors import UserError
from repae_jax.interop.detect_format import detect
from repae_jax.interop.files import read_tensors
from repae_jax.interop.vae_files import read_vae
from repae_jax.interop.vit import load_vit
from repae_jax.runs.weights import load_teacher

PLAIN = "diffusion_pytorch_model.safetensors"
EMA, FP16, NON_EMA = (
    f"diffusion_pytorch_model.{variant}.safetensors" for variant in ("ema", "fp16", "non_ema")
)
# which of a VAE's files tells itself by the value of this tensor
MARK = "decoder.conv_out.bias"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of diffusers'."""
    folder = tmp_path_factory.mktemp("whole")
    parity.randomise(diffusers_vae.make_vae(VAE)).save_pretrained(folder)
    return folder


def with_files(whole, folder, names):
    """A folder with these files of weights, the n-th of which is marked by n."""
    folder.mkdir()
    shutil.copy(whole / "config.json", folder)
    tensors = load_file(whole / PLAIN)
    for number, name in enumerate(names):
        marked = tensors | {MARK: np.full(3, number, np.float32)}
        if name.endswith(".bin"):
            torch.save({n: torch.tensor(a) for n, a in marked.items()}, folder / name)
        else:
            save_file(marked, folder / name)
    return folder


@pytest.mark.parametrize("names", ["all", "one", "shards"])
def test_numbers_for_names_are_one_line(names, whole, tmp_path, capsys):
    folder, tensors = tmp_path / "vae", load_file(whole / PLAIN)
    folder.mkdir()
    shutil.copy(whole / "config.json", folder)
    file = folder / "diffusion_pytorch_model.bin"
    named = {n if names == "one" else k: torch.tensor(tensors[n]) for k, n in enumerate(tensors)}
    torch.save(named | {0: torch.ones(2)}, file)
    if names == "shards":
        file = file.rename(folder / "a.bin")
        index = {"weight_map": {"x": "a.bin"}}
        (folder / "diffusion_pytorch_model.bin.index.json").write_text(json.dumps(index))
    message = f"{file}: holds 0 where the name of a tensor belongs"
    with pytest.raises(UserError, match=message):
        AutoencoderKL.from_pretrained(folder)
    for words in (["inspect", folder], ["convert", folder, tmp_path / "out.pt"]):
        assert message in refused(words, capsys)


@pytest.mark.parametrize("read", [read_vae, read_tensors])
def test_numbers_for_names_are_one_line_in_any_file(read, tmp_path):
    torch.save({0: torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x.pt: holds 0 where the name of a tensor belongs"):
        read(tmp_path / "x.pt")


def mark(vae):
    return vae.params["decoder"]["conv_out"]["bias"][0]


def test_variants_alone_are_refused_and_named(whole, tmp_path, capsys):
    folder = with_files(whole, tmp_path / "vae", [EMA, FP16])
    message = f"{folder}: {PLAIN} is missing; there are {EMA}, {FP16}: name the one that is meant"
    with pytest.raises(UserError) as caught:
        AutoencoderKL.from_pretrained(folder)
    assert message in str(caught.value)
    for words in (["inspect", folder], ["convert", folder, tmp_path / "out"]):
        assert message in refused(words, capsys)
    # the ways that the message shows
    assert mark(AutoencoderKL.from_pretrained(folder, variant="fp16")) == 1
    assert mark(read_vae(folder, variant="ema")) == 0
    assert mark(read_vae(folder / FP16)) == 1
    found = inspect(folder / FP16, capsys)
    assert found["format"] == "VAE as diffusers writes it"
    assert (
        found["latents"] == inspect(with_files(whole, tmp_path / "p", [PLAIN]), capsys)["latents"]
    )
    assert main(["convert", str(folder / FP16), str(tmp_path / "out")]) == 0
    assert mark(read_vae(tmp_path / "out")) == 1
    assert (tmp_path / "out" / PLAIN).is_file()


def test_a_single_variant_has_to_be_named_too(whole, tmp_path):
    folder = with_files(whole, tmp_path / "vae", [NON_EMA])
    with pytest.raises(UserError, match=r"there are .*non_ema.safetensors: name the one"):
        read_vae(folder)
    assert mark(read_vae(folder, variant="non_ema")) == 0


BIN, FP16_BIN = "diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"


@pytest.mark.parametrize(
    ("names", "variant", "expected"),
    [
        ([EMA, FP16, PLAIN], None, 2),  # the plain one
        ([BIN, PLAIN], None, 1),  # safetensors
        ([BIN, FP16], None, 0),  # the plain one, in either container
        ([FP16_BIN, FP16, PLAIN], "fp16", 1),
        ([FP16_BIN, PLAIN], "fp16", 0),
    ],
)
def test_which_file_is_taken(names, variant, expected, whole, tmp_path):
    folder = with_files(whole, tmp_path / "vae", names)
    assert mark(read_vae(folder, variant=variant)) == expected


@pytest.mark.parametrize("variant", ["bf16", "../fp16", "", "fp16.safetensors"])
def test_another_variant_is_refused(variant, whole, tmp_path):
    folder = with_files(whole, tmp_path / "vae", [FP16, PLAIN])
    with pytest.raises(UserError) as caught:
        AutoencoderKL.from_pretrained(folder, variant=variant)
    message = {"bf16": "diffusion_pytorch_model.bf16.safetensors is missing; there are"}
    assert message.get(variant, f"variant is {variant!r}") in str(caught.value)
    torch.save({}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x.pt: has no variant 'fp16'"):
        AutoencoderKL.from_pretrained(tmp_path / "x.pt", variant="fp16")


def teacher_folder(folder, names):
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "vit"}')
    for number, name in enumerate(names):
        token = np.full((1, 1, 24), number, np.float32)
        save_file(timm_names() | {"cls_token": token}, folder / name)
    return folder


def class_token(path):
    loaded = load_teacher(teacher(weights=str(path)), small("dino-b"), 32)
    return np.asarray(loaded["params"]["class_token"])


def test_teachers_have_variants_too(tmp_path, capsys):
    model = small("dino-b")
    folder = teacher_folder(tmp_path / "t", ["model.ema.safetensors", "model.fp16.safetensors"])
    with pytest.raises(UserError, match=r"model.safetensors is missing; there are model.ema.safet"):
        load_teacher(teacher(weights=str(folder)), model, 32)
    assert "there are model.ema.safetensors" in refused(["inspect", folder], capsys)
    for number, name in enumerate(("model.ema.safetensors", "model.fp16.safetensors")):
        assert (class_token(folder / name) == number).all()
    assert detect(folder / "model.fp16.safetensors").format == "vit"
    # a folder of older days has a pickle
    old = tmp_path / "old"
    old.mkdir()
    torch.save({n: torch.tensor(a) for n, a in timm_names().items()}, old / "pytorch_model.bin")
    expected = load_vit(timm_names(), model)["params"]["class_token"]
    np.testing.assert_array_equal(class_token(old), expected)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with what lies in this folder, under owner/repository."""
    folder = tmp_path / "hub"

    def download(repository, file):
        if not (folder / repository / file).is_file():
            raise huggingface_hub.errors.EntryNotFoundError(file)
        return str(folder / repository / file)

    def names(repository):
        paths = (path.relative_to(folder / repository) for path in folder.rglob("*.*"))
        return [str(path) for path in paths]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", names)
    (folder / "owner").mkdir(parents=True)
    return folder / "owner" / "name"


def test_variants_on_the_hub(whole, hub, capsys):
    hub.mkdir()
    with_files(whole, hub / "vae", [EMA, FP16])
    with pytest.raises(UserError) as caught:
        AutoencoderKL.from_pretrained("owner/name/vae")
    assert f"hf://owner/name/vae: {PLAIN} is missing; there are {EMA}, {FP16}" in str(caught.value)
    assert mark(AutoencoderKL.from_pretrained("owner/name/vae", variant="fp16")) == 1
    assert mark(read_vae(f"hf://owner/name/vae/{EMA}")) == 0
    assert "there are" in refused(["inspect", "hf://owner/name/vae"], capsys)
    assert inspect(f"hf://owner/name/vae/{FP16}", capsys)["latents"]


def test_a_bin_and_shards_on_the_hub(whole, hub):
    with_files(whole, hub, [BIN])
    assert mark(read_vae("hf://owner/name")) == 0
    tensors = load_file(whole / PLAIN)
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({n: tensors[n] for n in part}, hub / f"part-{number}.safetensors")
    places = {name: f"part-{n % 2}.safetensors" for n, name in enumerate(names)}
    (hub / f"{PLAIN}.index.json").write_text(json.dumps({"weight_map": places}))
    np.testing.assert_array_equal(mark(read_vae("hf://owner/name")), tensors[MARK][0])
    (hub / "part-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot fetch part-1.safetensors from .* hub"):
        read_vae("hf://owner/name")


def test_a_file_on_the_hub_comes_with_its_statistics(hub):
    hub.mkdir()
    torch.save(ldm_tensors(), hub / "e2e-vae.pt")
    assert read_vae("hf://owner/name/e2e-vae.pt").statistics is None
    write_statistics(hub / "e2e-vae-latents-stats.pt")
    assert read_vae("hf://owner/name/e2e-vae.pt").statistics["mean"][1] == np.float32(-0.2)
    # without hf:// it is a path, even in Python
    with pytest.raises(UserError, match="no such file or folder"):
        AutoencoderKL.from_pretrained("owner/name/e2e-vae.pt")


def test_a_teacher_on_the_hub(hub):
    teacher_folder(hub, ["model.safetensors"])
    assert (class_token("hf://owner/name") == 0).all()
