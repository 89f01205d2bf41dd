"""The devices as a mesh, and the batch on it."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from repae_jax.errors import UserError
from repae_jax.utils.schema import Batch, checked

# The batch is divided over all axes; over "fsdp" parameters are as well (see `sharding`).
AXES = ("data", "fsdp")


def make_mesh(
    data: int = -1, fsdp: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The devices along `AXES`, in the order that suits their links.

    Args:
      data: devices along "data"; -1 takes the rest.
      fsdp: devices along "fsdp"; -1 takes the rest.
      devices: which; all of all processes by default.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(data, fsdp, len(devices))
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def axis_sizes(data: int, fsdp: int, count: int) -> tuple[int, int]:
    """The sizes of `AXES` for `count` devices.

    Raises:
      UserError: they do not multiply to it.
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
    """The leading axis divided over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def whole_batches(mesh: Mesh, given: int | None, per_device: int, count: int | None = None) -> int:
    """Images at a time: a multiple of the devices, which every batch is filled up to.

    Args:
      mesh: the devices.
      given: --batch-size; None: it was not given.
      per_device: images a device without it.
      count: how many images there are, if that is known: no batch need hold more.

    Raises:
      UserError: the batch size is not positive.
    """
    size = per_device * mesh.size if given is None else given
    checked(size, Batch, source="--batch-size")
    size = size if count is None else min(size, count)
    return -(-size // mesh.size) * mesh.size


def place_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a batch (`local_rows`) as global arrays, which may still be on their
    way when this returns."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)),
        dict(batch),
    )


def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, ...]:
    """Which rows of the global batch this process's devices hold, in ascending order.

    On a slice they need not lie side by side: devices are ordered by their links.
    """
    parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return tuple(sorted({row for (part,) in parts for row in range(*part.indices(batch_size))}))


def place(tree, shardings):
    """Arrays that every process has as a whole, divided as `shardings` (a tree like it, or one).

    Each device gets its part alone: nothing is sent between processes.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def divided(leaf, sharding):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(divided, tree, shardings)


def place_key(mesh: Mesh, key: int | jax.Array) -> jax.Array:
    """A random key, or that of a seed, on every device."""
    key = jax.random.key(key) if isinstance(key, int) else key
    return jax.random.wrap_key_data(place(jax.random.key_data(key), replicated(mesh)))
