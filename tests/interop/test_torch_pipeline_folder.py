"""The folder of a pipeline: bad input in torch, damage at import, stored types, classes' names."""

import json
import re
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import torch_pipelines
from safetensors.numpy import load_file, save_file
from torch_pipelines import LABELS, our_images, torch_images
from weight_files import inspect, refused, tree

from repae_jax.cli import main
from repae_jax.data.identity import write_fingerprints
from repae_jax.interop import pipeline_folder
from repae_jax.interop.pipeline_code import code_of
from repae_jax.interop.pipeline_names import TRANSFORMERS
from repae_jax.models.backbones.families import BACKBONES
from repae_jax.runs.open_run import open_on_host

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
NAMES = [f"thing {number}" for number in range(10)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of named classes."""
    folder = tmp_path_factory.mktemp("pipeline") / "run"
    torch_pipelines.save_random_run(folder, torch_pipelines.CASES["sit qk_norm"]())
    classes = [[name, 1, "0" * 16, "0" * 16] for name in NAMES]
    train = {"source": "folder", "count": 10, "classes": classes}
    write_fingerprints(folder / "data.json", {"train": train})
    return folder


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline") / "pipe"
    assert main(["convert", str(run), str(path), "--to", "pipeline", "--quiet"]) == 0
    return path


@pytest.fixture(scope="module")
def pipe(folder):
    return torch_pipelines.open_in_torch(folder)


def test_every_family_has_code():
    """A new family of backbones needs a file in torch_pipeline, or a refusal on purpose."""
    for row in BACKBONES.values():
        assert row.build in TRANSFORMERS


CODE = sorted({kind.code for kind in TRANSFORMERS.values()})


@pytest.mark.parametrize("code", [*CODE, "pipeline"])
def test_a_file_of_code_stands_alone(code):
    text = code_of(code)
    assert "repae_jax." not in text
    compile(text, code, "exec")
    names = re.findall(r"^(?:class|def) (\w+)", text, re.M)
    assert len(names) == len(set(names))


def test_the_folder_names_its_parts_and_no_place(folder, run):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == ["repae_pipeline", "RepaePipeline"]
    assert index["id2label"]["3"] == "thing 3"
    assert {"README.md", "repae_pipeline.py", "run.json", "scheduler/repae_scheduler.py",
            "transformer/repae_sit.py", "vae/config.json", WEIGHTS} <= tree(folder)  # fmt: skip
    config = json.loads((folder / "run.json").read_text())["config"]
    assert config["tokenizer"]["weights"] == ""
    card = (folder / "README.md").read_text()
    assert "| steps | 4 of 8 images |" in card
    assert str(run.parent) not in card


def test_an_imported_run_keeps_the_names_of_its_classes(folder, tmp_path, capsys):
    assert main(["convert", str(folder), str(tmp_path / "back"), "--quiet"]) == 0
    again = tmp_path / "again"
    assert main(["convert", str(tmp_path / "back"), str(again), "--to", "pipeline", "--quiet"]) == 0
    assert (again / "model_index.json").read_text() == (folder / "model_index.json").read_text()
    (tmp_path / "back" / "class_names.json").write_text('["a", 3]')
    other = str(tmp_path / "other")
    assert main(["convert", str(tmp_path / "back"), other, "--to", "pipeline", "--quiet"]) == 2
    assert "class_names.json" in capsys.readouterr().err


def test_inspect_describes_it(folder, capsys):
    said = inspect(folder, capsys)
    assert said["format"] == "pipeline of repae_jax for diffusers, a whole generator"
    assert "width 16, depth 2, 2 heads" in said["SiT"]
    assert said["step"] == "4"
    assert "float32" in said["weights"]


def test_names_and_numbers_are_the_same_classes(pipe):
    given = dict(latents=torch.zeros(2, 2, 8, 8), num_inference_steps=2, output_type="latent")
    named = pipe(["thing 3", "thing 7"], **given).images
    assert torch.equal(named, pipe([3, 7], **given).images)
    assert not torch.equal(named, pipe([7, 3], **given).images)


def test_defaults_are_those_of_the_run(pipe):
    latents = torch.randn(1, 2, 8, 8, generator=torch.manual_seed(0))
    plain = pipe(3, latents=latents, output_type="latent").images
    same = pipe(
        3, latents=latents, output_type="latent", method="euler", num_inference_steps=3,
        guidance_scale=1.0, guidance_interval=(0.0, 1.0),
    ).images  # fmt: skip
    assert torch.equal(plain, same)


def test_outputs_are_of_one_image(pipe):
    given = dict(latents=torch.zeros(1, 2, 8, 8), num_inference_steps=2)
    (image,) = pipe(3, **given, return_dict=False)[0]
    floats, tensor = (pipe(3, **given, output_type=kind).images for kind in ("np", "pt"))
    np.testing.assert_array_equal(np.asarray(image), (255 * floats[0]).astype(np.uint8))
    np.testing.assert_array_equal(floats, tensor.permute(0, 2, 3, 1).numpy())


def test_a_generator_decides_the_images(pipe):
    def images(seed, **options):
        generator = torch.manual_seed(seed)
        given = dict(method="euler-maruyama", num_inference_steps=3, output_type="latent")
        return pipe([3, 4], generator=generator, **given, **options).images

    assert torch.equal(images(0), images(0))
    assert not torch.equal(images(0), images(1))
    assert len(images(0, num_images=2)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(class_labels="a cat"), "class_labels has 'a cat': the classes are thing 0"),
        (dict(class_labels=10), "class_labels has 10: the model's classes are 0 to 9"),
        (dict(class_labels=[1, -2]), "class_labels has -2"),
        (dict(class_labels=1.5), "class_labels has 1.5"),
        (dict(class_labels=[]), "class_labels is empty"),
        (dict(), "a model of classes: give class_labels"),
        (dict(prompt="a cat"), "a model of classes: give class_labels"),
        (dict(negative_prompt="x"), "no effect at a guidance_scale of 1"),
        (dict(negative_prompt="x", guidance_scale=2.0), "takes no negative_prompt"),
        (dict(num_images=0), "num_images is 0"),
        (dict(num_inference_steps=0), "num_inference_steps is 0: euler takes"),
        (dict(num_inference_steps=2.5), "num_inference_steps is 2.5"),
        (dict(method="ddpm"), "method is 'ddpm': choose one of euler, heun, euler-maruyama"),
        (dict(method="euler-maruyama", num_inference_steps=1), "from 2 to"),
        (dict(guidance_scale=-1.0), "guidance_scale is -1.0"),
        (dict(guidance_scale=float("nan")), "guidance_scale is nan"),
        (dict(guidance_interval=(0.9, 0.1)), "guidance_interval is (0.9, 0.1)"),
        (dict(latents=torch.zeros(1, 2, 8, 4)), "latents has the shape (1, 2, 8, 4)"),
        (dict(class_token=torch.zeros(1, 8)), "the model denoises none"),
        (dict(method="euler-maruyama", step_noise=lambda step: torch.zeros(1, 3, 8, 8)),
         "step_noise(0) has the shapes"),
        (dict(output_type="jpg"), "output_type is 'jpg'"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(arguments, message, pipe):
    given = dict(class_labels=3, num_inference_steps=2)
    if "prompt" in arguments or not arguments:
        del given["class_labels"]
    with pytest.raises(ValueError, match=re.escape(message)):
        pipe(**given | arguments)


def test_latents_that_break_name_their_step(pipe):
    latents = torch.zeros(1, 2, 8, 8)
    latents[0, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="NaN or infinite from sampling step 1 on"):
        pipe(3, latents=latents, num_inference_steps=2)


def test_a_model_without_a_null_class_is_not_guided(tmp_path):
    make = torch_pipelines.CASES["sit without null class"]
    torch_pipelines.save_random_run(tmp_path / "run", make())
    assert (
        main(["convert", *map(str, (tmp_path / "run", tmp_path / "pipe")), "--to", "pipeline"]) == 0
    )
    pipe = torch_pipelines.open_in_torch(tmp_path / "pipe")
    for arguments in (dict(class_labels=3, guidance_scale=2.0), dict(class_labels=-1)):
        with pytest.raises(ValueError, match="it has no null class"):
            pipe(**arguments, num_inference_steps=1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_stored_in_another_type(dtype, run, tmp_path):
    words = ["convert", str(run), str(tmp_path / "pipe"), "--to", "pipeline", "--dtype", dtype]
    assert main([*words, "--quiet"]) == 0
    stored = load_file(tmp_path / "pipe" / WEIGHTS) if dtype == "float16" else None
    if stored is not None:
        wide = {name for name, array in stored.items() if array.dtype == np.float32}
        assert wide == {"pos_embed", "bn.running_mean", "bn.running_var"}
        assert {array.dtype.name for array in stored.values()} == {"float16", "float32"}
    pipe = torch_pipelines.open_in_torch(tmp_path / "pipe", dtype=getattr(torch, dtype))
    assert pipe.transformer.x_embedder.proj.weight.dtype == getattr(torch, dtype)
    assert pipe.transformer.pos_embed.dtype == torch.float32
    ours, given = our_images(run, LABELS, guidance_scale=1.5)
    found = torch_images(pipe, LABELS, **given)
    assert 0 < np.abs(found.astype(int) - ours).mean() < 3
    assert main(["convert", str(tmp_path / "pipe"), str(tmp_path / "back"), "--quiet"]) == 0
    before, after = (open_on_host(path).state.ema["params"] for path in (run, tmp_path / "back"))
    kind = np.float16 if dtype == "float16" else ml_dtypes.bfloat16

    def is_rounded(one, other):
        np.testing.assert_array_equal(one.astype(kind).astype(np.float32), other)

    jax.tree.map(is_rounded, before, after)


def test_a_value_too_large_for_float16_is_named(run, tmp_path, capsys, monkeypatch):
    state = open_on_host(run)
    big = jax.tree.map(lambda a: a + 1e6, state.state.ema["params"]["final_layer"])
    params = {**state.state.ema["params"], "final_layer": big}
    changed = state.state.replace(ema={**state.state.ema, "params": params})
    import dataclasses

    from repae_jax.runs import pipeline_conversion

    monkeypatch.setattr(
        pipeline_conversion, "open_on_host", lambda *_: dataclasses.replace(state, state=changed)
    )
    words = ["convert", run, tmp_path / "x", "--to", "pipeline", "--dtype", "float16"]
    line = refused(words, capsys)
    assert "tensor 'final_layer.linear.weight' has values that are not finite in float16" in line
    assert not tree(tmp_path)


def edited(folder, target, *, tensors=None, files=None):
    """A copy of a folder with other tensors (None: removed) and other keys of JSON files."""
    shutil.copytree(folder, target)
    for name, keys in (files or {}).items():
        content = json.loads((target / name).read_text())
        (target / name).write_text(json.dumps(content | keys))
    if tensors:
        arrays = load_file(target / WEIGHTS)
        arrays |= {name: change(arrays.get(name)) for name, change in tensors.items()}
        kept = {name: array for name, array in arrays.items() if array is not None}
        save_file(kept, target / WEIGHTS)
    return target


@pytest.mark.parametrize(
    ("tensors", "files", "message"),
    [
        ({"blocks.1.attn.qkv.bias": lambda a: None}, {},
         "tensor 'blocks.1.attn.qkv.bias' is missing"),
        ({"extra": lambda a: np.zeros(3, np.float32)}, {}, "unexpected tensor 'extra'"),
        ({"pos_embed": lambda a: a[:, 1:].copy()}, {}, "'pos_embed' has shape (1, 15, 16)"),
        ({"bn.running_mean": lambda a: a * np.nan}, {}, "not finite"),
        ({"bn.running_var": lambda a: -a}, {}, "'bn.running_var' has a value that is not positive"),
        ({}, {"transformer/config.json": {"depth": 3}}, "depth is 3, but the configuration"),
        ({}, {"transformer/config.json": {"_class_name": "RepaeJiT"}}, "_class_name is 'RepaeJiT'"),
        ({}, {"transformer/config.json": {"learn_sigma": True}}, "learn_sigma is True"),
        ({}, {"run.json": {"step": "four"}}, "step"),
        ({}, {"run.json": {"config": {"backbone": 3}}}, "backbone"),
        ({}, {"vae/config.json": {"latent_channels": 3}}, "vae"),
    ],
)  # fmt: skip
def test_damage_is_named(tensors, files, message, folder, tmp_path, capsys):
    broken = edited(folder, tmp_path / "broken", tensors=tensors, files=files)
    line = refused(["convert", broken, tmp_path / "back"], capsys)
    assert message in line
    assert str(broken) in line
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("part", ["run.json", WEIGHTS, "transformer/config.json", "vae"])
def test_a_missing_part_is_named(part, folder, tmp_path, capsys):
    broken = edited(folder, tmp_path / "broken")
    path = broken / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    line = refused(["convert", broken, tmp_path / "back"], capsys)
    assert "missing" in line
    assert not (tmp_path / "back").exists()


def test_torch_refuses_other_tensors_too(folder, tmp_path):
    drop = {"blocks.1.attn.qkv.bias": lambda a: None}
    broken = edited(folder, tmp_path / "broken", tensors=drop)
    with pytest.raises(ValueError, match="missing keys: blocks.1.attn.qkv.bias"):
        torch_pipelines.open_in_torch(broken)


def test_the_folders_code_is_never_run(folder, tmp_path):
    hostile = edited(folder, tmp_path / "hostile")
    for file in hostile.rglob("*.py"):
        file.write_text("raise SystemExit('run')\n")
    assert main(["convert", str(hostile), str(tmp_path / "back"), "--quiet"]) == 0
    assert main(["inspect", str(hostile)]) == 0


def test_options_of_other_targets_are_named(run, folder, tmp_path, capsys):
    words = ["convert", run, tmp_path / "vae", "--to", "diffusers", "--dtype", "float16"]
    assert "--dtype is float16, but 'diffusers' takes none" in refused(words, capsys)
    words = ["convert", folder, tmp_path / "x", "--to", "diffusers"]
    assert "cannot be converted to 'diffusers': choose one of run" in refused(words, capsys)
    words = ["convert", run, folder, "--to", "pipeline"]
    assert "exists already" in refused(words, capsys)


def test_a_backbone_from_outside_is_refused():
    with pytest.raises(Exception, match="a pipeline has code for SiT, LightningDiT"):
        pipeline_folder.transformer_of(object())
