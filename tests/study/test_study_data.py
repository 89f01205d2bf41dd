"""All runs of a study see the same images, whenever they are made."""

import json

import pytest
import tiny_study
from pictures import write_pictures

from repae_jax.errors import UserError
from repae_jax.study import run as study_run
from repae_jax.study.plan import Job, run_config, teacher_path
from repae_jax.study.shared import JUDGE, make_shared

JOB = Job("vae", 0)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of a folder of pictures, whose networks are made in no time."""
    study = tiny_study.get_config()
    splits = [f"{split}/c/{number}.png" for split in ("train", "heldout") for number in range(3)]
    write_pictures(tmp_path / "data", {name: (32, 32, "RGB") for name in splits})
    study.config.data.update(source="folder", path=str(tmp_path / "data"), num_classes=1)

    def make(*arguments, **options):
        for path in (teacher_path(tmp_path / "study", "small"), tmp_path / "study" / JUDGE):
            path.write_bytes(b"")

    monkeypatch.setattr("repae_jax.training.teacher.pretrain_teacher", make)
    monkeypatch.setattr("repae_jax.study.judge.train_judge", make)
    monkeypatch.setattr(study_run, "train", None)
    return study


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_images_that_have_changed_since_it_began_end_it(study, split, tmp_path):
    output, data = tmp_path / "study", tmp_path / "data"
    make_shared(study, output, progress=False)
    make_shared(study, output, progress=False)
    study.config.data.path = str(data.rename(tmp_path / "moved"))
    make_shared(study, output, progress=False)
    (tmp_path / "moved" / split / "c" / "0.png").unlink()
    message = rf"{output}: the data have changed since the study began \({split}: 3 -> 2 images"
    with pytest.raises(UserError, match=message):
        make_shared(study, output, progress=False)
    with pytest.raises(UserError, match=message):
        study_run.run_job(study, JOB, output, progress=False)


def test_a_result_of_before_there_was_a_key_is_still_one(study, tmp_path):
    output = tmp_path / "study"
    config = run_config(study, JOB, output).to_dict()
    del config["data"]["accept"]
    path = JOB.workdir(output) / "result.json"
    path.parent.mkdir(parents=True)
    figures = {str(step): {"psnr": 1.0} for step in study.measured_at}
    result = {
        "arm": JOB.arm, "seed": JOB.seed, "gflop_per_image": 1.0, "accuracies": {}, "diverged": "",
        "figures": figures, "config": config,
    }  # fmt: skip
    path.write_text(json.dumps(result))
    assert study_run.read_result(study, JOB, output)["figures"] == figures
