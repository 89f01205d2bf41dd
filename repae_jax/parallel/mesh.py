"""The devices as a mesh, and the batch on it."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from repae_jax.errors import UserError
from repae_jax.utils.schema import Batch, check_schema

# Both axes divide the batch; "fsdp" also divides parameters (see `sharding`).
AXES = ("data", "fsdp")


def make_mesh(
    data: int = -1, fsdp: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of devices along `AXES`, in an order that suits the links between them.

    Args:
      data: devices along "data"; -1: all that "fsdp" leaves.
      fsdp: devices along "fsdp"; -1: all that "data" leaves.
      devices: the devices; by default those of all processes.

    Raises:
      UserError: the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(data, fsdp, len(devices))
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def axis_sizes(data: int, fsdp: int, count: int) -> tuple[int, int]:
    """The sizes of `AXES` for `count` devices, -1 resolved.

    Raises:
      UserError: the product of the sizes is not `count`.
    """
    given = f"config.mesh has data = {data} and fsdp = {fsdp}"
    if data < -1 or fsdp < -1 or 0 in (data, fsdp) or data == fsdp == -1:
        raise UserError(f"{given}: give positive sizes; one of them may be -1, the rest")
    if data == -1:
        data = count // fsdp
    elif fsdp == -1:
        fsdp = count // data
    if data * fsdp != count:
        raise UserError(
            f"{given}, which do not multiply to the {count} devices: set one of them to -1"
        )
    return data, fsdp


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding that divides the leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding with a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def padded_batch_size(
    mesh: Mesh, given: int | None, per_device: int, count: int | None = None
) -> int:
    """The batch size, rounded up to a multiple of the number of devices; batches are padded to it.

    Args:
      mesh: the devices.
      given: --batch-size; None if the user gave none.
      per_device: images per device if `given` is None.
      count: the number of images, if it is known: a batch needs no more.

    Raises:
      UserError: the batch size is not positive.
    """
    size = per_device * mesh.size if given is None else given
    check_schema(size, Batch, source="--batch-size")
    size = size if count is None else min(size, count)
    return -(-size // mesh.size) * mesh.size


def place_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Place this process's rows of a batch (see `local_rows`) on its devices, as global arrays.

    The copy may still be in progress when this returns.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)),
        dict(batch),
    )


def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, ...]:
    """The rows of the global batch that this process's devices hold, in ascending order.

    On a TPU slice the rows may have gaps, because the links between devices decide their order.
    """
    parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return tuple(sorted({row for (part,) in parts for row in range(*part.indices(batch_size))}))


def place(tree, shardings):
    """Place arrays that every process holds completely on the devices.

    Each device gets only its part of an array, and processes exchange nothing.

    Args:
      tree: arrays, equal in all processes.
      shardings: one sharding for all, or a tree of them like `tree`.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def place_leaf(leaf, sharding):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(place_leaf, tree, shardings)


def place_key(mesh: Mesh, key: int | jax.Array) -> jax.Array:
    """A random key, made from a seed if `key` is an int, with a copy on every device."""
    key = jax.random.key(key) if isinstance(key, int) else key
    return jax.random.wrap_key_data(place(jax.random.key_data(key), replicated(mesh)))
