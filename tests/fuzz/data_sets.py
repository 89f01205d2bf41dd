"""Targets: data sets, pictures, samples, statistics of samples, lists and labels."""

import json
import pathlib

import numpy as np
from pictures import data_config, encoded, random_picture

from fuzz.target import Target

SIZE, CLASSES, COUNT = 16, 3, 5


def _elements(source):
    return [source[index] for index in range(len(source))]


def _read_source(kind, **values):
    def read(folder):
        from repae_jax.data.sources import open_source

        fields = {"path": folder, "resolution": SIZE, "num_classes": CLASSES, **values}
        source = open_source(data_config(kind, **fields), "train")
        return {"classes": source.num_classes, "elements": _elements(source)}

    return read


# --- HDF5 ------------------------------------------------------------------------------------

_NAMES = ("00000/img00000000.png", "00000/img00000001.png", "00001/img00010000.npy", "2/x.png")


def _write_hdf5(folder):
    import h5py

    with h5py.File(folder / "images.h5", "w") as file:
        for seed, name in enumerate(_NAMES):
            image = random_picture(SIZE, SIZE, seed=seed)
            pixels = np.asarray(image).transpose(2, 0, 1)
            stored = np.array(encoded(image, "PNG"), "S") if name.endswith(".png") else pixels
            file.create_dataset(name, data=stored)
        labels = [[name, label] for name, label in zip(_NAMES, (0, 0, 1, 2), strict=True)]
        text = json.dumps({"labels": labels}).encode()
        file.create_dataset("dataset.json", data=np.array(text, "S"))
    (folder / "images_h5.json").write_text(json.dumps(["00000", "dataset.json", *_NAMES]))


# --- packed shards and latents -----------------------------------------------------------------


def _packed_record(index):
    from repae_jax.data.images import encode_pixels

    format = ("png", "raw", "webp", "jpeg")[index % 4]
    pixels = np.asarray(random_picture(SIZE, SIZE, seed=index))
    image = encode_pixels(pixels, format)
    return {"image": image, "label": index % CLASSES, "name": f"ant/{index}.jpg"}


def _write_image_shard(indexes, writer):
    for index in indexes:
        writer.write(_packed_record(index))
    return {}


_MADE = {"source": "folder", "resolution": SIZE, "encoding": "png", "exif": False}
_MANIFEST = {"kind": "images", "num_classes": CLASSES, "classes": ["ant", "bird", "cat"]}


def _packed(folder, write=_write_image_shard):
    from repae_jax.data.shard_writer import write_shards

    return write_shards(folder, COUNT, 3, write, _MADE, manifest=_MANIFEST)


def _write_packed(folder):
    _packed(folder / "packed")


def _read_packed(folder):
    return _read_source("packed", path=folder / "packed")(folder)


def _verify_packed(folder):
    from repae_jax.data.shards import verify

    verify(folder / "packed")
    return {}


def _write_begun(folder):
    """Killed in its second shard."""

    def write(indexes, writer):
        if 0 not in indexes:
            raise KeyboardInterrupt
        return _write_image_shard(indexes, writer)

    try:
        _packed(folder / "packed", write)
    except KeyboardInterrupt:
        return
    raise AssertionError("it was not interrupted")


def _resume_begun(folder):
    """The same command once more, then everything of it."""
    _packed(folder / "packed")
    return _read_packed(folder)


def _write_latents(folder):
    from repae_jax.data.shard_writer import write_shards

    rng = np.random.default_rng(0)

    def write(indexes, writer):
        for index in indexes:
            latents = {
                f"{prefix}{key}": rng.random((4, 4, 2)).astype(np.float16)
                for prefix in ("", "mirrored/")
                for key in ("mean", "std")
            }
            tokens = {"tokens/0": rng.random((4, 8)).astype(np.float16)}
            tokens["mirrored/tokens/0"] = tokens["tokens/0"]
            writer.write({**latents, **tokens, "label": index % CLASSES})
        return {}

    made = {
        "vae": "a" * 64, "teachers": {"small": "b" * 64}, "mirrored": True, "images": False,
        "latent_shape": [4, 4, 2], "resolution": 32, "dtype": "float16",
    }  # fmt: skip
    statistics = {"mean": [0.5, 0.25], "var": [1.0, 2.0]}
    manifest = {
        "kind": "latents", "num_classes": CLASSES, "classes": None, "statistics": statistics
    }  # fmt: skip
    write_shards(folder / "cache", COUNT, 3, write, made, manifest=manifest)


