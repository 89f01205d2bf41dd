"""DiTs in diffusers' folders become runs, and come back bit by bit; diffusers opens them."""

import json
import shutil
import types

import jax
import numpy as np
import parity
import pytest
import tiny
import torch
from config_files import write_config
from diffusers import DiTPipeline, DiTTransformer2DModel
from foreign_trips import write_vae
from safetensors.numpy import load_file, save_file
from saved import assert_same_content, saved_content
from torch_dit import make_dit
from weight_files import refused

from repae_jax.cli import main
from repae_jax.config import backbone
from repae_jax.errors import UserError
from repae_jax.interop import files
from repae_jax.interop.detect_format import detect
from repae_jax.interop.dit_folder import StoredDiT, read_dit, write_dit
from repae_jax.runs.build import build_models
from repae_jax.runs.dit_conversion import config_of
from repae_jax.runs.open_run import load_state

SIDE, CHANNELS, CLASSES = 8, 2, 10
WEIGHTS = "diffusion_pytorch_model.safetensors"
SIZES = dict(
    num_attention_heads=2, attention_head_dim=16, in_channels=CHANNELS, out_channels=2 * CHANNELS,
    num_layers=2, sample_size=SIDE, num_embeds_ada_norm=CLASSES,
)  # fmt: skip
X = parity.normal(3, SIDE, SIDE, CHANNELS, seed=5)
LABELS = np.array([1, CLASSES, 9])


def randomised(seed=0, **changes):
    """diffusers' own model, whose blocks share their embeddings' values."""
    model = parity.randomise(DiTTransformer2DModel(**(SIZES | changes)), seed=seed).eval()
    first = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    return model


def predicted(model, steps):
    """Their noise and variance (B, h, w, 2c) at integer steps."""
    with torch.no_grad():
        sample = model(parity.to_nchw(X), torch.tensor(steps), torch.tensor(LABELS)).sample
    return parity.to_nhwc(sample)


def with_the_authors_frequencies(model):
    """A model whose time features are DiT's: its authors divide by 128, diffusers by 127."""
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return model


def run_of(folder):
    """A run's configuration for these sizes, on a VAE without statistics."""
    config = tiny.get_config("vanilla")
    config.backbone = backbone(
        family="dit", patch_size=2, hidden_size=32, depth=2, num_heads=2, encoder_depth=1
    )
    config.objective.interpolant = "ddpm"
    config.sampling.update(method="ddpm", steps=3)
    config.tokenizer.weights = str(write_vae(folder))
    return config


def convert(*words):
    return main(["convert", *map(str, words), "--quiet"])


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    """The configuration as a file of --config."""
    folder = tmp_path_factory.mktemp("config")
    return write_config(folder / "own.py", run_of(folder))


@pytest.fixture(scope="module")
def trip(tmp_path_factory, config_file):
    """(their model, its folder, the run, the folder that comes back)."""
    folder = tmp_path_factory.mktemp("trip")
    model = randomised()
    model.save_pretrained(folder / "theirs")
    assert convert(folder / "theirs", folder / "run", "--config", config_file) == 0
    assert convert(folder / "run", folder / "ours", "--to", "transformer") == 0
    return model, folder / "theirs", folder / "run", folder / "ours"


def test_a_folder_comes_back_bit_by_bit(trip):
    _, theirs, _, ours = trip
    expected, found = (load_file(folder / WEIGHTS) for folder in (theirs, ours))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (theirs, ours))
    assert after.pop("norm_eps") == 1e-6  # DiT's own, where diffusers' default is 1e-5
    assert {key: before[key] for key in after} == after


def test_diffusers_opens_what_comes_back(trip):
    model, loading = DiTTransformer2DModel.from_pretrained(trip[3], output_loading_info=True)
    assert not any(loading.values())
    assert model.config.norm_eps == 1e-6


