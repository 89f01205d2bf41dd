"""Which rows of a batch a process reads, whatever the order of the devices."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from repae_jax.data.pipeline import train_batches
from repae_jax.parallel.mesh import AXES, local_rows, make_mesh


class Numbered:
    name = "numbers"

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return {"label": np.int32(index)}


def test_a_process_alone_has_all_rows():
    assert local_rows(make_mesh(), 6) == (0, 1, 2, 3, 4, 5)


def test_rows_follow_the_devices_of_a_slice():
    libtpu = pytest.importorskip("libtpu")
    del libtpu
    from repae_jax.aot.topologies import absent_devices, compiler

    with compiler("quick"):
        mesh = make_mesh(-1, 8, devices=absent_devices("v5e:4x8"))
    order = [device.process_index for device in mesh.devices.flat]
    assert order != sorted(order)  # or this test would prove nothing
    owned = {
        process: [row for row in range(64) if order[row // 2] == process] for process in set(order)
    }
    assert local_rows(mesh, 64) == tuple(owned[0])
    assert sorted(row for rows in owned.values() for row in rows) == list(range(64))


def test_processes_with_scattered_rows_read_the_batch_of_one():
    whole = train_batches(Numbered(), batch_size=8, seed=3)
    shares = {rows: train_batches(Numbered(), batch_size=8, seed=3, rows=rows)
              for rows in ((0, 1, 4, 5), (2, 3, 6, 7))}  # fmt: skip
    for _ in range(10):
        expected = next(whole)["label"]
        for rows, share in shares.items():
            np.testing.assert_array_equal(next(share)["label"], expected[list(rows)])
    for iterator in (whole, *shares.values()):
        iterator.close()


def test_the_mesh_has_its_axes():
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    assert isinstance(mesh, Mesh)
    assert mesh.axis_names == AXES
