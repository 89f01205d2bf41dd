"""Traffic read from compiled programs of which it is known."""

import json
import os
import subprocess
import sys

import pytest

from repae_jax.aot.hlo import measure_traffic

SCRIPT = """
import json, jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from repae_jax.aot.hlo import measure_traffic

mesh = jax.make_mesh((2, 4), ("a", "b"), (jax.sharding.AxisType.Auto,) * 2)

def put(*axes):
    return NamedSharding(mesh, P(*axes))

def traffic(function, shape, axes, out):
    argument = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=put(*axes))
    compiled = jax.jit(function, out_shardings=put(*out)).lower(argument).compile()
    found = measure_traffic(compiled.as_text(), 8)
    return [found.links, found.memory]

def turns(x):
    def body(carry, _):
        whole = jax.lax.with_sharding_constraint(carry * 2.0, put())
        return jax.lax.with_sharding_constraint(jnp.tanh(whole), put("b")), None
    return jax.lax.scan(body, x, None, length=7)[0]

def slices(x):  # one row a turn, read and written
    def body(i, x):
        return x.at[i].set(x[i] * 2.0)
    return jax.lax.fori_loop(0, 100, body, x)

print(json.dumps({
    "gather": traffic(lambda x: x * 1.0, (8, 1000), ("b",), ()),
    "reduce": traffic(lambda x: x.sum(0), (8, 1000), ("b",), ()),
    "gather over all": traffic(lambda x: x * 1.0, (8, 1000), (("a", "b"),), ()),
    "none": traffic(lambda x: x * 2.0, (8, 1000), ("b",), ("b",)),
    "loop": traffic(turns, (8, 1000), ("b",), ("b",)),
    "slices": traffic(slices, (100, 1000), (), ()),
}))
"""


@pytest.fixture(scope="module")
def found():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_what_devices_get_from_others(found):
    whole = 8 * 1000 * 4
    assert found["gather"][0] == {"all-gather": whole * 3 / 4}
    assert found["gather over all"][0] == {"all-gather": whole * 7 / 8}
    assert found["reduce"][0] == {"all-reduce": 2 * 4000 * 3 / 4}
    assert found["none"][0] == {}


def test_a_loops_body_counts_as_often_as_it_turns(found):
    assert found["loop"][0] == {"all-gather": 7 * 8 * 1000 * 4 * 3 / 4}


def test_memory_traffic_is_what_instructions_read_and_write(found):
    part = 8 * 1000 * 4 / 4
    assert found["none"][1] == 2 * part  # read once, written once


def test_what_is_sliced_or_updated_in_place_moves_in_part(found):
    row = 1000 * 4
    assert 100 * 2 * row <= found["slices"][1] < 100 * 6 * row + 3 * 100 * row


TPU = """
HloModule jit_step, entry_computation_layout={()->f32[]}

%all-reduce-scatter.1 (input: f32[8,128]) -> f32[2,128] {
  %input = f32[8,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.5 = f32[8,128]{1,0:T(8,128)} all-reduce(%input), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %slice = f32[2,128]{1,0} dynamic-slice(%all-reduce.5)
}

ENTRY %main (p: f32[8,128]) -> f32[2,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  %ag = (f32[8,128]{1,0}, f32[32,128]{1,0:T(8,128)}) all-gather-start(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %done = f32[32,128]{1,0:T(8,128)} all-gather-done(%ag)
  %near = f32[8,128]{1,0:T(8,128)S(1)} copy(%p)
  ROOT %out = f32[2,128]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
}
"""  # noqa: E501


LOOP = """
HloModule jit_step

%condition (p: (s32[], f32[8,128])) -> pred[] {
  %p = (s32[], f32[8,128]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[]{:T(128)} constant(28)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[], f32[8,128]) parameter(0)
  %x = f32[8,128] get-tuple-element(%p), index=1
  %sum = f32[8,128] all-reduce(%x), replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %t = (s32[], f32[8,128]) tuple(%i, %sum)
}

ENTRY %main (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[], f32[8,128]) parameter(0)
  ROOT %w = (s32[], f32[8,128]) while(%p), condition=%condition, body=%body
}
"""


def test_a_loop_turns_as_often_as_its_condition_says():
    assert measure_traffic(LOOP, 8).links == {"all-reduce": 28 * 2 * 8 * 128 * 4 * 7 / 8}


def test_the_tpu_compilers_own_forms():
    links = measure_traffic(TPU, 8).links
    assert links["all-gather"] == 32 * 128 * 4 * 3 / 4
    # An all-reduce of which each device keeps its part is a reduce-scatter.
    assert links["reduce-scatter"] == 8 * 128 * 4 * 3 / 4
    assert "all-reduce" not in links


GPU = """
HloModule jit_step

ENTRY %main (p: bf16[64,64], q: bf16[64,64]) -> bf16[64,64] {
  %p = bf16[64,64]{1,0} parameter(0)
  %q = bf16[64,64]{1,0} parameter(1)
  %product = (bf16[64,64]{1,0}, s8[33554432]{0}) custom-call(%p, %q), custom_call_target="__cublas$lt$matmul"
  ROOT %out = bf16[64,64]{1,0} get-tuple-element(%product), index=0
}
"""  # noqa: E501


def test_the_scratch_space_of_a_gpus_libraries_is_not_traffic():
    assert measure_traffic(GPU, 1).memory == 3 * 64 * 64 * 2


PARTS = """
HloModule jit_step

ENTRY %main (p: (f32[100], f32[7])) -> f32[7] {
  %p = (f32[100]{0}, /*index=1*/f32[7]{0}) parameter(0)
  ROOT %out = f32[7]{0} copy(%p#1)
}
"""


def test_a_part_of_a_tuple_moves_alone():
    """As jaxlib 0.11 writes it, without an instruction that takes the part."""
    assert measure_traffic(PARTS, 1).memory == 2 * 7 * 4
