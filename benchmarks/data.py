"""Images per second of the loaders here and of the original's, side by side in one run.

    python benchmarks/data.py --original PATH/TO/REPA-E [--images 2000] [--workers 1,2,4]

makes random pictures with structure, writes them as the original's images.h5 (PNG without
compression, as its preprocessing does), as our packed shards in several formats, and as JPEG files
in class folders; then reads batches of each for some seconds with every number of workers. The
originals run in torch's DataLoader, ours in Grain. Needs torch, h5py and psutil.
"""

import argparse
import ast
import importlib.util
import io
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
import types

import numpy as np

RESOLUTION, CLASSES = 256, 10


def make_images(count: int) -> list[np.ndarray]:
    """uint8 (count, 256, 256, 3): smooth colours with texture, compressible like photographs."""
    from PIL import Image

    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC))
        noise = rng.normal(0, 6, smooth.shape)
        images.append(np.clip(smooth + noise, 0, 255).astype(np.uint8))
    return images


def write_hdf5(folder: pathlib.Path, images) -> None:
    """images.h5 and images_h5.json in the layout that the original's dataset.py reads."""
    import h5py
    from PIL import Image

    folder.mkdir()
    names, labels = [], []
    with h5py.File(folder / "images.h5", "w") as file:
        for index, image in enumerate(images):
            name = f"{index // 1000:05d}/img{index:08d}.png"
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, format="png", compress_level=0, optimize=False)
            file.create_dataset(name, data=np.frombuffer(buffer.getvalue(), np.uint8))
            names.append(name)
            labels.append((name, index % CLASSES))
        text = json.dumps({"labels": labels}).encode()
        file.create_dataset("dataset.json", data=np.array(text, dtype="S"))
    (folder / "images_h5.json").write_text(json.dumps([*names, "dataset.json"]))


def write_folder(folder: pathlib.Path, images) -> None:
    """JPEG files of 400 x 300 pixels in class folders."""
    from PIL import Image

    for index, image in enumerate(images):
        path = folder / f"class{index % CLASSES}" / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((400, 300)).save(path, quality=90)


def rate(batches, batch_size: int, seconds: float, workers: int) -> tuple[float, float]:
    """Images per second, and per second of CPU time that this process and its children took.

    The warm-up ends when every worker has started and been read from. The second figure hardly
    depends on what else the machine does.
    """
    for _ in range(8 * workers):
        next(batches)
    count, started, spent = 0, time.perf_counter(), cpu_seconds()
    while time.perf_counter() - started < seconds:
        next(batches)
        count += 1
    images = count * batch_size
    return images / (time.perf_counter() - started), images / (cpu_seconds() - spent)


def cpu_seconds() -> float:
    """CPU time of this process and all that it started, so far, in seconds."""
    import psutil

    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def torch_batches(dataset, batch_size: int, workers: int):
    """Endless batches of a torch DataLoader, as the original makes them."""
    import torch

    loader = torch.utils.data.DataLoader(
        dataset, batch_size=batch_size, shuffle=True, num_workers=workers, drop_last=True,
        persistent_workers=True,
    )  # fmt: skip
    while True:
        yield from loader


class TorchFolder:
    """torch's side of the folder comparison: the same files and decoder, the original's crop."""

    def __init__(self, root: pathlib.Path, checkout: str):
        self.files = sorted(root.glob("*/*.jpg"))
        self.checkout, self.crop = checkout, None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int):
        from PIL import Image

        self.crop = self.crop or original_crop(self.checkout)
        with Image.open(self.files[index]) as image:
            pixels = self.crop(np.array(image.convert("RGB")), RESOLUTION)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)), 0


def original_crop(checkout: str):
    """The function `center_crop_arr` of the original's utils.py, without what else that imports."""
    from PIL import Image

    tree = ast.parse((pathlib.Path(checkout) / "utils.py").read_text())
    (found,) = [n for n in tree.body if getattr(n, "name", "") == "center_crop_arr"]
    space = {"Image": Image, "np": np}
    exec(compile(ast.Module([found], []), "utils.py", "exec"), space)
    return space["center_crop_arr"]


def original_dataset(checkout: str, folder: pathlib.Path):
    """The original's own CustomINH5Dataset over `folder`."""
    spec = importlib.util.spec_from_file_location(
        "original_dataset", pathlib.Path(checkout) / "dataset.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["original_dataset"] = module
    spec.loader.exec_module(module)
    return module.CustomINH5Dataset(str(folder))


def our_batches(source: str, path: pathlib.Path, batch_size: int, workers: int):
    """Endless batches of ours."""
    from repae_jax.data.pipeline import train_batches
    from repae_jax.data.sources import open_source

    config = types.SimpleNamespace(
        source=source, path=str(path), name="", resolution=RESOLUTION, num_classes=CLASSES
    )
    images = open_source(config, "train")
    return train_batches(images, batch_size=batch_size, seed=0, workers=workers)


def main() -> None:
    """Make the data, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--original", required=True, help="a checkout of the original REPA-E")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=1, help="the median of so many is printed")
    parser.add_argument("--only", default="", help="loaders whose name holds this word")
    options = parser.parse_args()
    from repae_jax.cli import main as repae

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        images = make_images(options.images)
        write_hdf5(folder / "hdf5", images)
        write_folder(folder / "files", images)
        formats = {"png": [], "jpeg": ["--quality", "95"], "raw": []}
        for kind, words in formats.items():
            words = ["--format", kind, *words, "--workers", "2", "--quiet"]
            assert repae(["prepare", f"hdf5:{folder / 'hdf5'}", str(folder / kind), *words]) == 0
        makers = {
            "original's HDF5": lambda w: torch_batches(
                original_dataset(options.original, folder / "hdf5"), options.batch_size, w
            ),
            "ours, HDF5": lambda w: our_batches("hdf5", folder / "hdf5", options.batch_size, w),
            **{
                f"ours, packed {kind}": lambda w, kind=kind: our_batches(
                    "packed", folder / kind, options.batch_size, w
                )
                for kind in formats
            },
            "torch's, JPEG files": lambda w: torch_batches(
                TorchFolder(folder / "files", options.original), options.batch_size, w
            ),
            "ours, JPEG files": lambda w: our_batches(
                "folder", folder / "files", options.batch_size, w
            ),
        }
        counts = [int(word) for word in options.workers.split(",")]
        print(
            f"images per second (per CPU second), {os.cpu_count()} cores, batches of "
            f"{options.batch_size}\n"
        )
        print("| loader | " + " | ".join(f"{w} workers" for w in counts) + " |")
        print("|---|" + "---|" * len(counts), flush=True)
        makers = {label: make for label, make in makers.items() if options.only in label}
        rates: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for _ in range(options.repeats):  # taking turns, so that all see the same machine
            for label, make in makers.items():
                for workers in counts:
                    batches = make(workers)
                    measured = rate(iter(batches), options.batch_size, options.seconds, workers)
                    rates.setdefault((label, workers), []).append(measured)
                    batches.close()
        for label in makers:
            cells = []
            for workers in counts:
                medians = [statistics.median(f) for f in zip(*rates[label, workers], strict=True)]
                cells.append(f"{medians[0]:.0f} ({medians[1]:.0f})")
            print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
