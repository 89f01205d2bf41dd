"""A run and its data: changed between two starts they are refused, and accepted one by one."""

import json
import re
import shutil

import cluster
import jax
import numpy as np
import pytest
import tiny
from latent_cache import write_cache
from pictures import write_pictures
from runs import TINY
from test_encode import folder, make_config  # noqa: F401

from repae_jax.cli import main
from repae_jax.config.overrides import apply_overrides
from repae_jax.runs import run_data
from repae_jax.runs import workdir as work_directory
from repae_jax.runs.build import build_models, state_shapes
from repae_jax.runs.checkpoints import Checkpoints

PICTURES = {f"c{number % 2}/{number}.png": (40, 40, "RGB") for number in range(8)}
STEPS = 4


class Run:
    """A run on a folder of pictures that has done all its steps, so that going on is quick."""

    def __init__(self, root):
        self.workdir, self.pictures = root / "run", root / "pictures"
        write_pictures(self.pictures, PICTURES)
        self.config = tiny.get_config("vae")
        self.config.data.update(source="folder", path=str(self.pictures), num_classes=2)
        save(self.config, self.workdir)

    def train(self, *words):
        place = [f"--config.data.path={self.pictures}", "--workdir", str(self.workdir), "--quiet"]
        return main(["train", *place, *words])

    def content(self):
        return {p: p.read_bytes() for p in self.workdir.rglob("*") if p.is_file()}


