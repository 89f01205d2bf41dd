"""Weights in several files under one index."""

import json
import shutil

import diffusers_vae
import parity
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_vit_names import timm_names
from torch_vits import small
from weight_files import VAE, assert_same_trees, inspect, refused

from repae_jax.config import teacher
from repae_jax.interop.autoencoder_kl import load_vae
from repae_jax.interop.detect_format import detect
from repae_jax.interop.vae_files import read_vae
from repae_jax.interop.vit import load_vit
from repae_jax.runs.weights import load_teacher

SHARDED = ["safetensors", "bin"]


def shards(folder, suffix, stem, tensors, variant=""):
    """Two files and their index, as diffusers and transformers write them."""
    names = sorted(tensors)
    parts = {f"{stem}-00001-of-00002.{suffix}": names[::2]}
    parts[f"{stem}-00002-of-00002.{suffix}"] = names[1::2]
    for file, part in parts.items():
        held = {name: tensors[name] for name in part}
        save_file(held, folder / file) if suffix == "safetensors" else torch.save(
            held, folder / file
        )
    places = {name: file for file, part in parts.items() for name in part}
    index = folder / f"{stem}.{suffix}.index{variant}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index, parts


def shard_vae(folder, suffix="safetensors"):
    """A folder of diffusers' with its weights in two files, and the same in one."""
    peer = parity.randomise(diffusers_vae.make_vae(VAE))
    peer.save_pretrained(folder / "one")
    (folder / "two").mkdir()
    shutil.copy(folder / "one" / "config.json", folder / "two")
    tensors = {name: tensor.contiguous() for name, tensor in peer.state_dict().items()}
    return shards(folder / "two", suffix, "diffusion_pytorch_model", tensors)


@pytest.mark.parametrize("suffix", SHARDED)
def test_a_vae_in_shards(suffix, tmp_path, capsys):
    index, _ = shard_vae(tmp_path, suffix)
    one, two = (read_vae(tmp_path / name) for name in ("one", "two"))
    assert_same_trees(two.params, one.params)
    assert_same_trees(read_vae(index).params, one.params)
    assert (
        inspect(tmp_path / "two", capsys)["weights"]
        == (inspect(tmp_path / "one", capsys)["weights"])
    )
    # and diffusers reads it so as well
    diffusers = type(diffusers_vae.make_vae(VAE))
    peer = diffusers.from_pretrained(tmp_path / "two", use_safetensors=suffix == "safetensors")
    assert_same_trees(load_vae(parity.state_of(peer), one.module), one.params)


def test_a_teacher_in_shards(tmp_path, capsys):
    tensors = {name: torch.tensor(array) for name, array in timm_names().items()}
    index, _ = shards(tmp_path, "safetensors", "model", tensors)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    model = small("dino-b")
    expected = load_vit(timm_names(), model)
    assert_same_trees(load_teacher(teacher(weights=str(tmp_path)), model, 32), expected)
    assert_same_trees(load_teacher(teacher(weights=str(index)), model, 32), expected)
    assert detect(tmp_path).format == "vit"


def spoil(index, parts, how):
    """One thing wrong with shards; returns what the message must say."""
    text = json.loads(index.read_text())
    first, second = (index.parent / file for file in parts)
    name = parts[second.name][0]
    if how == "gone":
        second.unlink()
        return f"lists {second.name}, which is not there"
    if how == "tensor":
        del text["weight_map"][name]
        text["weight_map"] |= {"more.weight": second.name}
        index.write_text(json.dumps(text))
        return f"{second}: tensor 'more.weight' is missing"
    if how == "twice":
        save_file(load_file(first) | load_file(second), first)
        return "is in another file of"
    if how == "damaged":
        index.write_text("{")
        return f"{index} is damaged, no JSON"
    if how == "list":
        index.write_text("[]")
        return f"{index} is []: it must be a valid dictionary"
    place = {"above": f"../{second.name}", "absolute": str(second), "loop": index.name}[how]
    if how == "above":
        shutil.copy(second, index.parents[1])
    text["weight_map"][name] = place
    index.write_text(json.dumps(text))
    return f"lists {place!r}, which is no "


@pytest.mark.parametrize(
    "how", ["gone", "tensor", "twice", "damaged", "list", "above", "absolute", "loop"]
)
def test_spoilt_shards_are_one_line(how, tmp_path, capsys):
    index, parts = shard_vae(tmp_path)
    message = spoil(index, parts, how)
    line = refused(["inspect", tmp_path / "two"], capsys)
    assert message in line
    assert str(tmp_path / "two") in line