def _read_latents(folder):
    from repae_jax.data.latents import check_for_training, open_latents, statistics_of

    source = open_latents(folder / "cache", mirrored=True)
    check_for_training(source, "a" * 64, {"small": "b" * 64}, (4, 4, 2))
    return {
        "classes": source.num_classes,
        "elements": _elements(source),
        "statistics": statistics_of(source),
    }


# --- pictures ----------------------------------------------------------------------------------


def _write_pictures(folder):
    """One of every kind that is read, some larger than the crop."""
    kinds = {
        "ant/a.png": ("PNG", "RGB", {}),
        "ant/b.png": ("PNG", "P", {}),
        "ant/c.png": ("PNG", "LA", {}),
        "ant/d.png": ("PNG", "1", {}),
        "bird/a.jpg": ("JPEG", "RGB", {"quality": 90}),
        "bird/b.jpeg": ("JPEG", "RGB", {"progressive": True}),
        "bird/c.jpg": ("JPEG", "CMYK", {}),
        "cat/a.webp": ("WEBP", "RGB", {"lossless": True}),
        "cat/b.webp": ("WEBP", "RGBA", {"quality": 80}),
    }
    for seed, (name, (kind, mode, options)) in enumerate(kinds.items()):
        path = folder / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = random_picture(24 + 5 * seed, 40 - 2 * seed, mode, seed)
        path.write_bytes(encoded(image, kind, **options))


def _read_pictures(folder):
    return _read_source("folder", path=folder / "pictures", exif=True)(folder)


def _read_skipping(folder):
    """With `on_bad_image = "skip"`, and the list of those that are skipped."""
    from repae_jax.data.skip_bad_images import read_listing

    options = {"path": folder / "pictures", "on_bad_image": "skip"}
    return {
        **_read_source("folder", **options)(folder),
        "listed": read_listing(folder / "bad_images.txt"),
    }


def _write_skipping(folder):
    _write_pictures(folder)
    (folder / "bad_images.txt").write_text("a/b.png\nc/d.png\n")


def _measured_pictures(folder):
    from repae_jax.evaluation.image_sets import open_images

    images = open_images(folder / "pictures", SIZE)
    return {"count": images.count, "batches": list(images.batches(4))}


def _prepare(source):
    return lambda folder, empty: [
        "prepare", f"{source}{folder / 'pictures'}" if not source else f"{source}{folder}",
        str(empty / "packed"), "--resolution", str(SIZE), "--quiet",
    ]  # fmt: skip


def _verify_words(folder: pathlib.Path, _: pathlib.Path) -> list[str]:
    return ["prepare", "--verify", str(folder / "packed"), "--quiet"]


_SHARDS = r".*(array_record|manifest\.json)"

TARGETS = (
    Target("images.h5 and its lists", _write_hdf5, _read_source("hdf5"), names=r"\d+",
           words=_prepare("hdf5:")),
    Target("packed images", _write_packed, _read_packed, sealed=_SHARDS, words=_verify_words),
    Target("packed images, verified", _write_packed, _verify_packed, sealed=_SHARDS,
           like="packed images"),
    Target("packed images, half-written", _write_begun, _resume_begun, sealed=r".*"),
    Target("cached latents", _write_latents, _read_latents, sealed=_SHARDS),
    Target("pictures", _write_pictures, _read_pictures, words=_prepare("")),
    Target("pictures, bad ones skipped", _write_skipping, _read_skipping, follows=r".*",
           optional=".*"),
    Target("pictures to be measured", _write_pictures, _measured_pictures, like="pictures"),
)  # fmt: skip
