"""How time and memory of a pre-training step grow with its rows and with their length.

    python -m benchmarks.scaling [--rounds=8]

The step that `train` compiles, of a network of four layers, 256 wide, behind a front-end of 128
channels, in float32 with dropout as released and LayerDrop off, so that all steps do the same work.
First 4, 8, 16 and 32 rows of 128 frames. Then always 4,096 frames, as 32 rows of 128 up to two rows
of 2,048, with attention and without, so that the difference is attention's: if a row's grows with
the square of its frames, the difference doubles from line to line. Its fraction of the step stands
beside that of its operations. At the end one layer's attention stands alone, in one row and in two.
A line through the sizes gives the part that they do not change, and the growth beyond it.

Programs take turns, a step each, and a first round does not count. Seconds are of the wall clock,
and of the process's CPU, in which other work on the machine does not count. Memory is what XLA says
of a program: temporary, and with its arguments. A ratio to linear growth is what a doubling
multiplies by, over two. JAX_COMPILATION_CACHE_DIR saves compiling again.
"""

import argparse
import dataclasses
import json
import os
import time
from typing import Any

import jax
import numpy as np

from hubert_jax import host_memory
from hubert_jax.frames import num_samples
from hubert_jax.model.architecture import Architecture, Execution, Head, Regularization
from hubert_jax.model.hubert import HubertForPretraining
from hubert_jax.model.kernels import choice
from hubert_jax.networks.sharding_rules import SHARDING_RULES
from hubert_jax.planning import flops
from hubert_jax.tasks import pretraining
from hubert_jax.training import optimizer, sharding, state
from hubert_jax.training.step import compile_steps, shape_of
from hubert_jax.training.task import Task

SEED, CLASSES, GOAL = 0, 100, 0.1
ARCHITECTURE = Architecture(
    conv_channels=(128,) * 7, dim=256, num_layers=4, ffn_dim=1024, num_heads=4
)
HEAD = Head(codebook_sizes=(CLASSES,))
BY_ROWS = [(rows, 128) for rows in (4, 8, 16, 32)]
BY_FRAMES = [(32, 128), (16, 256), (8, 512), (4, 1024), (2, 2048)]
Shape = tuple[int, int]  # rows, frames


def batch_of(shape: Shape) -> dict[str, np.ndarray]:
    """Noise and random units."""
    rows, frames = shape
    random = np.random.default_rng(SEED)
    waveform = random.standard_normal((rows, num_samples(frames)), dtype=np.float32)
    return {
        "waveform": 0.1 * waveform,
        "labels_0": random.integers(CLASSES, size=shape, dtype=np.int32),
    }


def _no_attention(query: jax.Array, key: jax.Array, value: jax.Array, *_: Any) -> jax.Array:
    return query + key + value  # so that their projections stay


def task_of(shapes: list[Shape], attends: bool) -> Task:
    """Pre-training on batches of these shapes, with or without attention."""
    regularization = Regularization(layer_drop=0.0)
    kernels = choice.choose(Execution(), ARCHITECTURE, regularization)
    if not attends:
        kernels = dataclasses.replace(kernels, attention=_no_attention)
    network = HubertForPretraining(ARCHITECTURE, HEAD, kernels, regularization)
    settings = optimizer.OptimizerConfig(peak_learning_rate=1e-4)
    return Task(
        kind="pretraining",
        init=pretraining.init(ARCHITECTURE, HEAD),
        loss=pretraining.loss_function(network, pretraining.LossConfig(mask_group_rows=1)),
        optimizer=optimizer.build(settings, 1000),
        learning_rate=optimizer.learning_rate(settings, 1000),
        batch_shapes=tuple(batch_of(shape) for shape in shapes),
        batches=lambda first_step: iter(()),
        facts={},
        sharding_rules=SHARDING_RULES,
    )


