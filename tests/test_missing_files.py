"""Every recipe names all files that it misses: what each is, where to get it, which key sets it."""

import pathlib
import re

import huggingface_hub
import pytest
import tiny
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError

from repae_jax.config.needs import check_files, missing_files, missing_for_loading, missing_on_hub
from repae_jax.config.overrides import read_config
from repae_jax.data.sources import EMBEDDED, open_source
from repae_jax.errors import UserError
from repae_jax.interop import downloads, hub
from repae_jax.interop.downloads import DATA, TEACHERS, WEIGHTS

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(p for p in (ROOT / "configs").glob("*.py") if not p.name.startswith("study_"))
KEY = r"--config\.(\w+)\.[\w.]+=PATH"
PLACE = r"published at https://\S+|`python -m repae_jax (pretrain-\S+|encode|train) ?.*`"
WHAT = (
    *{download.what for table in (WEIGHTS, DATA) for download in table.values()},
    "cached latents", "the tokenizer, in a work directory", "the text encoder; make", "the teacher",
)  # fmt: skip


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """An empty folder, without a hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "obstacle", lambda name: "ConnectError")
    return tmp_path


def paths_of(config):
    """The files that a run reads, as the sections say them, weights that are off left out."""
    wanted = {config.tokenizer.weights}
    if config.data.source not in (*EMBEDDED, "tfds"):
        wanted.add(config.data.path)
    if "backbone" in config.train:
        wanted |= {config.text_encoder.weights}
    if "backbone" in config.train or config.objective.vf_weight:
        wanted |= {teacher.weights for teacher in config.teachers.values()}
    if "discriminator" in config.train:
        wanted |= {config.discriminator.weights, config.discriminator.get("encoder_weights")}
    if "tokenizer" in config.train and config.objective.perceptual_weight:
        wanted |= {config.lpips.weights, config.lpips.vgg_weights}
    return wanted - {"", None}


@pytest.mark.slow  # over forty files
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_recipe_names_all_that_it_misses(file, bare):
    for recipe in ("", ":repa", ":vae", ":images"):
        if recipe == ":images" and '"images"' not in file.read_text():
            continue
        config = read_config(f"{file}{recipe}", [])
        tfds = config.data.source == "tfds"
        if tfds:
            config.data.path = str(bare)
        lines = [*missing_files(config), *missing_on_hub(config)]
        lines += missing_for_loading(config) if lines else []
        if tfds and not lines:
            with pytest.raises(UserError) as refused:
                open_source(config.data, "train", any_classes=True)
            lines = [str(refused.value)]
        elif lines:
            with pytest.raises(UserError) as refused:
                check_files(config)
            assert all(line in str(refused.value) for line in lines)
        text = "\n".join(lines)
        assert [path for path in paths_of(config) if str(path) not in text] == []
        assert tfds <= ("ImageNet-1k" in text)
        for line in lines:
            assert re.search(KEY, line), line
            assert re.search(PLACE, line), line
            assert any(what in line for what in WHAT), line


def test_the_documents_list_the_same_places():
    text = (ROOT / "docs" / "weights.md").read_text()
    for name, (what, place, note) in WEIGHTS.items():
        on_hub = place == downloads.HUB + "/".join(name.split("/")[:2])
        said = f"hf://{name}" if on_hub else f"pretrained/{name}"
        assert f"| `{said}` | {what} | <{place}>{f'; {note}' if note else ''} |" in text
    for name, (what, place, note) in DATA.items():
        assert f"| `{name}` | {what} | <{place}>{f'; {note}' if note else ''} |" in text
    for start, (what, place, _) in TEACHERS.items():
        assert f"| `{start.removesuffix('-')}-...` | {what} | <{place}> |" in text


def test_a_file_in_another_folder_is_known_by_its_name():
    assert downloads.weights_named("/mnt/dinov2_vitb14_pretrain.pth").what == "DINOv2-B"
    assert downloads.weights_named("hf://google/gemma-2b").what == "Gemma 2B"
    assert downloads.weights_named("runs/vae") is None


def test_a_preset_tells_where_an_unknown_file_is_published(bare):
    config = tiny.get_config()
    entry = config.teachers.small
    entry.update(arch="dinov3-b", weights="mine.pth")
    entry.pretrain.steps = 0
    with pytest.raises(UserError, match=r"DINOv3, the teacher small; published at https://github"):
        check_files(config)


# --- the hub ---


@pytest.fixture
def answers(monkeypatch, tmp_path):
    """What the hub says to a request for a file's header, and what was asked."""
    monkeypatch.chdir(tmp_path)
    asked = []
    said = {}

    def header(url):
        asked.append(url)
        if "error" in said:
            raise said["error"]

    def nothing(*names, **options):
        raise FileNotFoundError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", header)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names: None)
    return asked, said


def refusal(kind):
    return kind.__new__(kind)  # its response is not looked at


def test_the_hub_is_asked_for_what_is_not_here(answers):
    asked, said = answers
    assert hub.obstacle("hf://owner/name/vae") == ""
    assert hub.obstacle("hf://owner/name/a/decoder.pt") == ""
    assert [url.partition("/resolve/main/")[2] for url in asked] == [
        "vae/config.json", "a/decoder.pt",
    ]  # fmt: skip
    said["error"] = refusal(GatedRepoError)
    assert hub.obstacle("hf://owner/name") == "GatedRepoError"
    said["error"] = refusal(EntryNotFoundError)  # a repository without config.json is there
    assert hub.obstacle("hf://owner/name") == ""
    assert hub.obstacle("hf://owner/name/decoder.pt") == "EntryNotFoundError"
    said["error"] = OSError("no network")
    assert hub.obstacle("hf://owner/name") == "OSError"


def test_the_hub_is_not_asked_for_what_is_here(answers, monkeypatch, tmp_path):
    asked, _ = answers
    (tmp_path / "pretrained" / "owner" / "name").mkdir(parents=True)
    assert hub.obstacle("hf://owner/name") == ""
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **o: "/cache")
    assert hub.obstacle("hf://owner/other") == ""
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a: "/cache/x.pt")
    assert hub.obstacle("hf://owner/other/x.pt") == ""
    assert asked == []


def test_a_run_that_resumes_does_not_ask_the_hub(bare):
    config = tiny.get_config("vae")
    config.tokenizer.weights = "hf://owner/name"
    with pytest.raises(UserError, match="hub does not give"):
        check_files(config)
    check_files(config, loads=False)