def save(config, workdir):
    """A run of this configuration after its last step, as versions without data.json left it."""
    shapes = state_shapes(config, build_models(config))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    work_directory.claim(workdir, config)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(STEPS, state.replace(step=np.int32(STEPS)), {"global_next_index": 32})
    checkpoints.close()


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def refused(run, capsys, *words):
    """The message, and the digest that accepts."""
    before = run.content()
    capsys.readouterr()
    assert run.train(*words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert run.content() == before
    return error, re.search(r"--config\.data\.accept=(\w+)$", error.strip())[1]


def test_changed_data_are_refused_until_they_are_accepted(run, capsys):
    assert run.train() == 0
    said = capsys.readouterr().out
    assert "data.json is new: the run began without it, and now requires these data" in said
    (run.pictures / "c0").rename(run.pictures / "z0")
    error, accept = refused(run, capsys)
    assert (
        "the data have changed since the run began (train: class 'c0' is called 'z0' now" in error
    )
    assert "class 'c1' has label 0, not 1" in error
    assert run.train(f"--config.data.accept={accept}") == 0
    assert "accepted changed data: train: class 'c0' is called" in capsys.readouterr().out
    assert run.train() == 0
    assert "accepted" not in capsys.readouterr().out
    # accepting one change accepts no other, not even files that are only added, nor the way back
    shutil.copy(run.pictures / "z0" / "0.png", run.pictures / "z0" / "new.png")
    error, other = refused(run, capsys, f"--config.data.accept={accept}")
    assert f"config.data.accept is '{accept}', which accepts other data" in error
    assert "8 -> 9 images (+1); train: class 'z0' has 5 images, not 4" in error
    assert other != accept
    (run.pictures / "z0" / "new.png").unlink()
    (run.pictures / "z0").rename(run.pictures / "c0")
    refused(run, capsys)


def test_the_data_may_move(run, capsys):
    assert run.train() == 0
    run.pictures = run.pictures.rename(run.pictures.with_name("moved"))
    assert run.train() == 0
    assert "moved" not in (run.workdir / "data.json").read_text()


def test_another_number_of_classes_cannot_be_accepted(run, tmp_path, capsys):
    assert run.train() == 0
    shutil.copytree(run.pictures / "c1", run.pictures / "c2")
    before = run.content()
    for words in ([], [f"--config.data.accept={accept_what_is_there(run)}"]):
        assert run.train(*words) == 2
        error = capsys.readouterr().err
        assert "class 'c2' is new" in error
        assert "accept" not in error
        assert run.content() == before
    words = re.findall(r"--config\.data\.num_classes=3$", error.strip())
    config = tiny.get_config("vae")
    config.data.update(source="folder", path=str(run.pictures), num_classes=2)
    config = apply_overrides(config, words)
    assert run_data.open_data(config, tmp_path / "new").train.num_classes == 3


def accept_what_is_there(run):
    """The digest that would accept these data, were the classes as many."""
    config = run.config.copy_and_resolve_references()
    config.data.num_classes = None
    data = run_data.open_data(config, run.workdir.with_name("elsewhere"))
    return run_data.digest(data.fingerprints)[:12]


def test_the_way_past_a_bad_image_is_open(run, capsys):
    """The error's own words, in a run that has begun: pass over it, or remove it."""
    for name in ("1", "2", "3"):
        shutil.copy(run.pictures / "c0" / "0.png", run.pictures / "c0" / f"0{name}.png")
    assert run.train() == 0
    bad = run.pictures / "c0" / "01.png"  # none of those whose contents are noted
    bad.write_bytes(b"no picture")
    assert run.train(f"--config.run.steps={STEPS + 1}") == 2
    error = capsys.readouterr().err
    assert f"{bad}: not a readable image" in error
    skip = re.search(r"--config\S+=skip", error)[0]
    assert run.train(skip) == 0
    history = (run.workdir / "config_history.jsonl").read_text().splitlines()
    assert json.loads(history[-1])["changed"] == ["config.data.on_bad_image: 'error' -> 'skip'"]
    bad.unlink()
    refused(run, capsys)
    assert "names the --config.data.accept=" in error


@pytest.mark.parametrize("command", ["evaluate-vae", "prepare"])
def test_the_way_past_a_bad_image_is_the_commands_own(command, run, tmp_path, capsys):
    (run.pictures / "c0" / "0.png").write_bytes(b"no picture")
    words = {"evaluate-vae": [run.workdir, run.pictures, "--resolution", "32"],
             "prepare": [run.pictures, tmp_path / "packed", "--workers", "0"]}[command]  # fmt: skip
    assert main([command, *map(str, words), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "0.png: not a readable image (it is none of JPEG" in error
    assert "--config" not in error
    if command == "prepare":
        assert "--on-bad-image skip" in error
        words += ["--on-bad-image", "skip"]
        assert main([command, *map(str, words), "--quiet"]) == 0
    else:
        assert error.endswith("repair or remove it\n")


def test_held_out_images_are_noted_where_a_run_is_measured_with_them(tmp_path):
    config = tiny.get_config()
    config.evaluation.update(every=2, samples=0, cknna_images=12)
    data = run_data.open_data(config, tmp_path)
    assert run_data.record(config, tmp_path, data) == ""
    noted = json.loads((tmp_path / "data.json").read_text())
    assert (noted["train"]["count"], noted["heldout"]["count"]) == (1442, 355)
    config.evaluation.every = 0
    assert run_data.open_data(config, tmp_path).heldout is None
    run_data.record(config, tmp_path, run_data.open_data(config, tmp_path))
    assert json.loads((tmp_path / "data.json").read_text()) == noted


# --- cached latents ---


def test_nobody_may_accept_latents_of_another_vae(tmp_path, capsys):
    config = tiny.get_config("vanilla")
    write_cache(tmp_path / "cache", 16)
    (tmp_path / "vae.pt").write_bytes(b"")  # is in the checkpoint by now
    config.tokenizer.weights = str(tmp_path / "vae.pt")
    config.data.update(source="latents", path=str(tmp_path / "cache"))
    config.run.steps = STEPS
    save(config, tmp_path / "run")
    data = run_data.open_data(config, tmp_path / "run")
    run_data.record(config, tmp_path / "run", data)
    shutil.rmtree(tmp_path / "cache")
    write_cache(tmp_path / "cache", 16, vae="b" * 64)
    new = run_data.open_data(config, tmp_path / "elsewhere")
    accept = f"--config.data.accept={run_data.digest(new.fingerprints)[:12]}"
    assert main(["train", "--workdir", str(tmp_path / "run"), "--quiet", accept]) == 2
    error = capsys.readouterr().err
    assert "the latents no longer come from the run's own networks (made.vae: aaa" in error
    assert "config.data.accept" not in error


# --- what is packed or encoded goes on with the same data only ---


def test_encode_goes_on_with_the_labels_that_it_began_with(folder, tmp_path, capsys):  # noqa: F811
    h5py = pytest.importorskip("h5py")
    from pictures import encoded, random_picture

    def write_labels(*labels):
        names = [f"00000/img{number}.png" for number in range(len(labels))]
        with h5py.File(tmp_path / "images.h5", "w") as file:
            for name in names:
                file[name] = np.frombuffer(encoded(random_picture(32, 32), "PNG"), np.uint8)
            pairs = json.dumps({"labels": list(zip(names, labels, strict=True))}).encode()
            file["dataset.json"] = np.frombuffer(pairs, np.uint8)
        (tmp_path / "images_h5.json").write_text(json.dumps(names))

    config = make_config(folder)
    words = ["encode", "--config", f"{TINY}:repa", "--output", str(tmp_path / "cache"), "--quiet"]
    words += [f"--config.teachers.small.weights={config.teachers.small.weights}"]
    words += [f"--config.tokenizer.weights={config.tokenizer.weights}", "--config.data.source=hdf5"]
    words += [f"--config.data.path={tmp_path}", "--config.data.num_classes=10", "--batch-size=4"]
    write_labels(0, 1, 9)
    assert main(words) == 0
    assert main(words) == 0
    write_labels(1, 0, 9)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "was begun with other images: class '0' has images of other names" in error


# --- several processes ---


@pytest.mark.slow  # two processes
def test_processes_that_read_other_data_end(tmp_path):
    """As hosts do that have a copy of their own, of which one is older."""
    run = Run(tmp_path)
    one, other = run.pictures, tmp_path / "other"
    shutil.copytree(one, other)
    (other / "c0" / "0.png").rename(other / "c0" / "9.png")
    words = ["train", "--config", f"{TINY}:vae", "--config.data.source=folder", "--quiet"]
    words += ["--config.data.num_classes=2", "--workdir", str(tmp_path / "new")]
    places = [f"--config.data.path={place}" for place in (one, other)]
    started = cluster.command(words, processes=2, own_words=places)
    ends = cluster.finish(started, timeout=120)
    assert "8 images here, is not what the first process reads" in ends[1][2], ends
    assert not (tmp_path / "new").exists()
