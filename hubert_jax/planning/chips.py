"""Accelerators by name, what they can do, and devices that stand for machines that are not here.

The figures of TPUs are those of Google's documentation of each generation
(docs.cloud.google.com/tpu/docs, 2026-11); a chip sends half of what is called bidirectional there.
The H100's are those of NVIDIA's data sheet of the SXM module, without sparsity, with a 400 Gbit/s
adapter for each GPU. Memory is what a program can have: on TPU what its compiler allows, on GPU the
three quarters that JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
"""

import dataclasses
import math
import os
import re
from typing import Any

from hubert_jax import storage
from hubert_jax.errors import InputError

_GIB = 2**30
_NOWHERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip can do at most."""

    platform: str  # tpu or gpu
    flops: float  # per second, in bfloat16
    memory: float  # bytes that a program can have
    bandwidth: float  # bytes per second of its memory
    links: float  # bytes per second that it sends to the others of its torus, or of its node
    axes: int  # of the torus, each of which has its share of the links; 1: a switch
    node: int  # chips that the links join; 0: all of a slice
    network: float = 0.0  # bytes per second that it sends beyond its node

    def seconds_of(self, sent: float, group: int, together: int, devices: int) -> float:
        """The least time to send so many bytes in a group, `together` of which are in one node.

        A group of some of a torus's `devices` is taken to lie along one axis. Between nodes as many
        rings run side by side as a group has chips in each.
        """
        if together < group:
            inside = sent / self.links if together > 1 else 0.0
            return max(inside, sent / (together * self.network))
        return sent / (self.links if self.node or group == devices else self.links / self.axes)


CHIPS = {
    "v4": Chip("tpu", 275e12, 30.75 * _GIB, 1228e9, 300e9, axes=3, node=0),
    "v5e": Chip("tpu", 197e12, 15.75 * _GIB, 819e9, 200e9, axes=2, node=0),
    "v5p": Chip("tpu", 459e12, 95.74 * _GIB, 2765e9, 600e9, axes=3, node=0),
    "v6e": Chip("tpu", 918e12, 31.25 * _GIB, 1638e9, 400e9, axes=2, node=0),
    "h100": Chip("gpu", 989e12, 0.75 * 80e9, 3350e9, 450e9, axes=1, node=8, network=50e9),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices of one kind, as a compiler knows them; none of them is here."""

    name: str
    chip: Chip
    devices: tuple[Any, ...]


def described(name: str, target: str = "") -> Topology:
    """The devices of `v5e:16x16`, chips along each axis of a torus, or of `h100:4`, nodes of eight.

    `target` is the file that describes a GPU to its compiler. Raises InputError for an unknown
    name, and where the compiler is not installed.
    """
    kind, _, size = name.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", size):
        shapes = "v5e:4x4, v5p:4x4x8 or h100:4"
        raise InputError(
            f"config.plan.topology={name!r}: expected one of {', '.join(CHIPS)} and its shape, "
            f"such as {shapes}"
        )
    chip = CHIPS[kind]
    if chip.platform == "gpu":
        options = _gpus(int(math.prod(map(int, size.split("x")))), chip, target)
    else:
        options = dict(platform="tpu", topology_name=name)
        if kind == "v4":
            options["chip_config_name"] = "megacore"  # both cores of a chip are one device
        # Or its library would look for the machine that it runs on.
        for variable, value in _NOWHERE.items():
            os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(**options)
    except Exception as error:  # of the plugin's own kinds
        extra = "tpu" if chip.platform == "tpu" else "cuda"
        told = " ".join(str(error).split())[:200]
        if "GpuTargetConfigProto" in told:
            raise InputError(
                f"config.plan.gpu_target={target}: the installed compiler does not know it all "
                f"({told}); leave out the fields that are newer"
            ) from None
        raise InputError(
            f"config.plan.topology={name}: cannot be described ({told}); a compiler for it comes "
            f"with `pip install -e '.[{extra}]'`, and the shape has to be one that it knows"
        ) from None
    return Topology(name, chip, tuple(found.devices))


def _gpus(nodes: int, chip: Chip, target: str) -> dict[str, Any]:
    if not target:
        raise InputError(
            "config.plan.gpu_target: missing; expected XLA's description of the GPU, a file of "
            "xla/backends/gpu/target_config/specs in its sources"
        )
    try:
        text = storage.path(target).read_text()
    except OSError as error:
        raise InputError(f"config.plan.gpu_target={target}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"config.plan.gpu_target={target}: expected a text of XLA's") from None
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    shape = f"1x{nodes}x{chip.node}"
    return dict(platform="cuda", topology_name="", topology=shape, target_config=text)
