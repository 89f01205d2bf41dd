"""Which part of the state is where: the one place that decides it.

The rules, first match first:

    step, batch_stats                       a copy on every device: small, and read by all
    frozen, params without an optimizer     config.mesh.frozen: copies, or divided
    params, opt_state, ema                  config.mesh.trained: divided, or copies

"Divided" is over the mesh's axis "fsdp" (ZeRO-3, arXiv 1910.02054): an array of at least
`smallest` elements is cut along its longest axis that the number of devices divides; others are
copies. Every device computes on its part of the batch with whole parameters: they are gathered
where they are used, and gradients are summed where they are kept.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from repae_jax.errors import UserError

CHOICES = ("sharded", "replicated")


def check_rules(rules: Mapping[str, Any]) -> None:
    """Raise UserError for a value of `config.mesh` that no rule has."""
    for key in ("trained", "frozen"):
        if rules[key] not in CHOICES:
            choices = " or ".join(map(repr, CHOICES))
            raise UserError(f"config.mesh.{key} is {rules[key]!r}: use {choices}")
    if rules["smallest"] < 1:
        raise UserError(f"config.mesh.smallest is {rules['smallest']}: give at least 1")


def state_shardings(shapes, mesh: Mesh, rules: Mapping[str, Any]):
    """The sharding of every array of a TrainState.

    Args:
      shapes: the state, or its shapes, with the optimizers' states.
      mesh: with an axis "fsdp".
      rules: `config.mesh`: "trained", "frozen" and "smallest".
    """

    def choose(path, leaf):
        field = path[0].name
        rule = rules["frozen" if _is_frozen(path, shapes.opt_state) else "trained"]
        divide = field not in ("step", "batch_stats") and rule == "sharded"
        spec = _longest(leaf.shape, mesh.shape["fsdp"], rules["smallest"]) if divide else ()
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(choose, shapes)


def _is_frozen(path, optimizers) -> bool:
    """Whether no step changes an array: a network without an optimizer is frozen."""
    field = path[0].name
    return field == "frozen" or (field == "params" and path[1].key not in optimizers)


def _longest(shape, devices, smallest):
    """The partition of an array over "fsdp"; empty where it stays whole."""
    fitting = [axis for axis, size in enumerate(shape) if size % devices == 0]
    if devices == 1 or not fitting or np.prod(shape) < smallest:
        return ()
    longest = max(fitting, key=lambda axis: (shape[axis], -axis))
    return tuple("fsdp" if axis == longest else None for axis in range(longest + 1))


def make_gather(mesh: Mesh, shardings, dtype) -> Callable[[Any], Any]:
    """Build `gather(state)`: the state with all parameters gathered, as computing needs them.

    Matrices and kernels are gathered in `dtype`, which is how the networks use them: half the
    bytes in bfloat16. Their gradients come back summed and divided as the parameters are kept, so
    that no device ever holds all moments or all float32 gradients.

    Args:
      mesh: the devices.
      shardings: of the state (see `state_shardings`).
      dtype: of the networks' products.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())

    def gather_leaf(leaf, sharding):
        if sharding.is_fully_replicated:
            return leaf

        @jax.custom_vjp
        def gathered(leaf):
            small = leaf.astype(dtype) if leaf.ndim > 1 else leaf
            # Cast where it is kept: otherwise float32 would be sent.
            small = jax.lax.with_sharding_constraint(small, sharding)
            return jax.lax.with_sharding_constraint(small, everywhere)

        def forward(leaf):
            return gathered(leaf), None

        def backward(_, gradient):
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
    """How much of an array one device keeps."""
    return int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize


def table(shapes, shardings) -> str:
    """Name, type, shape, sharding and bytes per device of every array of a state, as text."""
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
    """Megabytes per device by network and kind, as text."""
    sizes: dict[str, dict[str, float]] = {}
    kinds = {"params": "parameters", "opt_state": "moments", "ema": "average", "frozen": "frozen"}
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        kind = kinds.get(path[0].name, "other")
        kind = "frozen" if _is_frozen(path, shapes.opt_state) else kind
        network = "backbone" if kind == "average" else _word(path[1]) if len(path) > 1 else "step"
        row = sizes.setdefault(network, {})
        row[kind] = row.get(kind, 0.0) + bytes_per_device(leaf, sharding) / 1e6
    columns = [*kinds.values(), "other"]
    lines = [("MB per device", *columns)]
    for network, row in sorted(sizes.items()):
        lines.append((network, *(f"{row[c]:.1f}" if c in row else "" for c in columns)))
    lines.append(("all", *(f"{sum(r.get(c, 0.0) for r in sizes.values()):.1f}" for c in columns)))
    return "\n".join(f"  {line}" for line in _aligned(lines, str.rjust))


def _aligned(lines, justify):
    """Rows of cells as lines of text with columns of one width."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (justify(cell, width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _word(entry) -> str:
    """A path's entry: an attribute, a dictionary's key, or a position."""
    for name in ("name", "key", "idx"):
        if hasattr(entry, name):
            return str(getattr(entry, name))
    return str(entry)


def _spec(sharding):
    axes = [axis or "-" for axis in sharding.spec]
    return f"({', '.join(axes)})" if any(sharding.spec) else "replicated"
