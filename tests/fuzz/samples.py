"""Targets: generated images, statistics of images, labels."""

import numpy as np

from fuzz.target import Target


def _write_samples(folder):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 8, 8, 3), np.uint8)
    np.savez(folder / "samples.npz", images, np.arange(6))
    np.savez_compressed(folder / "packed.npz", images)


def _read_samples(folder):
    from repae_jax.evaluation.image_sets import has_images, open_images

    found = {}
    for name in ("samples.npz", "packed.npz"):
        images = open_images(folder / name)
        found[name] = {
            "has": has_images(folder / name),
            "count": images.count,
            "images": np.concatenate(list(images.batches(4))),
        }
    return found


def _write_reference(folder):
    rng = np.random.default_rng(0)
    spatial = {"mu_s": rng.random(5), "sigma_s": np.eye(5)}
    np.savez(folder / "reference.npz", mu=rng.random(8), sigma=np.eye(8), **spatial)


def _read_reference(folder):
    from repae_jax.evaluation.reference import has_statistics, read_statistics

    path = folder / "reference.npz"
    return {
        "has": [has_statistics(path), has_statistics(path, spatial=True)],
        "pooled": read_statistics(path),
        "spatial": read_statistics(path, spatial=True),
    }


_ABOUT = {"checkpoint": 3, "seed": 0, "sampler": {"method": "euler", "steps": 3}, "labels": "x"}


def _write_output(folder):
    """`generate` killed after three of eight images, and after three of eight pictures."""
    from repae_jax.sampling.outputs import make_output

    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    for name in ("x.npz", "x_folder"):
        output = make_output(folder / name, 8, (8, 8, 3))
        with output.claimed():
            output.begin(_ABOUT)
            output.write(0, images)


def _resume_output(folder):
    """The rest of it, then all images."""
    from repae_jax.sampling.outputs import make_output

    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    result = {}
    for name in ("x.npz", "x_folder"):
        output = make_output(folder / name, 8, (8, 8, 3))
        with output.claimed():
            output.begin(_ABOUT)
            for start in output.missing(4):
                output.write(start, images)
            result[name] = output.first(8)
            output.show(8)
            output.finish(np.arange(8))
    return result


def _write_labels(folder):
    (folder / "labels.txt").write_text("3, 1, 4\n1 5\n")


def _read_labels(folder):
    from repae_jax.sampling.class_labels import choose_labels

    return {"labels": choose_labels(str(folder / "labels.txt"), 8, 10, 0)[0]}


TARGETS = (
    Target("samples .npz", _write_samples, _read_samples),
    Target("reference statistics .npz", _write_reference, _read_reference,
           optional="/spatial.*"),
    Target("generated images, half-written", _write_output, _resume_output,
           files=r"[^.].*json|.*png|.*partial"),
    Target("file of labels", _write_labels, _read_labels),
)  # fmt: skip
