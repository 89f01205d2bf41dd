"""`Pipeline` on other projects' files: in memory as by way of a run; saved, fetched, uploaded."""

import json
import pathlib
import shutil

import huggingface_hub
import numpy as np
import parity
import pytest
import tiny
from diffusers import DiffusionPipeline, DiTTransformer2DModel
from foreign_trips import write_vae

from repae_jax import AutoencoderKL, Pipeline
from repae_jax.cli import main
from repae_jax.config import backbone
from repae_jax.errors import UserError
from repae_jax.runs import pretrained_run
from repae_jax.runs.conversion import convert

CLASSES = 10
NAMES = {str(number): f"digit {number}, {word}" for number, word in enumerate(
    "zero one two three four five six seven eight nine".split()
)}  # fmt: skip
WANTED = ["Three", "digit 1", 4]
OPTIONS = dict(guidance_scale=2.0, seed=3)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """The folder of a DiTPipeline with random weights and names of classes."""
    folder = tmp_path_factory.mktemp("dit") / "pipe"
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=2, out_channels=4, num_layers=1,
        sample_size=8, num_embeds_ada_norm=CLASSES,
    )  # fmt: skip
    parity.randomise(model, seed=0).save_pretrained(folder / "transformer")
    vae = write_vae(tmp_path_factory.mktemp("vae"))
    assert main(["convert", str(vae), str(folder / "vae"), "--quiet"]) == 0
    index = {"_class_name": "DiTPipeline", "id2label": NAMES}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def config_of(folder):
    """Its configuration, which files of a published size determine."""
    config = tiny.get_config("vanilla")
    config.backbone = backbone(
        family="dit", patch_size=2, hidden_size=32, depth=1, num_heads=2, encoder_depth=1
    )
    config.objective.interpolant = "ddpm"
    config.sampling.update(method="ddim", steps=3)
    config.tokenizer.weights = str(folder / "vae")
    return config


@pytest.fixture(scope="module")
def pipeline(pipe):
    return Pipeline.from_pretrained(pipe, config=config_of(pipe))


@pytest.fixture(scope="module")
def images(pipeline):
    return pipeline(WANTED, **OPTIONS)


@pytest.mark.slow
def test_in_memory_as_by_way_of_a_run(pipe, images, tmp_path):
    run = tmp_path / "run"
    convert(str(pipe), run, "run", lambda derive: config_of(pipe), progress=False)
    words = ["generate", "--workdir", str(run), "--output", str(tmp_path / "x.npz"), "--quiet"]
    words += ["--labels", "3,1,4", "--count", "3", "--seed", "3", "--guidance-scale", "2"]
    assert main(words) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["arr_0"], images)
    np.testing.assert_array_equal(Pipeline.from_pretrained(run)([3, 1, 4], **OPTIONS), images)


