"""The sharding of the training state; the only module that decides it.

The rules, of which the first match counts:

    step, batch_stats                       replicated: small, and every device reads them
    frozen, params without an optimizer     config.mesh.frozen: "replicated" or "sharded"
    params, opt_state, ema                  config.mesh.trained: "sharded" or "replicated"

"Sharded" divides over the mesh's axis "fsdp" (ZeRO-3, arXiv 1910.02054): an array of at least
`smallest` elements is divided along its longest axis that is a multiple of the number of devices;
other arrays are replicated. Every device computes its part of the batch with gathered parameters,
and gradients are summed into the parameters' shards.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from repae_jax.errors import UserError

CHOICES = ("sharded", "replicated")


def check_rules(rules: Mapping[str, Any]) -> None:
    """Raise UserError for an invalid value of `config.mesh`."""
    for key in ("trained", "frozen"):
        if rules[key] not in CHOICES:
            choices = " or ".join(map(repr, CHOICES))
            raise UserError(f"config.mesh.{key} is {rules[key]!r}: use {choices}")
    if rules["smallest"] < 1:
        raise UserError(f"config.mesh.smallest is {rules['smallest']}: give at least 1")


def state_shardings(shapes, mesh: Mesh, rules: Mapping[str, Any]):
    """The sharding of every array of a TrainState.

    Args:
      shapes: the state or its shapes, with the optimizers' states.
      mesh: a mesh with an axis "fsdp".
      rules: `config.mesh`: "trained", "frozen" and "smallest".

    Returns:
      a tree of `NamedSharding` like the state.
    """

    def choose(path, leaf):
        field = path[0].name
        rule = rules["frozen" if _is_frozen(path, shapes.opt_state) else "trained"]
        divide = field not in ("step", "batch_stats") and rule == "sharded"
        spec = _longest(leaf.shape, mesh.shape["fsdp"], rules["smallest"]) if divide else ()
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(choose, shapes)


def _is_frozen(path, optimizers) -> bool:
    """Whether an array is frozen: in `frozen`, or a parameter of a network without an optimizer."""
    field = path[0].name
    return field == "frozen" or (field == "params" and path[1].key not in optimizers)


def _longest(shape, devices, smallest):
    """The partition of an array over "fsdp"; empty for a replicated array."""
    fitting = [axis for axis, size in enumerate(shape) if size % devices == 0]
    if devices == 1 or not fitting or np.prod(shape) < smallest:
        return ()
    longest = max(fitting, key=lambda axis: (shape[axis], -axis))
    return tuple("fsdp" if axis == longest else None for axis in range(longest + 1))


def make_gather(mesh: Mesh, shardings, dtype) -> Callable[[Any], Any]:
    """Build `gather(state)`: the state with all parameters gathered on every device.

    Matrices and kernels are gathered in `dtype`, the type of the networks' products; bfloat16
    halves the traffic. Gradients are summed into the parameters' shards, so no device ever holds
    all moments or all float32 gradients.

    Args:
      mesh: the devices.
      shardings: the state's shardings (see `state_shardings`).
      dtype: the type of the networks' products.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    # The TPU compiler would compute each device's part of a gradient apart, and read all
    # activations for every part (XLA's "windowed einsum").
    tpu = mesh.devices.flat[0].platform == "tpu"
    windowed = tpu and mesh.shape["fsdp"] == mesh.size

    def gather_leaf(leaf, sharding):
        if sharding.is_fully_replicated:
            return leaf

        @jax.custom_vjp
        def gathered(leaf):
            small = leaf.astype(dtype) if leaf.ndim > 1 else leaf
            # Cast before the gathering: otherwise float32 would be sent.
            small = jax.lax.with_sharding_constraint(small, sharding)
            return jax.lax.with_sharding_constraint(small, everywhere)

        def forward(leaf):
            return gathered(leaf), None

        def backward(_, gradient):
            if windowed:
                gradient = jax.lax.with_sharding_constraint(gradient, everywhere)
            gradient = jax.lax.with_sharding_constraint(gradient, sharding)
            return (gradient.astype(leaf.dtype),)

        gathered.defvjp(forward, backward)
        return gathered(leaf)

    def gather(state):
        return state.replace(
            params=jax.tree.map(gather_leaf, state.params, shardings.params),
            frozen=jax.tree.map(gather_leaf, state.frozen, shardings.frozen),
        )

    return gather


def bytes_per_device(leaf, sharding: NamedSharding) -> int:
    """The bytes of an array that one device holds."""
    return int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize


def table(shapes, shardings) -> str:
    """A text table: name, type, shape, sharding and megabytes per device of every array."""
    lines, total = [("array", "type", "shape", "sharding", "MB per device")], 0
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        name = "/".join(_word(entry) for entry in path)
        shape = " x ".join(map(str, leaf.shape)) or "scalar"
        size = bytes_per_device(leaf, sharding)
        lines.append((name, leaf.dtype.name, shape, _spec(sharding), f"{size / 1e6:.3f}"))
        total += size
    lines.append(("all", "", "", "", f"{total / 1e6:.3f}"))
    return "\n".join(_aligned(lines, str.ljust))


def summary(shapes, shardings) -> str:
    """A text table: megabytes per device by network and kind of array."""
    sizes: dict[str, dict[str, float]] = {}
    kinds = {"params": "parameters", "opt_state": "moments", "ema": "average", "frozen": "frozen"}
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        kind = kinds.get(path[0].name, "other")
        kind = "frozen" if _is_frozen(path, shapes.opt_state) else kind
        network = _word(path[1]) if len(path) > 1 else "step"
        if kind == "average" and network != "tokenizer":
            network = "backbone"
        row = sizes.setdefault(network, {})
        row[kind] = row.get(kind, 0.0) + bytes_per_device(leaf, sharding) / 1e6
    columns = [*kinds.values(), "other"]
    lines = [("MB per device", *columns)]
    for network, row in sorted(sizes.items()):
        lines.append((network, *(f"{row[c]:.1f}" if c in row else "" for c in columns)))
    lines.append(("all", *(f"{sum(r.get(c, 0.0) for r in sizes.values()):.1f}" for c in columns)))
    return "\n".join(f"  {line}" for line in _aligned(lines, str.rjust))


def _aligned(lines, justify):
    """Rows of cells as lines of text, each column padded to its widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (justify(cell, width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _word(entry) -> str:
    """The text of a path's entry: an attribute, a dictionary key, or an index."""
    for name in ("name", "key", "idx"):
        if hasattr(entry, name):
            return str(getattr(entry, name))
    return str(entry)


def _spec(sharding):
    axes = [axis or "-" for axis in sharding.spec]
    return f"({', '.join(axes)})" if any(sharding.spec) else "replicated"