@pytest.mark.parametrize("steps", [[0, 0, 0], [0, 400, 999]])
def test_the_run_predicts_what_diffusers_predicts(trip, steps):
    """At step 0 in diffusers as it is; at others with DiT's own frequencies of the time."""
    from repae_jax.runs.workdir import load_config

    config = load_config(trip[2])
    models = build_models(config)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = load_state(trip[2], config, models, device)
    np.testing.assert_allclose(state.ema["latent_norm"]["var"], 0.18215**-2, rtol=1e-6)
    theirs = DiTTransformer2DModel.from_pretrained(trip[3]).eval()
    if any(steps):
        with_the_authors_frequencies(theirs)
    variables = {"params": state.ema["params"], "constants": state.ema["constants"]}
    times = np.float32(steps) / 1000
    ours = models.backbone.apply(variables, X, times, {"label": LABELS})
    both = np.concatenate([ours.prediction, ours.extra["variance"]], axis=-1)
    parity.assert_close(both, predicted(theirs, steps), "noise and variance")


def test_the_authors_file_comes_out_and_goes_in(trip, tmp_path):
    """The folder as the authors' .pt, whose values a DiT of torch has, and back as the folder."""
    assert convert(trip[1], tmp_path / "dit.pt") == 0
    peer = make_dit(
        input_size=SIDE, patch_size=2, in_channels=CHANNELS, hidden_size=32, depth=2, num_heads=2,
        num_classes=CLASSES,
    ).eval()  # fmt: skip
    tensors = saved_content(tmp_path / "dit.pt")
    peer.load_state_dict(tensors, strict=True)
    theirs = DiTTransformer2DModel.from_pretrained(trip[3]).eval()
    steps = [3, 500, 999]
    with torch.no_grad():
        expected = peer(parity.to_nchw(X), torch.tensor(steps), torch.tensor(LABELS))
    actual = predicted(with_the_authors_frequencies(theirs), steps)
    parity.assert_close(actual, parity.to_nhwc(expected), "noise and variance")
    write_dit(tmp_path / "back", StoredDiT(files.read_stored(tmp_path / "dit.pt"), 2, "it"))
    assert_same_content(load_tensors(tmp_path / "back"), load_tensors(trip[3]))


def load_tensors(folder):
    return {name: torch.tensor(a) for name, a in sorted(load_file(folder / WEIGHTS).items())}


def test_published_sizes_need_no_configuration(tmp_path):
    with torch.device("meta"):
        shapes = make_dit(
            input_size=32, patch_size=2, in_channels=4, num_classes=1000, hidden_size=1152,
            depth=28, num_heads=16,
        ).state_dict()  # fmt: skip
    tensors = {n: np.broadcast_to(np.float32(0), tuple(t.shape)) for n, t in shapes.items()}
    config = config_of(StoredDiT(tensors, 16, "it"), tmp_path)
    assert (config.backbone.arch, config.data.resolution) == ("DiT-XL/2", 256)
    assert config.tokenizer.weights == ""


def test_a_file_of_the_authors_becomes_a_folder(tmp_path):
    """One of a published width, as its number of heads follows from it alone."""
    sizes = SIZES | dict(num_attention_heads=6, attention_head_dim=64)
    model = randomised(**sizes)
    model.save_pretrained(tmp_path / "theirs")
    assert convert(tmp_path / "theirs", tmp_path / "bare.pt") == 0
    assert convert(tmp_path / "bare.pt", tmp_path / "ours", "--to", "transformer") == 0
    assert_same_content(load_tensors(tmp_path / "ours"), load_tensors(tmp_path / "theirs"))


def test_a_pipeline_goes_out_and_comes_in(trip, tmp_path, capsys):
    assert convert(trip[2], tmp_path / "pipe", "--to", "dit-pipeline") == 0
    said = capsys.readouterr().out
    assert "its null class is 10" in said
    assert "downscale_freq_shift is set to 0" in said
    pipe = DiTPipeline.from_pretrained(tmp_path / "pipe")
    assert pipe.vae.config.scaling_factor == pytest.approx(0.18215)
    assert pipe.scheduler.betas[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])
    pipe.set_progress_bar_config(disable=True)
    images = pipe([1, 2], guidance_scale=1, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 32, 32, 3)
    found = detect(tmp_path / "pipe")
    assert (found.format, found.path) == ("diffusers-dit", tmp_path / "pipe" / "transformer")
    dit = read_dit(found.path)
    assert_same_content(
        {n: torch.tensor(a) for n, a in dit.tensors.items()},
        {n: torch.tensor(a) for n, a in read_dit(trip[1]).tensors.items()},
    )


