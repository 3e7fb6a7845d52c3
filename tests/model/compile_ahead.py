"""Compiles the network with each attention back-end for accelerators that are not here.

    JAX_PLATFORMS=cpu python -m tests.model.compile_ahead --platform=tpu --topology=v5e:2x2
    JAX_PLATFORMS=cpu python -m tests.model.compile_ahead --platform=gpu --target=h100.txtpb

For TPU the extra `tpu` must be installed (its compiler works without a TPU). For GPU the extra
`cuda`, and a description of the GPU: XLA's sources have them under
xla/backends/gpu/target_config/specs. Prints a line for every program: which back-end, whether its
kernel is in what was compiled, bytes of one device. Fails where a kernel is missing.
"""

import argparse
import dataclasses
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
from hubert_jax.model.platform import compiling_for
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding

from hubert_jax.model.architecture import HubertConfig
from hubert_jax.model.hubert import HubertForPretraining
from hubert_jax.model.transformer import attention_backend
from hubert_jax.training import optimizer, pretraining, sharding, state

BASE = HubertConfig(dtype="bfloat16")
LARGE = HubertConfig(
    frontend_norm="layer", normalize_waveform=True, frontend_gradient_scale=1.0, dim=1024,
    num_layers=24, ffn_dim=4096, num_heads=16, pre_norm=True, projection_dim=768, dropout=0.0,
    attention_dropout=0.0, input_dropout=0.0, layer_drop=0.0, dtype="bfloat16",
    rematerialize=True,
)  # fmt: skip
PROGRAMS = (("BASE, training", BASE, True), ("BASE, features", BASE, False),
            ("LARGE, training", LARGE, True))  # fmt: skip
# What the compiled program calls a back-end's kernel.
KERNELS = {"splash": "tpu_custom_call", "cudnn": "__cudnn$fmha"}


def compile_program(config: HubertConfig, training: bool, mesh: Mesh, platform: str, frames: int):
    """The compiled update, or the forward pass without dropout, one row of audio a device."""
    config = dataclasses.replace(config, codebooks=(504,))
    transform = optimizer.build(optimizer.OptimizerConfig(), 400_000)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    cut = NamedSharding(mesh, sharding.BATCH)
    waveform = jax.ShapeDtypeStruct((rows, config.num_samples(frames)), jnp.float32, sharding=cut)
    labels = jax.ShapeDtypeStruct((rows, frames), jnp.int32, sharding=cut)
    abstract = state.abstract_state(pretraining.init_pretraining(config), transform, mesh)
    with compiling_for(platform), jax.set_mesh(mesh):
        if training:
            # One row a device, so any number of devices divides into groups of one.
            settings = pretraining.LossConfig(mask_group_rows=1)
            loss = pretraining.pretraining_loss(config, settings)
            update = pretraining.train_step(loss, transform, 0)
            batch = {"waveform": waveform, "labels_0": labels}
            return update.lower(abstract, batch).compile()
        network = HubertForPretraining(config)
        forward = jax.jit(lambda params, audio: network.apply({"params": params}, audio)["logits"])
        return forward.lower(abstract.params, waveform).compile()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platform", choices=("tpu", "gpu"), required=True)
    parser.add_argument("--topology", default="v5e:2x2", help="of TPUs")
    parser.add_argument("--target", help="description of the GPU")
    parser.add_argument("--frames", type=int, default=768)
    arguments = parser.parse_args()
    if arguments.platform == "tpu":
        topology = topologies.get_topology_desc(platform="tpu", topology_name=arguments.topology)
    else:
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="", topology="1x1x8",
            target_config=open(arguments.target).read(),
        )  # fmt: skip
    # The position convolution alone takes half a minute to compile at full effort.
    jax.config.update("jax_optimization_level", "O1")
    devices = np.array(topology.devices).reshape(-1, 1, 1)
    mesh = Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    kind = f"{len(topology.devices)} x {topology.devices[0].device_kind}"
    for name, config, training in PROGRAMS:
        with compiling_for(arguments.platform):
            choice = attention_backend(config, deterministic=not training)
        started = time.monotonic()
        compiled = compile_program(config, training, mesh, arguments.platform, arguments.frames)
        memory = compiled.memory_analysis()
        held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        kernel = KERNELS.get(choice.backend)
        calls = compiled.as_text().count(kernel) if kernel else 0
        print(
            f"{kind}, {name}, {arguments.frames} frames a device: {choice}; "
            f"{calls} kernel calls; {held / 2**30:.2f} GiB a device; "
            f"compiled in {time.monotonic() - started:.0f} s",
            flush=True,
        )
        if kernel and not calls:
            raise SystemExit(f"{name}: {kernel} is not in the compiled program")


if __name__ == "__main__":
    main()