@pytest.mark.slow
def test_what_is_no_checkpoint_goes_by_way_of_a_temporary_run(pipe, images, monkeypatch, tmp_path):
    """As a format that `convert` alone knows would."""
    monkeypatch.setattr(pretrained_run, "checkpoint_in", lambda found, make_config: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pipeline = Pipeline.from_pretrained(pipe, config=config_of(pipe))
    np.testing.assert_array_equal(pipeline(WANTED, **OPTIONS), images)
    assert not list(tmp_path.iterdir())


def test_names_and_what_the_files_lack(pipeline, pipe, tmp_path):
    assert pipeline.class_names == tuple(NAMES.values())
    with pytest.raises(UserError, match="similar names are 'digit 7, seven'"):
        pipeline("sevn")
    with pytest.raises(UserError, match="is none of the published: give a configuration"):
        Pipeline.from_pretrained(pipe)
    with pytest.raises(UserError, match="step is 3, but .* is no work directory"):
        Pipeline.from_pretrained(pipe, step=3)
    changed = {"tokenizer.weights": tmp_path / "absent"}
    with pytest.raises(UserError, match="absent"):
        Pipeline.from_pretrained(pipe, config=config_of(pipe), overrides=changed)


@pytest.mark.parametrize("labels", [{"1": "one"}, {"0": "a", "2": "b"}, {"0": 3}])
def test_damaged_names_are_refused(labels, pipe, tmp_path):
    shutil.copytree(pipe, tmp_path / "pipe")
    index = {"_class_name": "DiTPipeline", "id2label": labels}
    (tmp_path / "pipe" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="id2label"):
        Pipeline.from_pretrained(tmp_path / "pipe", config=config_of(pipe))


@pytest.mark.slow
def test_what_is_saved_opens_here_and_in_diffusers(pipeline, images, tmp_path):
    said = pipeline.save_pretrained(tmp_path / "saved")
    assert said.startswith(str(tmp_path / "saved"))
    theirs = DiffusionPipeline.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert theirs.transformer.config.depth == 1
    assert theirs.labels == {name: int(number) for number, name in NAMES.items()}
    again = Pipeline.from_pretrained(tmp_path / "saved")  # which needs no configuration
    assert np.abs(again(WANTED, **OPTIONS).astype(int) - images).max() <= 1
    with pytest.raises(UserError, match="exists already"):
        pipeline.save_pretrained(tmp_path / "saved")


class Api:
    """A hub that keeps what would be uploaded."""

    uploads: list = []  # noqa: RUF012

    def create_repo(self, repository, *, private, exist_ok):
        assert exist_ok
        self.private = private
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repository}")

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        names = {
            str(path.relative_to(folder_path)) for path in pathlib.Path(folder_path).rglob("*")
        }
        self.uploads.append((repo_id, self.private, commit_message, names))


@pytest.fixture
def uploads(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(Api, "uploads", [])
    return Api


def test_both_are_uploaded(pipeline, pipe, uploads):
    address = pipeline.push_to_hub("owner/name", private=True, message="DiT")
    assert address == "https://huggingface.co/owner/name"
    vae = AutoencoderKL.from_pretrained(pipe / "vae")
    vae.push_to_hub("owner/vae")
    (first, second) = uploads.uploads
    assert first[:3] == ("owner/name", True, "DiT")
    assert {"model_index.json", "transformer/config.json", "vae/config.json"} <= first[3]
    assert second == (
        "owner/vae", None, None, {"config.json", "diffusion_pytorch_model.safetensors"}
    )  # fmt: skip


def test_a_refused_upload_is_one_line(pipe, uploads, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError("401 Client Error\nmore")

    monkeypatch.setattr(Api, "create_repo", refuse)
    vae = AutoencoderKL.from_pretrained(pipe / "vae")
    with pytest.raises(
        UserError, match="owner/vae: cannot upload .*401 Client Error.*hf auth login"
    ):
        vae.push_to_hub("owner/vae")
    with pytest.raises(UserError, match="'a b' is no name of a repository"):
        vae.push_to_hub("a b")


def test_the_hub_gives_a_pipeline(pipe, pipeline, tmp_path, monkeypatch):
    """Weights without code; and no gigabytes of a pipeline that is not read."""
    cache, asked = tmp_path / "cache", []
    shutil.copytree(pipe, cache / "owner" / "name")
    monkeypatch.chdir(tmp_path)

    def download(repository, file):
        if not (cache / repository / file).is_file():
            raise huggingface_hub.errors.EntryNotFoundError(file)
        return str(cache / repository / file)

    def snapshot(repository, *, allow_patterns, ignore_patterns):
        asked.append(allow_patterns)
        return str(cache / repository)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    found = Pipeline.from_pretrained("owner/name", config=config_of(pipe))
    assert found.class_names == tuple(NAMES.values())
    assert asked == [["*.json", "*.safetensors"]]
    assert main(["inspect", "hf://owner/name"]) == 0
    pipeline.save_pretrained(cache / "owner" / "saved")
    found = Pipeline.from_pretrained("owner/saved")
    assert found.class_names == tuple(NAMES.values())
    (cache / "owner" / "name" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    asked.clear()
    with pytest.raises(UserError, match="of pipelines only a DiTPipeline is read"):
        Pipeline.from_pretrained("owner/name", config=config_of(pipe))
    assert not asked
    with pytest.raises(UserError, match=r"owner/none is no file or folder here; .*cannot fetch"):
        Pipeline.from_pretrained("owner/none")