def test_a_pipeline_brings_its_vae(tmp_path, trip, monkeypatch):
    assert convert(trip[2], tmp_path / "pipe", "--to", "dit-pipeline") == 0
    from repae_jax.runs import dit_conversion

    config = run_of(tmp_path)
    config.tokenizer.weights = ""
    monkeypatch.setattr(dit_conversion, "config_of_dit", lambda content, **_: config)
    assert convert(tmp_path / "pipe", tmp_path / "run") == 0
    assert config.tokenizer.weights == str(tmp_path / "pipe" / "vae")
    path = tmp_path / "pipe" / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scaling_factor": 0.5}))
    with pytest.raises(UserError, match=r"scaling_factor is 0\.5, but a DiT's .* 0\.18215"):
        config_of(read_dit(tmp_path / "pipe" / "transformer"), tmp_path / "pipe" / "transformer")


def test_inspect_describes_it(trip, capsys):
    for path in (trip[1], trip[1] / WEIGHTS):
        assert main(["inspect", str(path)]) == 0
        said = capsys.readouterr().out
        assert "DiT as diffusers writes it" in said
        assert "own size: width 32, depth 2, 2 heads, patch 2, latents 8 x 8 x 2, 11 rows" in said


def test_the_class_of_the_published_folder_is_read(trip, tmp_path):
    """facebook/DiT-XL-2-256 names an older class, and has .bin files."""
    tensors = {n: torch.tensor(a) for n, a in load_file(trip[1] / WEIGHTS).items()}
    tmp_path.joinpath("it").mkdir()
    torch.save(tensors, tmp_path / "it" / "diffusion_pytorch_model.bin")
    config = json.loads((trip[1] / "config.json").read_text())
    config["_class_name"] = "Transformer2DModel"
    del config["norm_eps"]
    (tmp_path / "it" / "config.json").write_text(json.dumps(config))
    assert read_dit(tmp_path / "it").dimensions == read_dit(trip[1]).dimensions


def test_the_hub_gives_a_folder_of_a_pipeline(trip, tmp_path, monkeypatch):
    import huggingface_hub

    shutil.copytree(trip[1], tmp_path / "owner" / "name" / "transformer")

    def download(repository, file):
        if not (tmp_path / repository / file).is_file():
            raise huggingface_hub.errors.EntryNotFoundError(file)
        return str(tmp_path / repository / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = detect("hf://owner/name/transformer")
    assert found.format == "diffusers-dit"
    assert read_dit(found.path).dimensions == read_dit(trip[1]).dimensions


def edited(trip, folder, tensors=None, config=None):
    """A copy of their folder with other tensors (None: removed) and keys."""
    shutil.copytree(trip[1], folder)
    if config:
        known = json.loads((folder / "config.json").read_text()) | config
        known = {key: value for key, value in known.items() if value != "absent"}
        (folder / "config.json").write_text(json.dumps(known))
    if tensors:
        arrays = load_file(folder / WEIGHTS)
        arrays |= {n: change(arrays.get(n)) for n, change in tensors.items()}
        save_file({n: a for n, a in arrays.items() if a is not None}, folder / WEIGHTS)
    return folder


TIME = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({"transformer_blocks.1.attn1.to_k.bias": lambda a: None}, {},
         "tensor 'transformer_blocks.1.attn1.to_k.bias' is missing"),
        ({"proj_out_3.bias": lambda a: np.zeros(3, np.float32)}, {},
         "unexpected tensor 'proj_out_3.bias'"),
        ({"proj_out_1.weight": lambda a: a[:-1].copy()}, {},
         r"'proj_out_1.weight' has shape (63, 32), the model needs (64, 32)"),
        ({"proj_out_1.bias": lambda a: a * np.nan}, {}, "not finite"),
        ({TIME: lambda a: a + 1}, {}, f"tensor '{TIME}' differs from"),
        ({}, {"num_layers": 3}, "is missing (and"),
        ({}, {"num_attention_heads": 4}, "the model needs"),
        ({}, {"_class_name": "SD3Transformer2DModel"},
         "of a 'SD3Transformer2DModel', which is neither a VAE nor a DiT of diffusers"),
        ({}, {"_class_name": "Transformer2DModel", "in_channels": "absent"},
         "'Transformer2DModel' without the key 'in_channels'"),
        ({}, {"norm_type": "ada_norm_single"}, "norm_type is 'ada_norm_single'"),
        ({}, {"activation_fn": "geglu"}, "a DiT's is 'gelu-approximate'"),
        ({}, {"norm_eps": 0.1}, "norm_eps is 0.1"),
        ({}, {"out_channels": 3}, "out_channels is 3"),
        ({}, {"sample_size": 7}, "do not fit together"),
        ({}, {"num_layers": 10**6}, "num_layers"),
        ({}, {"num_attention_heads": "many"}, "num_attention_heads"),
    ],
)  # fmt: skip
def test_another_content_is_named(tensors, config, message, trip, tmp_path, capsys):
    folder = edited(trip, tmp_path / "it", tensors, config)
    line = refused(["convert", folder, tmp_path / "x.pt"], capsys)
    assert message in line
    assert str(folder) in line
    assert not (tmp_path / "x.pt").exists()


