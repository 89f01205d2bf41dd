"""Files that are damaged, unknown or hostile: one line, and no code runs."""

import os
import pathlib
import pickle

import numpy as np
import pytest
import torch
from test_vit_names import timm_names
from weight_files import inspect, refused, tree

from repae_jax.interop import files


class Hostile:
    """Unpickled carelessly, this makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def a_text(path):
    path.write_text("not a file of weights\n")


def a_config(folder, text):
    folder.mkdir()
    (folder / "config.json").write_text(text)


NETWORKS = {"model": {}, "ema": {}, "opt": {}, "steps": 3}


# name in the folder -> (who makes it there, what the line says of it)
UNKNOWN = {
    "empty.pt": (lambda p: torch.save({}, p), "holds nothing"),
    "other.pt": (
        lambda p: torch.save({f"conv{i}.weight": torch.ones(2) for i in range(5)}, p),
        "holds 'conv0.weight', 'conv1.weight', 'conv2.weight' and 2 more",
    ),
    "other.safetensors": (
        lambda p: files.write_safetensors(p, {"x": np.ones(3)}), "holds 'x', which is no format"
    ),
    "nested.pt": (lambda p: torch.save({"state_dict": {"x": torch.ones(2)}}, p), "'state_dict'"),
    "numbered.pt": (lambda p: torch.save({0: torch.ones(2)}, p), "holds 0 where the name"),
    "numbered_inside.pt": (
        lambda p: torch.save({"state_dict": {0: torch.ones(2)}}, p), "holds 0 where the name"
    ),
    "plain.pt": (
        lambda p: torch.save({"latents_scale": 3, "latents_bias": "x"}, p), "'latents_scale'"
    ),
    "list.pt": (lambda p: torch.save([torch.ones(2)], p), "holds a list"),
    "tensor.pt": (lambda p: torch.save(torch.ones(2), p), "not a dict of tensors"),
    "parts.pt": (lambda p: torch.save(NETWORKS | {"model": 3}, p), "'model' is no dict"),
    "optimizer.pt": (lambda p: torch.save(NETWORKS | {"opt": 3}, p), "'opt' is no dict"),
    "no_sit.pt": (
        lambda p: torch.save({k: v for k, v in NETWORKS.items() if k != "ema"}, p),
        "neither 'model' nor 'ema' is a SiT",
    ),
    "script.pt": (
        lambda p: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), p), "TorchScript"
    ),
    "text.pt": (a_text, "not a readable"),
    "text.safetensors": (a_text, "not a readable safetensors file"),
    "weights.onnx": (a_text, "expected a file .safetensors"),
    "nothing.pt": (lambda p: None, "no such file or folder"),
    "folder": (pathlib.Path.mkdir, "neither config.json (diffusers, transformers, a run) nor"),
    "unet": (lambda p: a_config(p, '{"_class_name": "UNet2DModel"}'), "is of a 'UNet2DModel'"),
    "bert": (lambda p: a_config(p, '{"model_type": "bert"}'), "is of a 'bert'"),
    "nobody": (lambda p: a_config(p, "{}"), "names neither _class_name"),
    "damaged": (lambda p: a_config(p, "{"), "config.json is damaged"),
    "array": (lambda p: a_config(p, "[]"), "config.json is []"),
    "vae_alone": (
        lambda p: a_config(p, '{"_class_name": "AutoencoderKL"}'), "no weights beside config.json"
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file")
@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_unknown_is_one_line(name, tmp_path, capsys):
    make, message = UNKNOWN[name]
    make(tmp_path / name)
    before = tree(tmp_path)
    for words in (["inspect", tmp_path / name], ["convert", tmp_path / name, tmp_path / "target"]):
        line = refused(words, capsys)
        assert str(tmp_path / name) in line
        assert message in line
        assert tree(tmp_path) == before


def test_damaged_networks_are_no_tracebacks(tmp_path, capsys):
    """Names as they should be, shapes as they cannot be."""
    names = ("x_embedder.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
    torch.save({name: torch.ones(2) for name in names}, tmp_path / "sit.pt")
    said = inspect(tmp_path / "sit.pt", capsys)["SiT"]
    assert said.startswith(
        "not the weights of a SiT: tensor 'x_embedder.proj.weight' has the shape"
    )
    torch.save({"x_embedder.proj.weight": torch.ones(2, 3, 2, 2), "pos_embed": torch.ones(1, 4, 2)},
               tmp_path / "short.pt")  # fmt: skip
    assert (
        "tensor 'y_embedder.embedding_table.weight' is missing"
        in (inspect(tmp_path / "short.pt", capsys)["SiT"])
    )
    broken = {n: torch.ones(2) for n in timm_names()}
    torch.save(broken, tmp_path / "vit.pt")
    assert inspect(tmp_path / "vit.pt", capsys)["teacher"].startswith("damaged")
    torch.save({"main.0.weight": torch.tensor(1.0)}, tmp_path / "gan.pt")
    assert inspect(tmp_path / "gan.pt", capsys)["weights"] == "1 tensors: 1 float32"
    torch.save({"encoder.down.0.block.0.conv1.weight": torch.ones(2)}, tmp_path / "vae.pt")
    assert "has the wrong rank" in refused(["inspect", tmp_path / "vae.pt"], capsys)


def in_folder(config, name):
    def write(content, path):
        folder = path.with_suffix("")
        a_config(folder, config)
        torch.save(content, folder / name)
        return folder

    return write


def in_experiment(content, path):
    checkpoint = path.with_suffix("") / "checkpoints" / "0000003.pt"
    checkpoint.parent.mkdir(parents=True)
    torch.save(content, checkpoint)
    return checkpoint.parent.parent


def as_a_file(content, path):
    torch.save(content, path)
    return path


def as_an_old_file(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def as_a_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


HIDDEN = {
    "file": as_a_file,
    "old file": as_an_old_file,
    "pickle": as_a_pickle,
    "transformers": in_folder('{"model_type": "dinov2"}', "pytorch_model.bin"),
    "diffusers": in_folder('{"_class_name": "AutoencoderKL"}', "diffusion_pytorch_model.bin"),
    "experiment": in_experiment,
}


@pytest.mark.parametrize("how", HIDDEN)
def test_code_in_a_file_does_not_run(how, tmp_path, capsys):
    trace = tmp_path / "executed"
    # beside a tensor that would be recognised, so that nothing but the pickle is in the way
    content = {"x": Hostile(trace), "main.0.weight": torch.ones(2)}
    path = HIDDEN[how](content, tmp_path / "hostile.pt")
    before = tree(tmp_path)
    for words in (["inspect", path], ["convert", path, tmp_path / "target.safetensors"]):
        line = refused(words, capsys)
        assert str(path) in line
        assert "mkdir in it is code, and not run" in line
        assert tree(tmp_path) == before
    assert not trace.exists()
