"""The device mesh, and where every parameter and batch lies on it."""

import dataclasses
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hubert_jax.config import MayChange
from hubert_jax.errors import InputError

# Path of a parameter -> its partition. Exactly one rule must match every parameter. `fsdp` cuts
# the larger matrices, `tensor` cuts heads and feed-forward units; the front-end is small and
# stays whole. Transformer parameters carry a leading layer axis.
HUBERT_RULES: tuple[tuple[str, P], ...] = (
    (r"hubert/frontend/.*", P()),
    (r"hubert/(frontend_norm|encoder_norm)/.*", P()),
    (r"hubert/feature_projection/kernel", P(None, "fsdp")),
    (r"hubert/feature_projection/bias", P()),
    (r"hubert/mask_embedding", P()),
    (r"hubert/positional/direction", P(None, None, "fsdp")),
    (r"hubert/positional/(magnitude|bias)", P()),
    (r"hubert/transformer/.*/(query|key|value|ffn_in)/kernel", P(None, "fsdp", "tensor")),
    (r"hubert/transformer/.*/(query|key|value|ffn_in)/bias", P(None, "tensor")),
    (r"hubert/transformer/.*/(output|ffn_out)/kernel", P(None, "tensor", "fsdp")),
    (r"hubert/transformer/.*/(output|ffn_out)/bias", P()),
    (r"hubert/transformer/.*/(attention_norm|ffn_norm)/.*", P()),
    (r"final_proj_\d+/kernel", P("fsdp", None)),
    (r"final_proj_\d+/bias", P()),
    (r"label_embeddings_\d+", P()),
    (r"ctc_head/.*", P()),
)

BATCH = P(("data", "fsdp"))
_ATTENTION = P(("data", "fsdp"), None, "tensor", None)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; `data` = -1 takes what the others leave."""

    data: MayChange[int] = -1
    fsdp: MayChange[int] = 1
    tensor: MayChange[int] = 1


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes `data`, `fsdp`, `tensor` over `devices`, all that are there by default.

    Raises:
      InputError: the axes' product is not the number of devices, or a row of a batch would lie on
        the devices of several processes, which read different rows.
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
    for devices in mesh.devices.reshape(-1, tensor):
        if len({device.process_index for device in devices}) > 1:
            raise InputError(
                f"config.mesh.tensor={tensor}: lies across processes; expected a divisor of the "
                f"{jax.local_device_count()} devices of each"
            )
    return mesh


def batch_shards(mesh: Mesh) -> int:
    """Over how many devices the rows of a batch are divided."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def attention_sharding(mesh: Mesh) -> NamedSharding:
    """Where query, key and value (B, T, heads, head_dim) lie."""
    return NamedSharding(mesh, _ATTENTION)


def path_name(path: tuple) -> str:
    """A key path of a parameter tree as `a/b/c`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def parameter_shardings(mesh: Mesh, params, rules=HUBERT_RULES) -> dict:
    """The NamedSharding of every parameter.

    Args:
      mesh: from `make_mesh`.
      params: a tree of arrays or shapes.
      rules: (pattern of the whole path, partition); exactly one must match every parameter. An
        axis of the mesh whose size does not divide its dimension is left out.

    Raises:
      InputError: a parameter that no rule or several rules match.
    """

    def sharding(path, leaf):
        name = path_name(path)
        matching = [spec for pattern, spec in rules if re.fullmatch(pattern, name)]
        if len(matching) != 1:
            raise InputError(
                f"parameter {name}: matched by {len(matching)} sharding rules, expected exactly 1"
            )
        return NamedSharding(mesh, _divisible(mesh, matching[0], leaf.shape))

    return jax.tree_util.tree_map_with_path(sharding, params)


def _divisible(mesh: Mesh, spec: P, shape: tuple[int, ...]) -> P:
    """`spec` without the axes whose size does not divide the dimension."""
    axes = [
        axis if axis is not None and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(spec, shape, strict=False)
    ]
    return P(*axes)


def state_shardings(mesh: Mesh, state, params_shardings) -> dict:
    """Shardings of a whole state: what mirrors the parameters lies as they do, the rest is whole.

    Optimiser moments are found by the parameter's path at the end of their own.
    """
    by_path = {
        path_name(path): sharding
        for path, sharding in jax.tree_util.tree_leaves_with_path(params_shardings)
    }

    def sharding(path, leaf):
        name = path_name(path)
        for parameter, found in by_path.items():
            if leaf.ndim and (name == parameter or name.endswith("/" + parameter)):
                if len(found.spec) <= leaf.ndim:
                    return found
        return NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(sharding, state)


def to_global(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This host's rows of a batch as global arrays cut over the `data` and `fsdp` axes."""
    sharding = NamedSharding(mesh, BATCH)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
