"""Which arrays are divided, along which axis, and what is said of it."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from repae_jax.aot.hlo import measure_traffic
from repae_jax.aot.topologies import absent_devices, compile_for, compiler
from repae_jax.errors import UserError
from repae_jax.models.convolution import convolve
from repae_jax.parallel.mesh import axis_sizes, padded_batch_size
from repae_jax.parallel.sharding import check_rules, make_gather, state_shardings, summary, table
from repae_jax.runs.state import TrainState

RULES = dict(trained="sharded", frozen="replicated", smallest=100)
MESH = AbstractMesh((2, 4), ("data", "fsdp"))


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, np.float32)


def state():
    return TrainState(
        step=jax.ShapeDtypeStruct((), np.int32),
        params={"backbone": {"blocks_0": {"kernel": shape(12, 48), "bias": shape(48)},
                        "blocks_1": {"kernel": shape(12, 48), "bias": shape(48)},
                        "odd": shape(7, 33), "conv": shape(3, 3, 8, 16), "square": shape(16, 16)},
                "tokenizer": {"kernel": shape(32, 32)}},  # which no optimizer trains
        batch_stats={"latent_norm": {"mean": shape(400)}},
        opt_state={"backbone": (shape(40, 10),)},
        ema={"params": {"kernel": shape(48, 12)}},
        frozen={"teacher": {"kernel": shape(64, 64)}},
    )  # fmt: skip


def with_kernel(kernel):
    """A state, or its shardings, with one parameter."""
    rest = {"batch_stats": {}, "opt_state": {}, "ema": {}, "frozen": {}}
    return TrainState(step=None, params={"kernel": kernel}, **rest)


def specs(**rules):
    shardings = state_shardings(state(), MESH, {**RULES, **rules})
    return jax.tree.map(lambda sharding: sharding.spec, shardings)


def test_large_arrays_are_cut_along_their_longest_axis_that_divides():
    found = specs()
    sit = found.params["backbone"]
    assert sit["blocks_0"]["kernel"] == PartitionSpec(None, "fsdp")
    assert sit["blocks_0"]["bias"] == PartitionSpec()  # small
    assert sit["odd"] == PartitionSpec()  # nothing divides
    assert sit["conv"] == PartitionSpec(None, None, None, "fsdp")
    assert sit["square"] == PartitionSpec("fsdp")  # the first of equals
    assert found.opt_state["backbone"][0] == PartitionSpec("fsdp")
    assert found.ema["params"]["kernel"] == PartitionSpec("fsdp")
    assert found.frozen["teacher"]["kernel"] == PartitionSpec()
    assert found.batch_stats["latent_norm"]["mean"] == PartitionSpec()  # whatever its size
    assert found.step == PartitionSpec()


def test_each_choice_has_its_key():
    assert specs(frozen="sharded").frozen["teacher"]["kernel"] == PartitionSpec("fsdp")
    assert specs(trained="replicated").params["backbone"]["square"] == PartitionSpec()
    assert specs(frozen="sharded").params["tokenizer"]["kernel"] == PartitionSpec("fsdp")
    assert specs(trained="replicated").ema["params"]["kernel"] == PartitionSpec()
    assert specs(smallest=257).params["backbone"]["square"] == PartitionSpec()


def test_a_network_that_is_not_trained_is_frozen():
    assert specs().params["tokenizer"]["kernel"] == PartitionSpec()
    found = specs(trained="replicated", frozen="sharded")
    assert found.params["tokenizer"]["kernel"] == PartitionSpec("fsdp")
    assert found.params["backbone"]["square"] == PartitionSpec()
    shapes = state()
    text = summary(shapes, state_shardings(shapes, MESH, RULES))
    heads, row = (line for line in text.splitlines() if "frozen" in line or "tokenizer" in line)
    assert len(row) == heads.index("frozen") + len("frozen")  # the row's one number is below it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trained": "divided"}, "config.mesh.trained is 'divided': use 'sharded' or"),
        ({"frozen": ""}, "config.mesh.frozen is ''"),
        ({"smallest": 0}, "config.mesh.smallest is 0"),
    ],
)
def test_other_choices_are_named(change, message):
    with pytest.raises(UserError, match=message):
        check_rules({**RULES, **change})


def test_the_table_tells_every_array_and_its_bytes():
    shapes = state()
    shardings = state_shardings(shapes, MESH, RULES)
    lines = table(shapes, shardings).splitlines()
    assert len(lines) == 2 + len(jax.tree.leaves(shapes))
    (kernel,) = [line for line in lines if line.startswith("params/backbone/blocks_1/kernel")]
    assert "12 x 48" in kernel
    assert "(-, fsdp)" in kernel
    assert kernel.endswith(f"{12 * 48 * 4 / 4 / 1e6:.3f}")
    expected = sum(
        np.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    )
    assert lines[-1].endswith(f"{expected / 1e6:.3f}")
    assert "backbone" in summary(shapes, shardings)


def test_a_kernels_gradient_is_computed_whole_and_then_divided():
    """Computed in parts (XLA's "windowed einsum"), it would read the images for each device."""
    pytest.importorskip("libtpu")
    with compiler("quick"):
        mesh = Mesh(np.reshape(absent_devices("v5e:2x4"), (1, 8)), ("data", "fsdp"))
        divided = NamedSharding(mesh, PartitionSpec(None, None, "fsdp"))
        batch = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        gather = make_gather(mesh, with_kernel(divided), jax.numpy.bfloat16)

        def loss(kernel, images):
            gathered = gather(with_kernel(kernel)).params["kernel"]
            y = convolve(images, gathered, 1, ((1, 1), (1, 1)))
            return jax.numpy.square(y.astype(np.float32)).mean()

        kernel = jax.ShapeDtypeStruct((3, 3, 128, 128), np.float32, sharding=divided)
        images = jax.ShapeDtypeStruct((64, 128, 128, 128), jax.numpy.bfloat16, sharding=batch)
        gradient = jax.jit(jax.grad(loss), out_shardings=divided)
        program = compile_for("v5e:2x4", gradient, (kernel, images)).as_text()
    traffic = measure_traffic(program, devices=8)
    assert set(traffic.links) == {"all-gather", "reduce-scatter"}
    one_pass = images.size * 2 / 8  # bytes of a device's images
    assert traffic.memory < 5 * one_pass


@pytest.mark.parametrize(
    ("given", "sizes"),
    [((-1, 1), (8, 1)), ((-1, 4), (2, 4)), ((2, -1), (2, 4)), ((2, 4), (2, 4))],
)
def test_one_size_is_the_rest(given, sizes):
    assert axis_sizes(*given, 8) == sizes


@pytest.mark.parametrize("given", [(-1, -1), (0, 8), (3, -1), (2, 2), (-2, 1), (-1, 16)])
def test_sizes_that_do_not_fit_are_named(given):
    with pytest.raises(UserError, match=f"data = {given[0]} and fsdp = {given[1]}"):
        axis_sizes(*given, 8)


def test_batches_divide_over_the_devices():
    assert padded_batch_size(MESH, None, 16) == 128
    assert padded_batch_size(MESH, 3, 16) == 8
    assert padded_batch_size(MESH, 20, 16, 100) == 24
    assert padded_batch_size(MESH, None, 16, 5) == 8  # no more than there are
    with pytest.raises(UserError, match="--batch-size is 0: give at least 1"):
        padded_batch_size(MESH, 0, 16)
