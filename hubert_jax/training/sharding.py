"""The device mesh, and where every parameter and batch lies on it."""

import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hubert_jax.errors import InputError

# Path of a parameter -> its partition. Exactly one rule must match every parameter. `fsdp` cuts
# the larger matrices, `tensor` cuts heads and feed-forward units; the front-end is small and
# stays whole. Transformer parameters carry a leading layer axis.
RULES: tuple[tuple[str, P], ...] = (
    (r"hubert/frontend/.*", P()),
    (r"hubert/(frontend_norm|encoder_norm)/.*", P()),
    (r"hubert/projection/kernel", P(None, "fsdp")),
    (r"hubert/projection/bias", P()),
    (r"hubert/mask_embedding", P()),
    (r"hubert/positional/direction", P(None, None, "fsdp")),
    (r"hubert/positional/(magnitude|bias)", P()),
    (r"hubert/transformer/.*/(query|key|value|ffn_in)/kernel", P(None, "fsdp", "tensor")),
    (r"hubert/transformer/.*/(query|key|value|ffn_in)/bias", P(None, "tensor")),
    (r"hubert/transformer/.*/(output|ffn_out)/kernel", P(None, "tensor", "fsdp")),
    (r"hubert/transformer/.*/(output|ffn_out)/bias", P()),
    (r"hubert/transformer/.*/(attention_norm|ffn_norm)/.*", P()),
    (r"projection_\d+/kernel", P("fsdp", None)),
    (r"projection_\d+/bias", P()),
    (r"codes_\d+", P()),
    (r"characters/.*", P()),
)

BATCH = P(("data", "fsdp"))


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over all devices with the axes `data`, `fsdp`, `tensor`; `data` = -1 takes the rest.

    Raises:
      InputError: the axes' product is not the number of devices, or a row of a batch would lie on
        the devices of several processes, which read different rows.
    """
    count = jax.device_count()
    if data == -1:
        data = max(1, count // (fsdp * tensor))
    if data * fsdp * tensor != count:
        raise InputError(
            f"config.mesh: data x fsdp x tensor = {data} x {fsdp} x {tensor} does not match the "
            f"{count} devices present"
        )
    mesh = jax.make_mesh((data, fsdp, tensor), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    for devices in mesh.devices.reshape(-1, tensor):
        if len({device.process_index for device in devices}) > 1:
            raise InputError(
                f"config.mesh.tensor={tensor}: lies across processes; expected a divisor of the "
                f"{jax.local_device_count()} devices of each"
            )
    return mesh


def path_name(path: tuple) -> str:
    """A key path of a parameter tree as `a/b/c`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def parameter_shardings(mesh: Mesh, params) -> dict:
    """The NamedSharding of every parameter.

    Args:
      mesh: from `make_mesh`.
      params: a tree of arrays or shapes.

    Raises:
      InputError: a parameter that no rule or several rules match.
    """

    def sharding(path, leaf):
        name = path_name(path)
        matching = [spec for pattern, spec in RULES if re.fullmatch(pattern, name)]
        if len(matching) != 1:
            raise InputError(
                f"parameter {name}: matched by {len(matching)} sharding rules, expected exactly 1"
            )
        return NamedSharding(mesh, _divisible(mesh, matching[0], leaf.shape))

    return jax.tree_util.tree_map_with_path(sharding, params)


def _divisible(mesh: Mesh, spec: P, shape: tuple[int, ...]) -> P:
    """`spec` without the axes whose size does not divide the dimension (tiny test models)."""
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