def measure(rounds: int) -> tuple[dict, dict]:
    """Seconds (wall, CPU) of every round, and bytes (temporary, arguments), by program.

    A program is (attends, rows, frames).
    """
    mesh = sharding.make_mesh(sharding.MeshConfig())
    everything = list(dict.fromkeys(BY_ROWS + BY_FRAMES))
    programs: dict[Any, Any] = {}
    for attends, shapes in ((True, everything), (False, BY_FRAMES)):
        task = task_of(shapes, attends)
        abstract = state.abstract_state(task, mesh)
        compiled = compile_steps(task, mesh, abstract, SEED)
        for shape in shapes:
            programs[attends, *shape] = compiled[shape_of(batch_of(shape))]
    batches = {shape: sharding.to_global(mesh, batch_of(shape)) for shape in everything}
    current = state.create_state(task, abstract, SEED)
    seconds: dict[Any, list] = {name: [] for name in programs}
    for number in range(rounds + 1):
        for name, program in programs.items():
            time.sleep(0.05)  # a workspace is freed a moment after the results are there
            started, cpu = time.perf_counter(), time.process_time()
            current, metrics = program(current, batches[name[1:]])
            jax.block_until_ready((current, metrics))
            if number:  # the first one takes memory from the system
                now = time.perf_counter() - started, time.process_time() - cpu
                seconds[name].append(now)
    memory = {}
    for name, program in programs.items():
        found = program.memory_analysis()
        memory[name] = found.temp_size_in_bytes, found.argument_size_in_bytes
    return seconds, memory


def attention_alone(rounds: int) -> dict[Shape, np.ndarray]:
    """CPU nanoseconds a pair of frames of one layer's attention with its gradient, by shape."""
    kernels = choice.choose(Execution(), ARCHITECTURE, Regularization())
    rate, key = Regularization().attention_dropout, jax.random.key(SEED)

    @jax.jit
    def gradient(key: jax.Array, *projected: jax.Array) -> Any:  # a known key has masks compiled in
        total = lambda *given: kernels.attention(*given, None, rate, key).sum()  # noqa: E731
        return jax.grad(total, (0, 1, 2))(*projected)

    heads = ARCHITECTURE.num_heads, ARCHITECTURE.head_dim
    found: dict[Shape, list] = {(2, 1024): [], (1, 2048): [], (2, 2048): []}
    projected = {shape: jax.random.normal(key, (*shape, *heads)) for shape in found}
    for number in range(rounds + 1):
        for (rows, frames), values in found.items():
            cpu = time.process_time()
            jax.block_until_ready(gradient(key, *(projected[rows, frames],) * 3))
            if number:
                values.append((time.process_time() - cpu) * 1e9 / rows / frames**2)
    return {shape: np.array(values) for shape, values in found.items()}


def growth(rounds: np.ndarray) -> np.ndarray:
    """(3, doublings), of (rounds, sizes): ratio of medians to linear growth, its quartiles."""
    median = np.median(rounds, axis=0)
    low, high = np.quantile(rounds[:, 1:] / rounds[:, :-1] / 2, [0.25, 0.75], axis=0)
    return np.stack([median[1:] / median[:-1] / 2, low, high])


def report(what: str, rounds: np.ndarray) -> str:
    """Prints what doublings multiply by; returns the JSON line of the one furthest from linear."""
    found = growth(rounds)
    cells = (f"{ratio:7.3f} ({low:.2f}-{high:.2f})" for ratio, low, high in found.T)
    print(f"  {what:24}" + "".join(cells))
    ratio, low, high = found[:, np.argmax(np.abs(found[0] - 1))]
    summary = {"benchmark": f"scaling: {what}", "ratio": round(float(ratio), 3)}
    summary |= {"low": round(float(low), 3), "high": round(float(high), 3)}
    return json.dumps(summary | {"goal": [1 - GOAL, 1 + GOAL], "met": bool(abs(ratio - 1) <= GOAL)})


