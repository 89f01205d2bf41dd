"""A folder that holds another kind of data than is wanted: the error names the source to set."""

import re
import shutil

import pytest
from latent_cache import write_cache
from pictures import data_config, write_pictures

from repae_jax.data.kinds import source_of
from repae_jax.data.prepare import prepare
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError

RESOLUTION = 32
FILES = ("folder", "packed", "latents", "hdf5")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of each kind, by the source that reads it."""
    root = tmp_path_factory.mktemp("kinds")
    write_pictures(root / "folder", {f"{c}/0.png": (40, 40, "RGB") for c in ("ant", "bee")})
    prepare(str(root / "folder"), root / "packed", resolution=RESOLUTION)
    write_cache(root / "latents")
    h5py = pytest.importorskip("h5py")
    with h5py.File(root / "images.h5", "w"):
        pass
    (root / "hdf5").mkdir()
    (root / "images.h5").rename(root / "hdf5" / "images.h5")
    (root / "hdf5" / "images_h5.json").write_text("[]")
    info = root / "tfds" / "mnist" / "3.0.1" / "dataset_info.json"
    info.parent.mkdir(parents=True)
    info.write_text("{}")
    return {name: root / name for name in (*FILES, "tfds")}


def test_each_kind_is_recognised(data, tmp_path):
    assert {name: source_of(folder) for name, folder in data.items()} == {n: n for n in data}
    assert source_of(tmp_path) is None
    assert source_of(tmp_path / "nowhere") is None


def test_what_is_begun_is_recognised(data, tmp_path):
    shutil.copytree(data["packed"], tmp_path / "begun")
    (tmp_path / "begun" / "progress").mkdir()
    (tmp_path / "begun" / "manifest.json").rename(tmp_path / "begun" / "progress" / "made.json")
    assert source_of(tmp_path / "begun") == "packed"


@pytest.mark.parametrize("split", ["", "train"])
@pytest.mark.parametrize("found", [*FILES, "tfds"])
@pytest.mark.parametrize("wanted", FILES)
def test_the_source_to_set_is_named(wanted, found, split, data, tmp_path):
    """In the folder that the path names, or a split in it."""
    if wanted == found:
        return
    shutil.copytree(data[found], tmp_path / "data" / split, dirs_exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    values = dict(path=str(tmp_path / "data"), resolution=RESOLUTION, num_classes=2)
    with pytest.raises(UserError) as refused:
        open_source(data_config(wanted, **values), "train")
    error = str(refused.value)
    assert re.search(rf"{tmp_path}/data\S* holds ", error)
    assert f"set --config.data.source={found}" in error
    assert not re.search("remove|delete", error)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("found", "way_out"),
    [("packed", "it is prepared already"), ("latents", "it is prepared already"),
     ("hdf5", r"give hdf5:\S+/hdf5, or")],
)  # fmt: skip
def test_prepare_names_what_its_source_is(found, way_out, data, tmp_path):
    with pytest.raises(UserError, match=rf"{found} holds .*, not class folders .*: {way_out}"):
        prepare(str(data[found]), tmp_path / "new", resolution=RESOLUTION)
    assert not (tmp_path / "new").exists()


def test_prepare_names_its_own_options(tmp_path):
    with pytest.raises(UserError, match="^--resolution is 64, but digits .*; set --resolution=32$"):
        prepare("digits", tmp_path / "new", resolution=64)
    with pytest.raises(UserError, match="^SOURCE is 'x'; for scenes give their number"):
        prepare("scenes:x", tmp_path / "new", resolution=64)
