"""One training step of BASE on 2 x 10 s of speech: ours against transformers and torchaudio.

Forward, backward and update (global clipping at 10, Adam with decoupled decay), float32, dropout
of 0.1 as released, LayerDrop off everywhere so that all do the same work, two threads each. The
implementations take turns, each in a process of its own, as its users run it, and alone: gigabytes
that wait for their turn slow down whoever has it. A turn counts as the median of its steps.
transformers has no pre-training head: it gets one, with our loss.

Where our time goes is asked of a step on one thread. Work that a thread hands to others is not in a
profile.

    python -m benchmarks.model_step [--rounds=3] [--steps=5]

Needs requirements-parity.txt. Prints seconds by implementation, the ratio of our time to the
faster peer's, where our time goes, and one JSON line.
"""

import argparse
import collections
import glob
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

THREADS, ROWS, SAMPLES, CLASSES = 2, 2, 160_000, 504
CLIP, RATE, DECAY, BETAS, EPSILON = 10.0, 5e-4, 0.01, (0.9, 0.98), 1e-6
GOAL = 0.8
REPOSITORY = pathlib.Path(__file__).parents[1]


def speech() -> np.ndarray:
    """(2, 160000) float32: the first ten seconds of two embedded utterances."""
    from hubert_jax.corpus.audio_files import read_waveform
    from hubert_jax.data.waveform import to_float

    rows = []
    for path in sorted((REPOSITORY / "examples/minilibri/dev-mini").rglob("*.opus")):
        waveform = read_waveform(path)
        if len(waveform) >= SAMPLES:
            rows.append(to_float(waveform[:SAMPLES]))
        if len(rows) == ROWS:
            return np.stack(rows)
    raise SystemExit("examples/minilibri/dev-mini: fewer than two utterances of ten seconds")


def labels(frames: int) -> np.ndarray:
    """(2, frames) int64 units; which ones is of no consequence."""
    return np.random.default_rng(0).integers(CLASSES, size=(ROWS, frames))


def ours() -> Callable[[], float]:
    """A function that takes one step and returns the loss."""
    from hubert_jax import host_memory

    host_memory.keep_freed_memory()  # as every job does
    import jax

    from hubert_jax.frames import num_frames
    from hubert_jax.model.architecture import Architecture, Execution, Head, Regularization
    from hubert_jax.model.hubert import HubertForPretraining
    from hubert_jax.model.kernels import choice
    from hubert_jax.networks.sharding_rules import SHARDING_RULES
    from hubert_jax.tasks import pretraining
    from hubert_jax.training import optimizer, sharding, state
    from hubert_jax.training.step import compile_steps, shape_of
    from hubert_jax.training.task import Task

    architecture, head = Architecture(), Head(codebook_sizes=(CLASSES,))
    regularization = Regularization(layer_drop=0.0)
    execution = Execution(scan_unroll=architecture.num_layers)
    kernels = choice.choose(execution, architecture, regularization)
    network = HubertForPretraining(architecture, head, kernels, regularization)
    settings = optimizer.OptimizerConfig(
        peak_learning_rate=RATE, beta1=BETAS[0], beta2=BETAS[1], epsilon=EPSILON,
        weight_decay=DECAY, clip_norm=CLIP,
    )  # fmt: skip
    mesh = sharding.make_mesh(sharding.MeshConfig())
    units = labels(num_frames(SAMPLES)).astype(np.int32)
    batch = sharding.to_global(mesh, {"waveform": speech(), "labels_0": units})
    task = Task(
        kind="pretraining",
        init=pretraining.init(architecture, head),
        loss=pretraining.loss_function(network, pretraining.LossConfig(mask_group_rows=ROWS)),
        optimizer=optimizer.build(settings, 1000),
        learning_rate=optimizer.learning_rate(settings, 1000),
        batch_shapes=(batch,),
        batches=lambda first_step: iter(()),
        facts={},
        sharding_rules=SHARDING_RULES,
    )
    abstract = state.abstract_state(task, mesh)
    current = state.create_state(task, abstract, 0)
    update = compile_steps(task, mesh, abstract, 0)[shape_of(batch)]

    def step() -> float:
        nonlocal current
        current, metrics = update(current, batch)
        jax.block_until_ready(current)
        return float(metrics["loss"])

    return step


def transformers_step() -> Callable[[], float]:
    """HubertModel with masks of its own, and our head and loss on top."""
    _import_oracles()
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_dropout=0.1, attention_dropout=0.1, feat_proj_dropout=0.1, activation_dropout=0.0,
        layerdrop=0.0, apply_spec_augment=False,
    )  # fmt: skip
    model = transformers.HubertModel(config).train()
    projection = torch.nn.Linear(768, 256)
    codes = torch.nn.Parameter(torch.rand(CLASSES, 256))
    parameters = [*model.parameters(), *projection.parameters(), codes]
    waveform = torch.from_numpy(speech())
    features = {}
    model.feature_extractor.register_forward_hook(
        lambda module, inputs, output: features.update(output=output)
    )
    frames = int(model._get_feat_extract_output_lengths(SAMPLES))
    targets = torch.from_numpy(labels(frames))
    from transformers.models.hubert.modeling_hubert import _compute_mask_indices

    def loss():
        mask = torch.from_numpy(_compute_mask_indices((ROWS, frames), 0.8, 10, min_masks=2))
        hidden = model(waveform, mask_time_indices=mask).last_hidden_state[mask]
        unit = torch.nn.functional.normalize
        cosine = unit(projection(hidden), dim=-1) @ unit(codes, dim=-1).T
        entropy = torch.nn.functional.cross_entropy(cosine / 0.1, targets[mask])
        return entropy + 10 * features["output"].pow(2).mean()

    return _torch_step(parameters, loss)