def test_a_folder_without_weights_is_named(trip, tmp_path, capsys):
    folder = edited(trip, tmp_path / "it")
    (folder / WEIGHTS).unlink()
    line = refused(["convert", folder, tmp_path / "x.pt"], capsys)
    assert f"{WEIGHTS} is missing" in line


def test_another_pipeline_is_named(tmp_path, capsys):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    line = refused(["inspect", tmp_path], capsys)
    assert "_class_name is 'StableDiffusionPipeline'" in line
    assert "name one of its folders" in line


def test_heads_that_the_configuration_lacks_are_named(trip, tmp_path, config_file, capsys):
    folder = edited(trip, tmp_path / "it", None, dict(num_attention_heads=4, attention_head_dim=8))
    words = ["convert", folder, tmp_path / "run", "--config", config_file]
    assert "has 4 heads, but the configuration's backbone 2" in refused(words, capsys)


def test_a_configuration_without_a_dit_is_refused(trip, tmp_path, capsys):
    words = ["convert", trip[1], tmp_path / "run", "--config", "configs/digits.py:vanilla"]
    assert "is a DiT, but config.backbone.family is 'sit'" in refused(words, capsys)


def test_a_size_that_nobody_published_is_named(trip, tmp_path, capsys):
    line = refused(["convert", trip[1], tmp_path / "run"], capsys)
    assert "a DiT of {'hidden_size': 32, 'depth': 2, 'num_heads': 2, 'patch_size': 2}" in line
    assert "--config" in line


def test_a_run_of_another_backbone_is_refused(tmp_path, monkeypatch):
    from repae_jax.runs import dit_conversion

    def opened(workdir, step):
        return types.SimpleNamespace(models=build_models(tiny.get_config("vanilla")))

    monkeypatch.setattr(dit_conversion, "open_on_host", opened)
    with pytest.raises(UserError, match=r"this run has a SiT: write its checkpoint"):
        dit_conversion._run_dit(tmp_path, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.0.attn.q_norm.weight": lambda a: np.ones(16, np.float32)}, "has a qk-norm"),
        ({"pos_embed": lambda a: a + 1}, "'pos_embed' is not the table of sines and cosines"),
        ({"blocks.0.mlp.fc1.bias": lambda a: a[:-1]}, r"the model needs \(128,\)"),
    ],
)
def test_what_diffusers_lacks_is_refused(changes, message, trip, tmp_path):
    tensors = read_dit(trip[1]).tensors
    tensors = tensors | {name: change(tensors.get(name)) for name, change in changes.items()}
    with pytest.raises(UserError, match=message):
        write_dit(tmp_path / "out", StoredDiT(tensors, 2, "it"))
    assert not (tmp_path / "out").exists()


def test_statistics_by_channel_are_no_pipeline(trip, tmp_path, monkeypatch, capsys):
    from repae_jax.runs import open_run

    own = open_run.run_vae

    def by_channel(workdir, step):
        vae = own(workdir, step)
        vae.statistics["var"][0] *= 2
        return vae

    monkeypatch.setattr(open_run, "run_vae", by_channel)
    line = refused(["convert", trip[2], tmp_path / "pipe", "--to", "dit-pipeline"], capsys)
    assert "DiTPipeline knows one factor" in line
    assert "--to transformer" in line
