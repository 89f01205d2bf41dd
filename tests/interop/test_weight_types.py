"""In which types weights may be stored: floating ones, wide or narrow, and no others."""

import itertools

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from weight_files import inspect, ldm_tensors, parts_of, refused

from repae_jax.cli import main
from repae_jax.errors import UserError
from repae_jax.interop import files
from repae_jax.interop.discriminator import load_discriminator
from repae_jax.interop.vae_files import read_vae
from repae_jax.models.discriminator import PatchDiscriminator
from repae_jax.runs.pretrained import PretrainedVAE

FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]


def save(tensors, path):
    torch.save(tensors, path) if path.suffix == ".pt" else save_file(tensors, path)
    return path


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("dtype", FLOAT8)
def test_float8_is_widened(dtype, suffix, tmp_path, capsys):
    tensors = {name: tensor.to(dtype) for name, tensor in ldm_tensors().items()}
    path = save(tensors, tmp_path / f"x.{suffix}")
    params = PretrainedVAE.from_pretrained(path).params
    np.testing.assert_array_equal(
        params["decoder"]["conv_out"]["bias"], tensors["decoder.conv_out.bias"].float().numpy()
    )
    for name, array in files.read_tensors(path).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, tensors[name].float().numpy(), err_msg=name)
    assert inspect(path, capsys)["weights"].endswith(str(dtype).removeprefix("torch."))


@pytest.mark.parametrize("dtype", FLOAT8)
def test_float8_survives_the_other_container(dtype, tmp_path):
    odd = torch.tensor([-0.0, 2.0**-9, 448.0, float("nan")])
    tensors = {"main.0.weight": torch.randn(4, 3).to(dtype), "main.0.bias": odd.to(dtype)}
    tensors["main.2.weight"] = torch.zeros(0, 3).to(dtype)
    names = [tmp_path / name for name in ("one.safetensors", "two.pt", "three.safetensors")]
    save_file(tensors, names[0])
    for source, target in itertools.pairwise(names):
        assert main(["convert", str(source), str(target)]) == 0
    for content in (torch.load(names[1], weights_only=True), load_file(names[2])):
        for name, tensor in tensors.items():
            assert (content[name].dtype, content[name].shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(content[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64]
)
def test_other_types_are_no_weights(dtype, suffix, tmp_path, capsys):
    victim = "encoder.mid.attn_1.q.weight"
    tensors = ldm_tensors()
    tensors[victim] = tensors[victim].to(dtype)
    path = save(tensors, tmp_path / f"x.{suffix}")
    name = str(dtype).removeprefix("torch.")
    message = f"{path}: tensor {victim!r} is of type {name}; weights are of one of float64,"
    with pytest.raises(UserError) as caught:
        read_vae(path)
    assert message in str(caught.value)
    assert message in refused(["inspect", path], capsys)
    assert message in refused(["convert", path, tmp_path / "out"], capsys)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("largest", [1e39, -1e300])
def test_doubles_that_overflow_floats_are_refused(suffix, largest, tmp_path, capsys):
    tensors = {name: tensor.double() for name, tensor in ldm_tensors().items()}
    read_vae(save(tensors, tmp_path / f"fine.{suffix}"))
    victim = "encoder.mid.attn_1.q.weight"
    tensors[victim].view(-1)[3] = largest
    path = save(tensors, tmp_path / f"x.{suffix}")
    message = f"{path}: tensor {victim!r} holds values that are not finite in float32"
    with pytest.raises(UserError) as caught:
        PretrainedVAE.from_pretrained(path)
    assert message in str(caught.value)
    assert message in refused(["convert", path, tmp_path / "out"], capsys)


def test_counters_may_be_integers(checkpoint):
    tensors = parts_of(checkpoint, "discriminator")["discriminator"]
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    assert arrays["main.3.num_batches_tracked"].dtype == np.int64
    model = PatchDiscriminator(filters=4, num_layers=2)
    load_discriminator(arrays, model)
    arrays["main.3.running_mean"] = arrays["main.3.running_mean"].astype(np.int64)
    with pytest.raises(UserError, match=r"'main.3.running_mean' is of type int64"):
        load_discriminator(arrays, model)


@pytest.mark.parametrize("dtype", ["float8_e8m0fnu", "float8_e4m3fnuz"])
def test_narrow_types_that_nobody_trains_with_are_named(dtype, tmp_path):
    path = tmp_path / "x.safetensors"
    files.write_safetensors(path, {"a": np.ones(2, getattr(ml_dtypes, dtype))})
    with pytest.raises(UserError, match=r"x.safetensors: tensor 'a' is of type F8_\w+, which"):
        files.read_stored(path)
