"""TFDS data sets with texts, such as coco_captions: captions, with or without labels."""

import json

import numpy as np
import pytest
from pictures import data_config

from repae_jax.cli import main
from repae_jax.data.sources import open_source
from repae_jax.data.tfds_source import TfdsSource
from repae_jax.errors import BadImage, UserError

TEXTS = [["a red disc", "disc, red"], ["two rings"], ["a star", "one star", "café"]]


def build(folder, kind):
    """Writes the data set `tiny`, which the reader does not have the code of."""
    tfds = pytest.importorskip("tensorflow_datasets")
    text = tfds.features.Text()
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "image/filename": text,
    }
    features |= {
        "coco": {"captions": tfds.features.Sequence({"id": np.int64, "text": text})},
        "list": {"captions": tfds.features.Sequence(text)},
        "one": {"caption": text},
        "labeled": {
            "text": text, "label": tfds.features.ClassLabel(names=["a", "b"])
        },
        "none": {},
    }[kind]  # fmt: skip

    def example(number):
        image = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
        texts = TEXTS[number]
        record = {"image": image, "image/filename": f"{number}.jpg"}
        return (
            record
            | {
                "coco": {"captions": [{"id": k, "text": text} for k, text in enumerate(texts)]},
                "list": {"captions": texts},
                "one": {"caption": texts[0]},
                "labeled": {"text": texts[0], "label": number % 2},
                "none": {},
            }[kind]
        )

    with tfds.core.registered.skip_registration():

        class Tiny(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, _):
                return {"train": ((number, example(number)) for number in range(len(TEXTS)))}

            def _generate_examples(self):
                raise NotImplementedError

    Tiny(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


def config(folder, **values):
    values = {"path": folder, "name": "tiny", "num_classes": 1, "resolution": 16, **values}
    return data_config("tfds", **values)


def captions_by_image(source):
    """{the image's bytes: captions}; TFDS writes examples in an order of its own."""
    return {source[i]["image"].tobytes(): source[i]["caption"] for i in range(len(source))}


@pytest.mark.parametrize("kind", ["coco", "list", "one"])
def test_texts_are_captions_of_one_class(tmp_path, kind):
    source = open_source(config(build(tmp_path / "tfds", kind)), "train")
    assert (len(source), source.num_classes, source.classes) == (3, 1, None)
    several = kind != "one"
    expected = {tuple(t) if len(t) > 1 and several else t[0] for t in TEXTS}
    assert set(captions_by_image(source).values()) == expected
    assert {source.caption(i) for i in range(3)} == {texts[0] for texts in TEXTS}
    assert [source[i]["label"] for i in range(3)] == [0, 0, 0]
    words = ["prepare", "tfds:tiny", str(tmp_path / "packed"), "--path", str(tmp_path / "tfds")]
    assert main([*words, "--resolution", "16", "--workers", "0", "--quiet"]) == 0
    packed = open_source(
        data_config("packed", path=tmp_path / "packed", resolution=16, num_classes=1), "train"
    )
    assert captions_by_image(packed) == captions_by_image(source)


def test_labels_stay_beside_captions(tmp_path):
    source = open_source(config(build(tmp_path, "labeled"), num_classes=2), "train")
    assert source.classes == ("a", "b")
    pairs = {(source[i]["caption"], int(source[i]["label"])) for i in range(3)}
    assert pairs == {(texts[0], number % 2) for number, texts in enumerate(TEXTS)}


def test_a_name_of_a_file_is_no_caption(tmp_path):
    with pytest.raises(
        UserError, match="no image and label, nor an image with text that is called"
    ):
        open_source(config(build(tmp_path, "none")), "train")


def record(*texts):
    return {"image": b"", "captions": {"text": np.array(texts, object)}}


def test_captions_are_part_of_the_fingerprint():
    found = [
        TfdsSource("tiny", 1, [record(b"one", text)], 8, text=("captions", "text"), labeled=False)
        .fingerprint()
        for text in (b"two", b"three", b"two")
    ]  # fmt: skip
    assert found[0] != found[1]
    assert found[0] == found[2]
    assert json.loads(json.dumps(found[0])) == found[0]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ((), "tiny, image 0: it has no caption"),
        ((b"",), "tiny, image 0: its caption is empty"),
        ((b"one", b"x\xff"), r"tiny, image 0 \(caption 2 of 2\): its caption is no UTF-8"),
    ],
)
def test_texts_that_are_no_captions_are_named(texts, message):
    source = TfdsSource("tiny", 1, [record(*texts)], 8, text=("captions", "text"), labeled=False)
    with pytest.raises(BadImage, match=message):
        source.caption(0)
