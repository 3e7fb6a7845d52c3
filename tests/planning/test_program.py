"""What is read from a compiled program: known programs, and every form in which XLA writes them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hubert_jax.planning import program
from hubert_jax.planning.program import Collective
from hubert_jax.training import sharding
from hubert_jax.training.sharding import MeshConfig

PASSES, WIDTH = 5, 64
SQUARE = WIDTH * WIDTH * 4  # bytes


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(MeshConfig(data=4, fsdp=2))


def _text(mesh, function, *arguments) -> str:
    return jax.jit(function).lower(*arguments).compile().as_text()


def _array(mesh, shape, *axes):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*axes)))


def test_exchanges_of_a_loop_are_counted_as_often_as_it_goes_round(mesh):
    """Rows over `data`, the inner dimension over `fsdp`: each product is summed over `fsdp`."""

    def products(rows, matrix):
        @functools.partial(
            jax.shard_map,
            mesh=mesh,
            in_specs=(P("data", "fsdp"), P("fsdp")),
            out_specs=P("data", "fsdp"),
        )
        def one(own, part):
            whole = jax.lax.psum(own @ part, "fsdp")
            number = jax.lax.axis_index("fsdp") * (WIDTH // 2)
            return jax.lax.dynamic_slice_in_dim(whole, number, WIDTH // 2, axis=1)

        return jax.lax.scan(lambda now, _: (one(now, matrix), None), rows, length=PASSES)[0]

    rows, matrix = _array(mesh, (WIDTH, WIDTH), "data", "fsdp"), _array(mesh, (WIDTH,) * 2, "fsdp")
    found = program.traffic(_text(mesh, products, rows, matrix), mesh.shape)
    (summed,) = [each for each in found.collectives if each.kind == "all-reduce"]
    assert (summed.axes, summed.group, summed.count) == (("fsdp",), 2, PASSES)
    assert summed.largest == SQUARE / 4 and summed.bytes == PASSES * SQUARE / 4
    assert summed.sent == summed.bytes  # 2 (n - 1) / n of them


def test_gathering_counts_what_a_device_has_afterwards(mesh):
    def whole(matrix):
        return jax.lax.with_sharding_constraint(matrix, NamedSharding(mesh, P()))

    text = _text(mesh, whole, _array(mesh, (WIDTH, WIDTH), ("data", "fsdp")))
    (gathered,) = program.traffic(text, mesh.shape).collectives
    assert (gathered.kind, gathered.axes, gathered.group) == ("all-gather", ("data", "fsdp"), 8)
    assert gathered.bytes == SQUARE and gathered.sent == SQUARE * 7 / 8


@pytest.mark.parametrize(
    ("groups", "axes", "devices"),
    [
        ("replica_groups={{0,2,4,6},{1,3,5,7}}", ("data",), 4),
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("fsdp",), 2),
        ("replica_groups=[1,8]<=[8]", ("data", "fsdp"), 8),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", ("data",), 4),
        ("replica_groups=[4,2]<=[8]", ("fsdp",), 2),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2,'axis_2'=1] {'axis_1'}", ("fsdp",), 2),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", ("data", "fsdp"), 8),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}", ("data", "fsdp"), 8),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0':(4)2}", ("fsdp",), 2),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0':(1)4}", ("data",), 4),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", ("data",), 4),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", ("fsdp",), 2),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=(0,2,4,6,1,3,5,7) {'b'}", ("data",), 4),
        ("source_target_pairs={{0,2},{2,4},{4,6}}", ("data",), 2),
        ("replica_groups={}", ("data", "fsdp"), 8),
    ],
)
def test_groups_of_every_form(groups, axes, devices):
    text = f"""HloModule step

ENTRY %main (own: f32[10]) -> f32[10] {{
  %own = f32[10]{{0}} parameter(0)
  ROOT %sum = f32[10]{{0}} all-reduce(%own), channel_id=1, {groups}, to_apply=%add
}}
"""
    (found,) = program.traffic(text, {"data": 4, "fsdp": 2, "tensor": 1}).collectives
    assert (found.axes, found.group, found.bytes) == (axes, devices, 40)


def test_memory_of_products_and_of_slices(mesh):
    """A loop over matrices that are stacked reads each once, and not all of them every time."""
    one = jax.devices()[0]
    where = jax.sharding.SingleDeviceSharding(one)
    stacked = jax.ShapeDtypeStruct((PASSES, WIDTH, WIDTH), jnp.float32, sharding=where)
    rows = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32, sharding=where)

    def through(rows, stacked):
        return jax.lax.scan(lambda now, each: (jnp.tanh(now @ each), None), rows, stacked)[0]

    text = _text(mesh, through, rows, stacked)
    moved = program.traffic(text, {"data": 1}).memory
    # Of a pass: a matrix read and perhaps copied, rows read and written, by product and tanh.
    assert PASSES * 3 * SQUARE <= moved <= PASSES * 9 * SQUARE


TPU = """HloModule step, is_scheduled=true

