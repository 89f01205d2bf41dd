"""LightningDiT's cached latents become a cache to train on, and a cache becomes theirs."""

import json
import pathlib

import ml_dtypes
import numpy as np
import parity
import pytest
import tiny
import torch
from checkouts import module_of
from config_files import write_config
from foreign_trips import write_vae
from latent_cache import write_cache
from original_lightningdit import ORIGINAL, REASON
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch
from saved import saved_content
from weight_files import inspect, refused

from repae_jax.cli import main
from repae_jax.data.latents import open_latents, statistics_of
from repae_jax.data.manifest import read_manifest
from repae_jax.data.pipeline import train_batches
from repae_jax.data.shards import verify
from repae_jax.errors import UserError
from repae_jax.models.batch_norm import normalize
from repae_jax.runs.latent_conversion import export_latents, import_latents

SIDE, CHANNELS = 8, 2
COUNTS = (5, 3)  # images in each file
STD = np.array([2.0, 3.0], np.float32)
MEAN = np.array([0.5, -1.0], np.float32)


def write_theirs(folder, dtype=torch.float32, labels=None):
    """A folder as extract_features.py writes it; the tensors of all files together."""
    folder.mkdir()
    whole = {
        name: torch.tensor(parity.normal(sum(COUNTS), CHANNELS, SIDE, SIDE, seed=seed)).to(dtype)
        for seed, name in enumerate(("latents", "latents_flip"))
    }
    whole["labels"] = torch.tensor(labels if labels is not None else range(sum(COUNTS)))
    start = 0
    for number, count in enumerate(COUNTS):
        part = {name: t[start : start + count].contiguous() for name, t in whole.items()}
        path = folder / f"latents_rank{number:02d}_shard000.safetensors"
        save_torch(part, path, metadata={"total_size": str(count), "device": "cpu"})
        start += count
    stats = {"mean": MEAN, "std": STD}
    torch.save({n: torch.tensor(a).reshape(1, -1, 1, 1) for n, a in stats.items()},
               folder / "latents_stats.pt")  # fmt: skip
    return whole


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(a folder of theirs, its tensors, the configuration)."""
    folder = tmp_path_factory.mktemp("latents")
    whole = write_theirs(folder / "theirs")
    config = tiny.get_config("vanilla")
    config.tokenizer.weights = str(write_vae(folder))
    return folder / "theirs", whole, config


def to_nhwc(tensor):
    return tensor.float().numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_latent_comes_in_and_goes_out(dtype, made, tmp_path):
    whole = write_theirs(tmp_path / "theirs", getattr(torch, dtype))
    import_latents(tmp_path / "theirs", tmp_path / "cache", made[2], per_shard=3, progress=False)
    verify(tmp_path / "cache")
    source = open_latents(tmp_path / "cache", mirrored=True)
    elements = [source[index] for index in range(len(source))]
    assert [int(e["label"]) for e in elements] == list(range(8))
    for key, of in (("latents", lambda e: e), ("latents_flip", lambda e: e["mirrored"])):
        found = np.stack([of(e)["latent_mean"] for e in elements])
        np.testing.assert_array_equal(found, to_nhwc(whole[key]))
        assert not any(of(e)["latent_std"].any() for e in elements)
    assert source.records[0]["mean"].dtype.name == dtype

    assert export_latents(tmp_path / "cache", tmp_path / "back", seed=3, progress=False) == 8
    (file,) = (tmp_path / "back").glob("*.safetensors")
    back = load_file(file)
    for name in ("latents", "latents_flip"):
        np.testing.assert_array_equal(back[name], whole[name].float().numpy())
    np.testing.assert_array_equal(back["labels"], whole["labels"])
    assert back["labels"].dtype == np.int64
    stats = saved_content(tmp_path / "back" / "latents_stats.pt")
    np.testing.assert_allclose(stats["std"][0, :, 0, 0], STD, rtol=1e-6)
    np.testing.assert_array_equal(stats["mean"][0, :, 0, 0], MEAN)


@pytest.mark.parametrize("multiplier", [1.0, 0.5])
def test_latents_are_normalized_as_theirs(multiplier, made, tmp_path):
    folder, whole, config = made
    words = [
        "convert",
        folder,
        tmp_path / "cache",
        "--config",
        write_config(tmp_path / "own.py", config),
    ]
    assert main([*map(str, words), "--multiplier", str(multiplier), "--quiet"]) == 0
    source = open_latents(tmp_path / "cache")
    statistics = statistics_of(source)
    x = np.stack([source[index]["latent_mean"] for index in range(len(source))])
    ours = normalize(x, statistics["mean"], statistics["var"])
    np.testing.assert_allclose(ours, (to_nhwc(whole["latents"]) - MEAN) / STD * multiplier,
                               rtol=1e-4, atol=1e-5)  # fmt: skip


@pytest.mark.slow
def test_training_reads_them(made, tmp_path):
    """A run trains on the imported cache: the check of its VAE, the statistics, both mirrors."""
    folder, _, config = made
    config = config.copy_and_resolve_references()
    import_latents(folder, tmp_path / "cache", config, progress=False)
    config.data.update(source="latents", path=str(tmp_path / "cache"), flip=True)
    config.batch_size, config.run.steps = 8, 2
    file = write_config(tmp_path / "own.py", config)
    words = ["train", "--config", file, "--workdir", tmp_path / "run"]
    assert main([str(word) for word in words]) == 0
    from repae_jax.runs.checkpoints import restore_latest

    norm = restore_latest(tmp_path / "run")["ema"]["latent_norm"]
    np.testing.assert_allclose(norm["mean"], MEAN)
    np.testing.assert_allclose(norm["var"], STD**2, rtol=1e-6)


def test_each_access_takes_either_mirror(made, tmp_path):
    folder, whole, config = made
    import_latents(folder, tmp_path / "cache", config, progress=False)
    source = open_latents(tmp_path / "cache", mirrored=True)
    batches = train_batches(source, batch_size=8, seed=0, flip=True)
    plain, mirrored = to_nhwc(whole["latents"]), to_nhwc(whole["latents_flip"])
    taken = np.zeros((2, 8), bool)
    for _ in range(12):
        batch = next(batches)
        for label, latent in zip(batch["label"], batch["latent_mean"], strict=True):
            is_plain = np.array_equal(latent, plain[label])
            assert is_plain or np.array_equal(latent, mirrored[label])
            taken[int(not is_plain), label] = True
    batches.close()
    assert taken.all()


@pytest.mark.skipif(not ORIGINAL, reason=REASON)
def test_their_data_set_reads_the_same(made, tmp_path, monkeypatch):
    """ImgLatentDataset on their folder and on an exported one, both mirrors, against ours."""
    folder, _, config = made
    file = pathlib.Path(ORIGINAL) / "datasets" / "img_latent_dataset.py"
    module = module_of(file, "lightningdit_img_latent_dataset")
    import_latents(folder, tmp_path / "cache", config, progress=False)
    export_latents(tmp_path / "cache", tmp_path / "back", progress=False)
    source = open_latents(tmp_path / "cache", mirrored=True)
    statistics = statistics_of(source)
    for coin, mirror in ((0.9, False), (0.1, True)):
        monkeypatch.setattr(module.np.random, "uniform", lambda low, high, coin=coin: coin)
        for where in (folder, tmp_path / "back"):
            theirs = module.ImgLatentDataset(str(where), latent_norm=True, latent_multiplier=1.0)
            assert len(theirs) == len(source)
            for index in range(len(source)):
                feature, label = theirs[index]
                element = source[index]["mirrored"] if mirror else source[index]
                ours = normalize(element["latent_mean"], statistics["mean"], statistics["var"])
                parity.assert_close(ours, feature.numpy().transpose(1, 2, 0), f"latent {index}")
                assert int(label) == int(source[index]["label"])


def test_a_sample_has_the_posteriors_moments(tmp_path):
    """A cache with deviations: the mean and deviation of the exported samples are its own."""
    from repae_jax.data.shard_writer import write_shards

    mean, std = parity.normal(16, 16, 2, seed=1), np.exp(parity.normal(16, 16, 2, seed=2))

    def write(indexes, writer):
        for index in indexes:
            writer.write({"mean": mean, "std": std, "mirrored/mean": -mean, "mirrored/std": std,
                          "label": index % 10})  # fmt: skip
        return {}

    made = {"vae": "a" * 64, "latent_shape": [16, 16, 2], "resolution": 64, "mirrored": True,
            "images": False, "teachers": {}}  # fmt: skip
    statistics = {"mean": [0.0, 0.0], "var": [1.0, 4.0]}
    manifest = {"kind": "latents", "num_classes": 10, "statistics": statistics}
    write_shards(tmp_path / "cache", 400, 200, write, made, manifest=manifest)
    drawn = {}
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        words = ["convert", tmp_path / "cache", tmp_path / name, "--seed", seed, "--quiet"]
        assert main([str(word) for word in words]) == 0
        drawn[name] = load_file(tmp_path / name / "latents_rank00_shard000.safetensors")
    for key, center in (("latents", mean), ("latents_flip", -mean)):
        noise = (drawn["one"][key].transpose(0, 2, 3, 1) - center) / std
        assert abs(noise.mean()) < 0.01
        assert abs(noise.std() - 1) < 0.01
        assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.2
        np.testing.assert_array_equal(drawn["one"][key], drawn["same"][key])
        assert not np.array_equal(drawn["one"][key], drawn["other"][key])
    stats = saved_content(tmp_path / "one" / "latents_stats.pt")
    assert stats["std"].shape == (1, 2, 1, 1)
    assert stats["std"].ravel().tolist() == [1.0, 2.0]


def test_a_killed_import_resumes_with_the_same_bytes(made, tmp_path, monkeypatch):
    folder, _, config = made
    from repae_jax.runs import latent_conversion

    import_latents(folder, tmp_path / "whole", config, per_shard=3, progress=False)
    own, left = latent_conversion._write, iter([True, False])

    def once(*arguments):
        if not next(left):
            raise KeyboardInterrupt
        return own(*arguments)

    monkeypatch.setattr(latent_conversion, "_write", once)
    with pytest.raises(KeyboardInterrupt):
        import_latents(folder, tmp_path / "cache", config, per_shard=3, progress=False)
    monkeypatch.setattr(latent_conversion, "_write", own)
    assert (tmp_path / "cache").is_dir()
    import_latents(folder, tmp_path / "cache", config, per_shard=3, progress=False)
    assert read_manifest(tmp_path / "cache") == read_manifest(tmp_path / "whole")


def test_inspect_describes_both(made, tmp_path, capsys):
    folder, _, config = made
    import_latents(folder, tmp_path / "cache", config, progress=False)
    found = inspect(folder, capsys)
    assert found["format"].startswith("cached latents of LightningDiT")
    assert found["latents"] == "8 images, 8 x 8 x 2"
    found = inspect(tmp_path / "cache", capsys)
    assert (found["format"], found["latents"]) == (
        "cached latents of repae_jax", "8 images, 8 x 8 x 2"
    )  # fmt: skip


def edit(path, **changes):
    tensors = load_file(path)
    tensors |= {name: change(tensors[name]) for name, change in changes.items()}
    save_file({n: a for n, a in tensors.items() if a is not None}, path)


FIRST, SECOND = (f"latents_rank{number:02d}_shard000.safetensors" for number in (0, 1))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (FIRST, {"latents_flip": lambda a: None}, "tensor 'latents_flip' is missing"),
        (FIRST, {"labels": lambda a: a[:-1].copy()}, "'labels' is I64 of shape (4,)"),
        (FIRST, {"labels": lambda a: a.astype(np.float32)}, "'labels' is F32"),
        (FIRST, {"latents": lambda a: a[:, 0].copy()}, "'latents' is F32 of shape (5, 8, 8)"),
        (FIRST, {"latents": lambda a: a.astype(np.int64)}, "'latents' is I64"),
        (FIRST, {"latents_flip": lambda a: a.astype(ml_dtypes.bfloat16)}, "'latents_flip' is BF16"),
        (SECOND, {n: lambda a: a[:, :, :4].copy() for n in ("latents", "latents_flip")},
         "its latents are float32 of shape (2, 4, 8)"),
        (SECOND, {"latents": lambda a: a * np.nan}, "image 0: its latent is NaN or infinite"),
        (SECOND, {"labels": lambda a: a + 10}, "image 0: label 15 is not in 0..9"),
        (SECOND, {"labels": lambda a: -a - 1}, "is not in 0..9"),
    ],
)  # fmt: skip
def test_another_content_is_named(file, changes, message, made, tmp_path, capsys):
    write_theirs(tmp_path / "theirs")
    edit(tmp_path / "theirs" / file, **changes)
    config = write_config(tmp_path / "own.py", made[2])
    words = ["convert", tmp_path / "theirs", tmp_path / "cache", "--config", config, "--quiet"]
    line = refused(words, capsys)
    assert message in line
    assert file in line
    assert not (tmp_path / "cache" / "manifest.json").exists()


def test_a_truncated_file_is_named(made, tmp_path, capsys):
    write_theirs(tmp_path / "theirs")
    path = tmp_path / "theirs" / FIRST
    path.write_bytes(path.read_bytes()[:-100])
    line = refused(["convert", path.parent, tmp_path / "cache"], capsys)
    assert "nothing in cached latents names the VAE" in line  # before anything is read
    words = ["convert", path.parent, tmp_path / "cache", "--config",
             write_config(tmp_path / "own.py", made[2])]  # fmt: skip
    assert f"{path}: not a readable safetensors file" in refused(words, capsys)


def test_a_header_that_claims_more_than_the_file_is_named(made, tmp_path, capsys):
    write_theirs(tmp_path / "theirs")
    path = tmp_path / "theirs" / FIRST
    header = {"latents": {"dtype": "F32", "shape": [2**40, 2, 8, 8], "data_offsets": [0, 2**49]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 64)
    words = ["inspect", path.parent]
    assert f"{path}: not a readable safetensors file" in refused(words, capsys)


def test_latents_of_another_shape_are_named(made, tmp_path):
    config = made[2].copy_and_resolve_references()
    config.data.resolution = 64
    with pytest.raises(UserError, match=r"shape \(8, 8, 2\), the configuration needs"):
        import_latents(made[0], tmp_path / "cache", config, progress=False)


def test_a_vae_is_needed(made, tmp_path):
    config = made[2].copy_and_resolve_references()
    config.tokenizer.weights = ""
    with pytest.raises(UserError, match=r"config\.tokenizer\.weights is empty"):
        import_latents(made[0], tmp_path / "cache", config, progress=False)


def test_statistics_come_from_the_vae_where_their_file_is_missing(made, tmp_path):
    write_theirs(tmp_path / "theirs")
    own = tmp_path / "theirs" / "latents_stats.pt"
    own.rename(tmp_path / "elsewhere.pt")
    with pytest.raises(UserError, match=r"latents_stats\.pt is missing, and the VAE has no"):
        import_latents(tmp_path / "theirs", tmp_path / "cache", made[2], progress=False)
    config = made[2].copy_and_resolve_references()
    config.tokenizer.statistics = str(tmp_path / "elsewhere.pt")
    import_latents(tmp_path / "theirs", tmp_path / "cache", config, progress=False)
    np.testing.assert_allclose(statistics_of(open_latents(tmp_path / "cache"))["var"], STD**2)


@pytest.mark.parametrize(
    ("multiplier", "way_out"),
    [(1.0, "set --config.tokenizer.statistics="), (0.5, "name weights of the VAE that have none")],
)
def test_other_statistics_of_the_vae_are_told(multiplier, way_out, made, tmp_path, capsys):
    config = made[2].copy_and_resolve_references()
    other = {"mean": torch.zeros(1, 2, 1, 1), "std": torch.ones(1, 2, 1, 1)}
    torch.save(other, tmp_path / "other.pt")
    config.tokenizer.statistics = str(tmp_path / "other.pt")
    import_latents(made[0], tmp_path / "cache", config, multiplier=multiplier, progress=False)
    assert way_out in capsys.readouterr().err


@pytest.mark.parametrize("multiplier", ["0", "-1", "nan", "inf"])
def test_a_wrong_multiplier_is_named(multiplier, made, tmp_path, capsys):
    config = write_config(tmp_path / "own.py", made[2])
    words = ["convert", made[0], tmp_path / "cache", "--config", config]
    assert "--multiplier is" in refused([*words, f"--multiplier={multiplier}"], capsys)


@pytest.mark.parametrize("option", ["--seed", "--multiplier"])
def test_options_of_other_targets_are_refused(option, made, tmp_path, capsys):
    (vae,) = made[0].parent.glob("vae.safetensors")
    line = refused(["convert", vae, tmp_path / "vae", option, "3"], capsys)
    assert f"{option} is 3" in line
    assert "'diffusers' takes none: leave it out" in line


def test_a_cache_without_mirrors_is_refused(tmp_path, capsys):
    write_cache(tmp_path / "cache")
    line = refused(["convert", tmp_path / "cache", tmp_path / "theirs"], capsys)
    assert "holds no mirrored latents" in line
    assert "encode with --mirrored" in line
    assert not (tmp_path / "theirs").exists()


def test_training_on_their_folder_names_the_conversion(made, tmp_path, capsys):
    config = made[2].copy_and_resolve_references()
    config.data.update(source="latents", path=str(made[0]))
    words = [
        "train",
        "--config",
        write_config(tmp_path / "own.py", config),
        "--workdir",
        tmp_path / "run",
    ]
    line = refused(words, capsys)
    assert f"{made[0]} holds LightningDiT's cached latents: make a cache of them by" in line


def test_packed_images_are_no_latents(tmp_path, capsys):
    (tmp_path / "manifest.json").write_text('{"kind": "images"}')
    assert "neither config.json" in refused(["inspect", tmp_path], capsys)
