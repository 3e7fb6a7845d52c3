"""Labelling by layer 6 of BASE as compiled for an accelerator that is not here.

    JAX_PLATFORMS=cpu python -m benchmarks.labelling_plan --topology=v5e:1x1x1
    JAX_PLATFORMS=cpu python -m benchmarks.labelling_plan --target=h100_sxm.txtpb

One program for one chip, in bfloat16: the network's lower half and the search for the nearest of
500 codewords, in float32, on batches of 768 frames. TPU needs the extra `tpu`, GPU the extra `cuda`
and a description of the GPU, which XLA's sources have under
xla/backends/gpu/target_config/specs. Nothing is run: work is counted from the shapes, bytes are
XLA's account, or where it gives none all that goes in and out of the instructions of the compiled
program, peaks are the vendors'. Layers are unrolled, since XLA counts a loop's body once.

Prints for each number of rows what a chip holds, and how many seconds of audio it could label in a
second if nothing but arithmetic, memory or the host's link took time; the least of them bounds it.
"""

import argparse
import math
import os
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from hubert_jax.frames import SAMPLE_RATE, num_samples
from hubert_jax.model.architecture import Architecture, Execution, Head
from hubert_jax.model.hubert import Hubert
from hubert_jax.model.kernels import choice
from hubert_jax.planning import flops
from hubert_jax.units import nearest

LAYER, CODEWORDS, FRAMES = 6, 500, 768
# (arithmetic in bfloat16, memory, link to the host), a second. v5e: Google Cloud's documentation;
# H100 SXM: NVIDIA's data sheet, dense.
PEAKS = {
    "TPU v5 lite": (197e12, 819e9, 16e9),
    "NVIDIA H100 80GB HBM3": (989e12, 3.35e12, 64e9),
}


BYTES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8}


def work(architecture: Architecture) -> float:
    """Floating-point operations of a row of FRAMES."""
    of_crop = flops.of_crop(architecture, Head(), FRAMES)
    network = of_crop.frontend + of_crop.projections + of_crop.layers
    return network + 2.0 * FRAMES * CODEWORDS * architecture.dim


def compiled(architecture: Architecture, platform: str, device: Any, rows: int) -> Any:
    """The program for batches of so many rows."""
    execution = Execution(dtype="bfloat16", platform=platform, scan_unroll=architecture.num_layers)
    model = Hubert(architecture, choice.choose(execution, architecture))
    codebook = nearest.Nearest(np.zeros((CODEWORDS, architecture.dim), np.float32))
    on_chip = SingleDeviceSharding(device)

    def labels(params: dict, waveform: jax.Array, samples: jax.Array, *arguments: jax.Array):
        states = model.apply({"params": params}, waveform, samples, collect=True)["layers"][-1]
        frames = states.astype(jnp.float32).reshape(-1, architecture.dim)
        return nearest._search()(frames, *arguments)

    def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_chip)

    audio = jax.ShapeDtypeStruct((rows, num_samples(FRAMES)), jnp.float32)
    params = jax.eval_shape(
        lambda key, audio: model.init(key, audio)["params"], jax.random.key(0), audio
    )
    counts = jax.ShapeDtypeStruct((rows,), jnp.int32)
    arguments = jax.tree.map(abstract, (params, audio, counts, *codebook._arguments))
    return jax.jit(labels).lower(*arguments).compile()


def traffic(program: Any) -> float:
    """Bytes that the program's instructions read and write, a loop's once."""
    cost = program.cost_analysis()
    if cost:
        return cost["bytes accessed"]
    entry = re.search(r"^ENTRY .*?^}", program.as_text(), re.DOTALL | re.MULTILINE)
    held, total = {}, 0.0
    instruction = r"^\s*(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)"
    for name, shape, kind, operands in re.findall(instruction, entry[0], re.MULTILINE):
        sizes = [
            math.prod(map(int, filter(None, dims.split(",")))) * BYTES[dtype]
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape)
        ]
        held[name] = sum(sizes)
        if kind not in ("parameter", "constant", "bitcast", "tuple", "get-tuple-element"):
            inputs = [] if kind == "while" else re.findall(r"%([\w.-]+)", operands)
            total += held[name] + sum(held[one] for one in inputs)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:1x1x1", help="of one TPU")
    parser.add_argument("--target", help="description of a GPU, instead")
    arguments = parser.parse_args()
    if arguments.target:
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="", topology="1x1x1",
            target_config=open(arguments.target).read(),
        )  # fmt: skip
    else:
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=arguments.topology, chips_per_host_bounds=(1, 1, 1)
        )
    device = topology.devices[0]
    arithmetic, memory, link = PEAKS[device.device_kind]
    # The position convolution alone takes half a minute to compile at full effort.
    jax.config.update("jax_optimization_level", "O1")
    architecture = Architecture(num_layers=LAYER)
    whole = work(Architecture())
    print(f"{device.device_kind}: {work(architecture) / whole:.0%} of a whole forward pass")
    for rows in (8, 32):
        started = time.monotonic()
        program = compiled(architecture, "gpu" if arguments.target else "tpu", device, rows)
        seconds = rows * num_samples(FRAMES) / SAMPLE_RATE
        account = program.memory_analysis()
        held = account.argument_size_in_bytes + account.temp_size_in_bytes
        operations, moved = rows * work(architecture) / seconds, traffic(program) / seconds
        bounds = {
            "arithmetic": arithmetic / operations,
            "memory": memory / moved,
            "the host's link": link / (4 * SAMPLE_RATE + 4 * 50),
        }
        figures = ", ".join(f"{what} {at:,.0f}" for what, at in bounds.items())
        print(
            f"{rows} rows of {FRAMES} frames: {held / 2**30:.2f} GiB; {operations / 1e9:.1f} GFLOP "
            f"and {moved / 1e6:.0f} MB a second of audio; seconds of audio a second by {figures}: "
            f"bound by {min(bounds, key=bounds.__getitem__)}; compiled in "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
