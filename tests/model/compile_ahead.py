"""Compiles the network with each attention back-end for accelerators that are not here.

    JAX_PLATFORMS=cpu python -m tests.model.compile_ahead --platform=tpu --topology=v5e:2x2
    JAX_PLATFORMS=cpu python -m tests.model.compile_ahead --platform=gpu --target=h100.txtpb

For TPU the extra `tpu` must be installed (its compiler works without a TPU). For GPU the extra
`cuda`, and a description of the GPU: XLA's sources have them under
xla/backends/gpu/target_config/specs. Prints a line for every program: which back-end, whether its
kernel is in what was compiled, bytes of one device. Fails where a kernel is missing.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from hubert_jax.frames import num_samples
from hubert_jax.model.architecture import (
    NO_REGULARIZATION,
    Architecture,
    Execution,
    Head,
    Regularization,
)
from hubert_jax.model.hubert import HubertForPretraining
from hubert_jax.model.kernels import choice
from hubert_jax.networks.sharding_rules import SHARDING_RULES
from hubert_jax.planning import chips
from hubert_jax.tasks import pretraining
from hubert_jax.training import optimizer, sharding, step
from hubert_jax.training.state import abstract_state
from hubert_jax.training.task import Task

BASE = Architecture()
LARGE = Architecture(
    frontend_norm="layer", normalize_waveform=True, dim=1024, num_layers=24, ffn_dim=4096,
    num_heads=16, pre_norm=True,
)  # fmt: skip
# (name, architecture, regularization in training or None, rematerialize)
PROGRAMS = (
    ("BASE, training", BASE, Regularization(), "nothing"),
    ("BASE, features", BASE, None, "nothing"),
    ("LARGE, training", LARGE, NO_REGULARIZATION, "everything"),
)
# What the compiled program calls a back-end's kernel.
KERNELS = {
    "splash": "tpu_custom_call",
    "whole_rows": "tpu_custom_call",
    "cudnn": "__cudnn$fmha",
    "blocks": "__gpu$xla.gpu.triton",
}


def compile_program(network: HubertForPretraining, training: bool, mesh: Mesh, frames: int) -> Any:
    """The compiled update, or the forward pass without dropout, one row of audio a device."""
    schedule = optimizer.OptimizerConfig()
    rows = sharding.batch_shards(mesh)
    waveform = jax.ShapeDtypeStruct((rows, num_samples(frames)), jnp.float32)
    labels = jax.ShapeDtypeStruct((rows, frames), jnp.int32)
    task = Task(
        kind="pretraining",
        init=pretraining.init(network.architecture, network.head),
        # One row a device, so any number of devices divides into groups of one.
        loss=pretraining.loss_function(network, pretraining.LossConfig(mask_group_rows=1)),
        optimizer=optimizer.build(schedule, 400_000),
        learning_rate=optimizer.learning_rate(schedule, 400_000),
        batch_shapes=({"waveform": waveform, "labels_0": labels},),
        batches=lambda first_step: iter(()),
        facts={},
        sharding_rules=SHARDING_RULES,
    )
    state = abstract_state(task, mesh)
    with jax.set_mesh(mesh):
        if training:
            (update,) = step.compile_steps(task, mesh, state, seed=0).values()
            return update
        rows_on_mesh = NamedSharding(mesh, sharding.BATCH)
        audio = waveform.update(sharding=rows_on_mesh)
        forward = jax.jit(lambda params, audio: network.apply({"params": params}, audio)["logits"])
        return forward.lower(state.params, audio).compile()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platform", choices=("tpu", "gpu"), required=True)
    parser.add_argument("--topology", default="v5e:2x2", help="of TPUs")
    parser.add_argument("--target", help="description of the GPU")
    parser.add_argument("--frames", type=int, default=768)
    arguments = parser.parse_args()
    name = arguments.topology if arguments.platform == "tpu" else "h100:1"
    topology = chips.described(name, arguments.target or "")
    # The position convolution alone takes half a minute to compile at full effort.
    jax.config.update("jax_optimization_level", "O1")
    devices = np.array(topology.devices).reshape(-1, 1, 1)
    mesh = Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    kind = f"{len(topology.devices)} x {topology.devices[0].device_kind}"
    for name, architecture, regularization, rematerialize in PROGRAMS:
        execution = Execution(
            dtype="bfloat16", rematerialize=rematerialize, platform=arguments.platform
        )
        head = Head(codebook_sizes=(504,), projection_dim=256 if architecture is BASE else 768)
        regularized = regularization or NO_REGULARIZATION
        kernels = choice.choose(
            execution, architecture, regularized, sharding.attention_sharding(mesh)
        )
        network = HubertForPretraining(architecture, head, kernels, regularized)
        started = time.monotonic()
        compiled = compile_program(network, regularization is not None, mesh, arguments.frames)
        memory = compiled.memory_analysis()
        held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        kernel = KERNELS.get(kernels.attention_backend)
        calls = compiled.as_text().count(kernel) if kernel else 0
        print(
            f"{kind}, {name}, {arguments.frames} frames a device: {kernels.attention_backend} "
            f"({kernels.attention_reason}); "
            f"{calls} kernel calls; {held / 2**30:.2f} GiB a device; "
            f"compiled in {time.monotonic() - started:.0f} s",
            flush=True,
        )
        if kernel and not calls:
            raise SystemExit(f"{name}: {kernel} is not in the compiled program")


if __name__ == "__main__":
    main()