def torchaudio_step() -> Callable[[], float]:
    """hubert_pretrain_base with its own masks, and the loss of its recipe."""
    _import_oracles()
    import torch
    import torchaudio

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = torchaudio.models.hubert_pretrain_base(
        encoder_projection_dropout=0.1, encoder_attention_dropout=0.1,
        encoder_ff_interm_dropout=0.0, encoder_dropout=0.1, encoder_layer_drop=0.0,
        num_classes=CLASSES,
    ).train()  # fmt: skip
    waveform = torch.from_numpy(speech())
    targets = torch.from_numpy(labels((SAMPLES - 400) // 320 + 1))

    def loss():
        masked, _, penalty = model(waveform, targets)
        zeros = torch.zeros(len(masked), dtype=torch.long)
        return torch.nn.functional.cross_entropy(masked, zeros) + 10 * penalty

    return _torch_step(list(model.parameters()), loss)


def _import_oracles() -> None:
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from oracle_imports import without_compiled_libraries

    without_compiled_libraries()


def _torch_step(parameters: list, loss: Callable) -> Callable[[], float]:
    import torch

    optimizer = torch.optim.AdamW(
        parameters, lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY, fused=True
    )

    def step() -> float:
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return float(value)

    return step


IMPLEMENTATIONS = {"ours": ours, "transformers": transformers_step, "torchaudio": torchaudio_step}
PROFILE = "profile"


def work(name: str, steps: int) -> None:
    """A worker: prints one JSON line, seconds of each step, or what a step of ours consists of."""
    threads = 1 if name == PROFILE else THREADS
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    # What libraries print must not mix with the answer.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    step = ours() if name == PROFILE else IMPLEMENTATIONS[name]()
    for _ in range(2):  # the first compiles or allocates
        step()
    found = _profile(step) if name == PROFILE else [_seconds(step) for _ in range(steps)]
    print(json.dumps(found), file=answer, flush=True)


def _seconds(step: Callable) -> float:
    # A workspace is freed a moment after the step's results are there. A step that begins at once
    # gets another one, gigabytes from the system, for the first few times.
    time.sleep(0.2)
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


KINDS = (
    ("matrix products", r"^(ynn_fusion|dot)"),
    ("convolutions backward", r"^convolution-"),
    ("convolutions forward", r"^conv_general_dilated"),
    ("Fourier transforms", r"^fft"),
    ("transposes and copies", r"transpose|copy|concatenate|pad|slice"),
)


def _profile(step: Callable) -> dict[str, float]:
    """Seconds of one of our steps by kind of operation."""
    import jax

    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            step()
        (trace,) = glob.glob(f"{directory}/**/*.xplane.pb", recursive=True)
        profile = jax.profiler.ProfileData.from_file(trace)
    seconds = collections.Counter()
    for plane in profile.planes:
        for line in plane.lines:
            if "python" in line.name:
                continue
            for event in line.events:
                if re.match(r"^[a-z_-]+[.0-9]*$", event.name) and "Thunk" not in event.name:
                    kind = next((k for k, p in KINDS if re.search(p, event.name)), "elementwise")
                    seconds[kind] += event.duration_ns / 1e9
    return dict(seconds.most_common())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each implementation")
    parser.add_argument("--steps", type=int, default=5, help="steps of a turn")
    parser.add_argument("--worker", choices=(*IMPLEMENTATIONS, PROFILE), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.steps)
        return
    seconds: dict[str, list[float]] = {name: [] for name in IMPLEMENTATIONS}
    with tempfile.TemporaryDirectory() as compiled:
        for _ in range(arguments.rounds):
            for name in IMPLEMENTATIONS:
                steps = _turn(name, arguments.steps, compiled)
                print(f"{name:14}", " ".join(f"{value:.2f}" for value in steps), flush=True)
                seconds[name].append(statistics.median(steps))
        parts = _turn(PROFILE, 1, compiled)
    _report(seconds, parts)


def _turn(name: str, steps: int, compiled: str) -> Any:
    """What a worker found; programs are compiled in the first turn alone."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.model_step", f"--worker={name}", f"--steps={steps}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": str(THREADS),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": compiled,
        },
    )
    if done.returncode:
        raise SystemExit(f"{name}: its worker failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _report(seconds: dict[str, list[float]], parts: dict[str, float]) -> None:
    print(f"BASE, {ROWS} x {SAMPLES // 16_000} s, {THREADS} threads, seconds a step")
    print(f"{'':14}{'median':>8}{'fastest':>9}{'slowest':>9}")
    for name, values in seconds.items():
        print(f"{name:14}{statistics.median(values):8.2f}{min(values):9.2f}{max(values):9.2f}")
    peer = min((n for n in seconds if n != "ours"), key=lambda n: statistics.median(seconds[n]))
    ratio = statistics.median(seconds["ours"]) / statistics.median(seconds[peer])
    pairs = sorted(a / b for a, b in zip(seconds["ours"], seconds[peer], strict=True))
    print(
        f"ours / {peer}: {ratio:.3f} (rounds {pairs[0]:.3f} to {pairs[-1]:.3f}); "
        f"goal {GOAL} or less"
    )
    total = sum(parts.values())
    print(f"Where our time goes (seconds of a step on one thread, {total:.2f} in all)")
    for kind, value in parts.items():
        print(f"  {kind:24}{value:7.2f}{value / total:7.0%}")
    summary = {
        "benchmark": "model_step",
        "ratio": round(ratio, 4),
        "low": round(pairs[0], 4),
        "high": round(pairs[-1], 4),
        "goal": GOAL,
        "met": ratio <= GOAL,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
