"""The device mesh, and where every parameter and batch lies on it."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hubert_jax.config import MayChange
from hubert_jax.errors import InputError

BATCH = P(("data", "fsdp"))


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; `data` = -1 takes what the others leave."""

    data: MayChange[int] = -1
    fsdp: MayChange[int] = 1
    tensor: MayChange[int] = 1

    def __post_init__(self) -> None:
        for name, devices in dataclasses.asdict(self).items():
            if devices < 1 and (name, devices) != ("data", -1):
                raise InputError(f"config.mesh.{name}={devices}: expected 1 or more")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes `data`, `fsdp`, `tensor` over `devices`, all that are there by default.

    Raises InputError where the axes' product is not the number of devices, or a row of a batch
    would lie across processes, which read different rows.
    """
    data, fsdp, tensor = config.data, config.fsdp, config.tensor
    count = jax.device_count() if devices is None else len(devices)
    if data == -1:
        data = max(1, count // (fsdp * tensor))
    if data * fsdp * tensor != count:
        raise InputError(
            f"config.mesh: data x fsdp x tensor = {data} x {fsdp} x {tensor} does not match the "
            f"{count} devices present"
        )
    shape, names, types = (data, fsdp, tensor), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3
    if devices is None:
        mesh = jax.make_mesh(shape, names, types)
    else:
        mesh = Mesh(np.array(devices).reshape(shape), names, axis_types=types)
    for row in mesh.devices.reshape(-1, tensor):
        if len({device.process_index for device in row}) > 1:
            raise InputError(
                f"config.mesh.tensor={tensor}: lies across processes; expected a divisor of the "
                f"{jax.local_device_count()} devices of each"
            )
    return mesh


def batch_shards(mesh: Mesh) -> int:
    """How many devices the rows of a batch are divided over."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def attention_sharding(mesh: Mesh) -> NamedSharding:
    """Where query, key and value (B, T, heads, head_dim) lie."""
    return NamedSharding(mesh, P(("data", "fsdp"), None, "tensor", None))


def path_name(path: tuple) -> str:
    """A key path of a parameter tree as `a/b/c`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def parameter_shardings(mesh: Mesh, params: Any, rules: Sequence[tuple[str, P]]) -> Any:
    """The sharding of every parameter of a tree of arrays or shapes.

    Exactly one of `rules` (pattern of the whole path, partition) must match each, else InputError.
    An axis of the mesh whose size does not divide its dimension is left out.
    """

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        name = path_name(path)
        matching = [spec for pattern, spec in rules if re.fullmatch(pattern, name)]
        if len(matching) != 1:
            raise InputError(
                f"parameter {name}: matched by {len(matching)} sharding rules, expected exactly 1"
            )
        axes = (
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(matching[0], leaf.shape, strict=False)
        )
        return NamedSharding(mesh, P(*axes))

    return jax.tree_util.tree_map_with_path(sharding, params)


def state_shardings(mesh: Mesh, state: Any, params_shardings: Any) -> Any:
    """Of a whole state: what ends in a parameter's path lies as it does, the rest is whole."""
    by_path = {
        path_name(path): sharding
        for path, sharding in jax.tree_util.tree_leaves_with_path(params_shardings)
    }

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        name = path_name(path)
        for parameter, found in by_path.items():
            if f"/{name}".endswith(f"/{parameter}") and len(found.spec) <= leaf.ndim:
                return found
        return NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(sharding, state)


def to_global(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays, cut over `data` and `fsdp`."""
    rows = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(rows, array), batch)
