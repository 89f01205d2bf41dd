import json
import pickle
import shutil

import numpy as np
import pytest
from pictures import data_config, encoded, random_picture

from repae_jax.data.pipeline import eval_batches, train_batches
from repae_jax.data.shard_writer import write_shards
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError

COUNT, CLASSES, SIZE = 7, 3, 16
MADE = {"source": "folder", "resolution": SIZE, "encoding": "png", "exif": False}


def record(index, **replaced):
    image = encoded(random_picture(SIZE, SIZE, seed=index), "PNG")
    return {"image": image, "label": index % CLASSES, "name": f"ant/{index}.jpg", **replaced}


def write_packed(folder, records, made=MADE, kind="images"):
    """Three records a shard."""

    def write(indexes, writer):
        for index in indexes:
            writer.write(records[index])
        return {}

    manifest = {"kind": kind, "num_classes": CLASSES, "classes": ["ant", "bird", "cat"]}
    write_shards(folder, len(records), 3, write, made, manifest=manifest)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "packed"
    write_packed(folder, [record(index) for index in range(COUNT)])
    return folder


def config(folder, **values):
    fields = {"path": folder, "resolution": SIZE, "num_classes": CLASSES, **values}
    return data_config("packed", **fields)


def test_images_and_labels_are_the_records(folder):
    source = open_source(config(folder, num_classes=None), "train")
    assert (len(source), source.num_classes, source.name) == (COUNT, CLASSES, str(folder))
    for index in range(COUNT):
        element = source[index]
        expected = np.asarray(random_picture(SIZE, SIZE, seed=index))
        np.testing.assert_array_equal(element["image"], expected)
        assert element["label"] == index % CLASSES
        assert element["label"].dtype == np.int32
    in_order = [batch["image"] for batch in eval_batches(source, 4)]
    np.testing.assert_array_equal(np.concatenate(in_order)[5], source[5]["image"])


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0, "shard-00000-of-00003.array_record, record 0"),
        (2, "shard-00000-of-00003.array_record, record 2"),
        (3, "shard-00001-of-00003.array_record, record 0"),
        (6, "shard-00002-of-00003.array_record, record 0"),
    ],
)
def test_an_image_is_called_by_its_shard_and_record(folder, index, name):
    source = open_source(config(folder), "train")
    assert source.image_name(index) == f"{folder}/{name}"


def test_worker_processes_read_it(folder):
    source = open_source(config(folder), "train")
    first = source[5]["image"]
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[5]["image"], first)
    batches = train_batches(source, batch_size=COUNT, seed=0, workers=1)
    assert sorted(next(batches)["label"]) == [0, 0, 0, 1, 1, 2, 2]
    batches.close()


@pytest.mark.parametrize("called", ["heldout", "validation", "val", "test"])
def test_splits_have_folders_of_their_own(tmp_path, folder, called):
    shutil.copytree(folder, tmp_path / "train")
    write_packed(tmp_path / called, [record(index) for index in range(2)])
    assert len(open_source(config(tmp_path), "train")) == COUNT
    assert len(open_source(config(tmp_path), "heldout")) == 2
    assert len(open_source(config(tmp_path), called)) == 2
    shutil.rmtree(tmp_path / called)
    with pytest.raises(UserError, match=r"no heldout or .* folder of packed records"):
        open_source(config(tmp_path), "heldout")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resolution": 32}, r"is 32, but .* with 16; set --config.data.resolution=16"),
        ({"exif": True}, r"is True, but .* with False; set --config.data.exif=False"),
        ({"num_classes": 2}, r"num_classes is 2, .*more labels than classes"),
        ({"num_classes": 4}, r"num_classes is 4, .*unused classes"),
        ({"path": "nowhere"}, r"config.data.path is 'nowhere', which is no folder"),
    ],
)
def test_another_configuration_is_named(folder, values, message):
    with pytest.raises(UserError, match=message):
        open_source(config(folder, **values), "train")


def test_what_is_no_packed_images_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no packed data set"):
        open_source(config(tmp_path), "train")
    write_packed(tmp_path / "latents", [{"label": 0}], kind="latents")
    with pytest.raises(
        UserError, match=r"holds packed latents, .*set --config.data.source=latents"
    ):
        open_source(config(tmp_path / "latents"), "train")
    (tmp_path / "begun" / "train" / "progress").mkdir(parents=True)
    (tmp_path / "begun" / "train" / "progress" / "made.json").write_text(json.dumps(MADE))
    with pytest.raises(UserError, match=r"train is unfinished"):
        open_source(config(tmp_path / "begun"), "train")


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"label": CLASSES}, r"record 1 \(ant/4.jpg\): label 3 is not in 0..2"),
        ({"image": b"no image"}, r"record 1 \(ant/4.jpg\): not a readable image"),
        ({"image": encoded(random_picture(8, 9), "PNG")}, r"record 1 \(.*\): 8 x 9 pixels"),
    ],
)
def test_a_faulty_record_is_named(tmp_path, replaced, message):
    records = [record(index) for index in range(COUNT)]
    write_packed(tmp_path / "packed", [*records[:4], record(4, **replaced), *records[5:]])
    source = open_source(config(tmp_path / "packed"), "train")
    source[3]
    with pytest.raises(UserError, match=rf"shard-00001-of-00003.array_record, {message}"):
        source[4]