%region_cond (param: (s32[], f32[8,128], f32[12,8,128])) -> pred[] {
  %count = s32[]{:T(128)} constant(12)
  %param = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, f32[12,8,128]{2,1,0:T(8,128)}) parameter(0)
  %number = s32[]{:T(128)} get-tuple-element(%param), index=0
  ROOT %less = pred[]{:T(512)} compare(%number, %count), direction=LT
}

%fused (one: f32[12,8,128], two: s32[]) -> f32[1,8,128] {
  %one = f32[12,8,128]{2,1,0:T(8,128)} parameter(0)
  %two = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %slice = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%one, %two, %zero, %zero), sizes={1,8,128}
}

%region_body (param: (s32[], f32[8,128], f32[12,8,128])) -> (s32[], f32[8,128], f32[12,8,128]) {
  %param = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, f32[12,8,128]{2,1,0:T(8,128)}) parameter(0)
  %number = s32[]{:T(128)} get-tuple-element(%param), index=0
  %rows = f32[8,128]{1,0:T(8,128)} get-tuple-element(%param), index=1
  %all = f32[12,8,128]{2,1,0:T(8,128)} get-tuple-element(%param), index=2
  %mine = f32[1,8,128]{2,1,0:T(8,128)S(1)} fusion(%all, %number), kind=kLoop, calls=%fused
  %own = f32[8,128]{1,0:T(8,128)S(1)} custom-call(), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"block": 8
}}, metadata={op_name="kernel"}
  ROOT %next = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, f32[12,8,128]{2,1,0:T(8,128)}) tuple(%number, %rows, %all)
}

ENTRY %main (rows: f32[8,128], all: f32[12,8,128]) -> f32[8,128] {
  %rows = f32[8,128]{1,0:T(8,128)} parameter(0)
  %all = f32[12,8,128]{2,1,0:T(8,128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %first = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, f32[12,8,128]{2,1,0:T(8,128)}) tuple(%zero, %rows, %all)
  %loop = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, f32[12,8,128]{2,1,0:T(8,128)}) while(%first), condition=%region_cond, body=%region_body
  ROOT %out = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""  # fmt: skip  # noqa: E501


def test_a_loop_of_a_tpu_says_how_often_it_goes_round_by_its_condition():
    """Twelve slices of 4,096 bytes are read; S(1) is memory on the chip; a number is read, too."""
    assert program.traffic(TPU, {"data": 1}).memory == 12 * (8 * 128 * 4 + 4)


def test_groups_beyond_a_node():
    axes = {"data": 4, "fsdp": 8, "tensor": 1}
    across = Collective("all-reduce", ("data",), 4, 1, 1.0, 1.0)
    inside = Collective("all-reduce", ("fsdp",), 8, 1, 1.0, 1.0)
    both = Collective("all-reduce", ("data", "fsdp"), 32, 1, 1.0, 1.0)
    assert [each.together(axes, 8) for each in (across, inside, both)] == [1, 8, 8]
    assert across.together(axes, 0) == 4
    np.testing.assert_allclose(inside.sent, 2 * 7 / 8)


FUSED = """HloModule step

%all-reduce-scatter.1 (own: f32[80]) -> f32[10] {
  %own = f32[80]{0} parameter(0)
  %place = s32[] constant(0)
  %sum = f32[80]{0} all-reduce(%own), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %mine = f32[10]{0} dynamic-slice(%sum, %place), dynamic_slice_sizes={10}
}

ENTRY %main (own: f32[80]) -> f32[10] {
  %own = f32[80]{0} parameter(0)
  ROOT %mine = f32[10]{0} fusion(%own), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_exchanges_within_fusions_are_seen():
    """So TPU writes the sum of which each device keeps a part."""
    (found,) = program.traffic(FUSED, {"data": 8}).collectives
    assert (found.kind, found.group, found.bytes, found.sent) == ("reduce-scatter", 8, 320, 280)


def test_exchanges_that_are_started_and_awaited():
    text = """HloModule step

ENTRY %main (own: f32[10]) -> f32[80] {
  %own = f32[10]{0} parameter(0)
  %begun = (f32[10]{0}, f32[80]{0}) all-gather-start(%own), replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %all = f32[80]{0} all-gather-done(%begun)
}
"""  # noqa: E501
    (found,) = program.traffic(text, {"data": 8}).collectives
    assert (found.kind, found.bytes) == ("all-gather", 320)
