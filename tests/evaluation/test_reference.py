import io
import zipfile

import numpy as np
import pytest

from repae_jax.evaluation import reference
from repae_jax.evaluation.frechet import Gaussian

POOLED = Gaussian(np.arange(3.0), np.diag([1.0, 2.0, 3.0]))
SPATIAL = Gaussian(np.arange(2.0), np.eye(2))
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), dtype=np.uint8)


def test_reads_what_numpy_wrote_under_adms_names(tmp_path):
    path = tmp_path / "reference.npz"
    arrays = {"mu": POOLED.mean, "sigma": POOLED.covariance, "arr_0": IMAGES}
    np.savez(path, **arrays, mu_s=SPATIAL.mean, sigma_s=SPATIAL.covariance)
    pooled, spatial = (reference.read_statistics(path, spatial=kind) for kind in (False, True))
    assert np.array_equal(pooled.mean, POOLED.mean)
    assert np.array_equal(pooled.covariance, POOLED.covariance)
    assert np.array_equal(spatial.mean, SPATIAL.mean)
    assert np.array_equal(spatial.covariance, SPATIAL.covariance)


def test_writes_the_five_keys_that_adm_reads_and_the_resizing(tmp_path):
    path = tmp_path / "new" / "reference"
    reference.write_statistics(path, POOLED, SPATIAL, IMAGES)
    with np.load(path) as arrays:
        assert set(arrays) == {"mu", "sigma", "mu_s", "sigma_s", "arr_0", "resizing"}
        assert np.array_equal(arrays["sigma"], POOLED.covariance)
        assert np.array_equal(arrays["mu_s"], SPATIAL.mean)
        assert np.array_equal(arrays["arr_0"], IMAGES)
    reference.write_statistics(path, POOLED)
    with np.load(path) as arrays:
        assert set(arrays) == {"mu", "sigma", "resizing"}


def test_missing_statistics_say_what_to_do(tmp_path):
    path = tmp_path / "samples.npz"
    np.savez(path, arr_0=IMAGES)
    with pytest.raises(ValueError, match="no 'mu', it holds arr_0: compute the moments"):
        reference.read_statistics(path)
    with pytest.raises(ValueError, match="no 'mu_s', it holds arr_0: compute the moments"):
        reference.read_statistics(path, spatial=True)
    np.savez(path, mu=POOLED.mean, sigma=POOLED.covariance)
    with pytest.raises(ValueError, match="no 'mu_s', it holds mu, sigma: sFID needs"):
        reference.read_statistics(path, spatial=True)
    np.savez(path, mu=POOLED.mean)
    with pytest.raises(ValueError, match="no 'sigma', it holds mu: take one"):
        reference.read_statistics(path)


def test_unreadable_files_are_named(tmp_path):
    path = tmp_path / "bad.npz"
    with pytest.raises(ValueError, match="bad.npz: there is no such file"):
        reference.read_statistics(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="bad.npz: cannot be read as .npz"):
        reference.read_statistics(path)
    header = io.BytesIO()
    layout = {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**7)}
    np.lib.format.write_array_header_1_0(header, layout)
    with zipfile.ZipFile(path, "w") as archive:  # it claims more than any memory
        archive.writestr("mu.npy", header.getvalue())
    with pytest.raises(ValueError, match="bad.npz: cannot be read as .npz"):
        reference.read_statistics(path)
    np.save(tmp_path / "array.npy", POOLED.mean)
    with pytest.raises(ValueError, match="array.npy: cannot be read as .npz"):
        reference.read_statistics(tmp_path / "array.npy")