def beyond_start(what: str, sizes: list[int], rounds: np.ndarray) -> str:
    """The same, without what a line through all sizes begins with; prints that line too."""
    middle = np.median(rounds, axis=0)
    # Weighted, so that relative distances are small.
    each, fixed = np.polyfit(sizes, middle, 1, w=1 / middle)
    off = np.max(np.abs((fixed + each * np.array(sizes)) / middle - 1))
    print(f"  a line: {fixed:.3f} + {each:.4f} for each, at most {off:.1%} off; without its start")
    return report(f"{what} beyond a start", rounds - fixed)


def describe(name: tuple, times: np.ndarray, memory: tuple[int, int]) -> str:
    """One program's line: median and quartiles of seconds, CPU, memory."""
    attends, rows, frames = name
    middle, low, high = np.quantile(times[:, 0], [0.5, 0.25, 0.75])
    return (
        f"  {rows:2} x {frames:4}{'' if attends else ' without':8}{middle:9.3f}"
        f" ({low:.3f}-{high:.3f}){np.median(times[:, 1]):9.3f}{memory[0] / 1e6:9.1f}"
        f"{sum(memory) / 1e6:9.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8, help="steps of each program")
    rounds = parser.parse_args().rounds
    host_memory.keep_freed_memory()  # as every job does
    seconds, memory = measure(rounds)
    times = {name: np.array(values) for name, values in seconds.items()}

    def of(attends: bool, shapes: list[Shape], kind: int) -> np.ndarray:
        return np.stack([times[attends, *shape][:, kind] for shape in shapes], axis=1)

    def bytes_of(attends: bool, shapes: list[Shape], arguments: bool = False) -> np.ndarray:
        found = [memory[attends, *shape] for shape in shapes]
        return np.array([[sum(each) if arguments else each[0] for each in found]], float)

    print(
        f"{os.cpu_count()} cores, {rounds} rounds; seconds (quartiles), of CPU, MB temporary, all"
    )
    for name in times:
        print(describe(name, times[name], memory[name]))
    print("rows 4 -> 8 -> 16 -> 32 of 128 frames: ratios to linear growth (quartiles)")
    lines = [
        report("rows, seconds", of(True, BY_ROWS, 0)),
        report("rows, CPU seconds", of(True, BY_ROWS, 1)),
        report("rows, temporary memory", bytes_of(True, BY_ROWS)),
        report("rows, all memory", bytes_of(True, BY_ROWS, True)),
    ]
    rows = [rows for rows, _ in BY_ROWS]
    lines.append(beyond_start("rows, CPU seconds", rows, of(True, BY_ROWS, 1)))
    lines.append(beyond_start("rows, temporary memory", rows, bytes_of(True, BY_ROWS) / 1e6))
    print("frames 128 -> ... -> 2,048, attention's: ratios to growth with a row's square")
    frames = [frames for _, frames in BY_FRAMES]
    own = [of(True, BY_FRAMES, kind) - of(False, BY_FRAMES, kind) for kind in range(2)]
    own_bytes = bytes_of(True, BY_FRAMES) - bytes_of(False, BY_FRAMES)
    lines += [
        report("attention, seconds", own[0]),
        report("attention, CPU seconds", own[1]),
        report("attention, memory", own_bytes),
        beyond_start("attention, CPU seconds", frames, own[1]),
        beyond_start("attention, memory", frames, own_bytes / 1e6),
    ]
    print("attention's fraction of a step: by operations, seconds, CPU seconds")
    for shape in BY_FRAMES:
        step = flops.of_crop(ARCHITECTURE, HEAD, shape[1]).step
        products = 3 * 4 * shape[1] ** 2 * ARCHITECTURE.dim * ARCHITECTURE.num_layers
        whole, rest = (np.median(times[attends, *shape], axis=0) for attends in (True, False))
        wall, cpu = 1 - rest / whole
        print(f"  {shape[1]:5} frames{products / step:9.1%}{wall:9.1%}{cpu:9.1%}")
    print("attention alone with its gradient, CPU ns a pair of frames: median, lowest, highest")
    for (number, length), values in attention_alone(rounds).items():
        found = f"{np.median(values):9.1f}{values.min():9.1f}{values.max():9.1f}"
        print(f"  {number} x {length}{found}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
