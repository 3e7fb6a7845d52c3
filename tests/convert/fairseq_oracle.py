"""Compares the network, its loss and every gradient with fairseq's own HuBERT.

Not one of the tests: fairseq 0.12.2 does not install under the Pythons that are supported here.
Its source distribution, unpacked and not built, runs beside what `requirements-parity.txt` brings
and, installed with `--no-deps` by a pip older than 24.1, these: antlr4-python3-runtime==4.8
bitarray cffi colorama cython hydra-core==1.0.7 lxml omegaconf==2.0.6 portalocker regex sacrebleu
tabulate.

  python -m tests.convert.fairseq_oracle --fairseq=DIR [--csv=FILE]

Prints a table of differences and fails where one is larger than 1e-4.
"""

import argparse
import csv
import dataclasses
import importlib.metadata
import pathlib
import platform
import sys
import tempfile

import jax
import numpy as np
import torch
from flax import traverse_util

from hubert_jax.convert import fairseq as format_of_fairseq
from hubert_jax.convert.state_dicts import from_state_dict, to_state_dict
from hubert_jax.data.waveform import normalize, to_float
from hubert_jax.frames import num_frames, num_samples
from hubert_jax.model.architecture import NO_REGULARIZATION, Execution
from hubert_jax.model.hubert import Hubert, HubertForCTC, HubertForPretraining
from hubert_jax.model.kernels import choice
from hubert_jax.model.masking import span_mask
from hubert_jax.tasks import pretraining
from hubert_jax.vocabulary import LIBRISPEECH
from tests.convert.fairseq_network import SPECIALS, build, import_fairseq, run_config
from tests.oracles import (
    BASE_LIKE,
    LARGE_LIKE,
    Described,
    gradient_differences,
    largest_difference,
    read_speech,
    relative_difference,
)

TOLERANCE = 1e-4
SEED = 6
# The released one, so that what the small networks leave open is seen here too.
BASE = Described()
NETWORKS = {"BASE-like": BASE_LIKE, "LARGE-like": LARGE_LIKE, "BASE": BASE}


def arrays(tensors) -> dict[str, np.ndarray]:
    """torch's tensors as arrays."""
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def nothing_random(config: Described) -> Described:
    """Without dropout and LayerDrop."""
    scale = config.regularization.frontend_gradient_scale
    still = dataclasses.replace(NO_REGULARIZATION, frontend_gradient_scale=scale)
    return dataclasses.replace(config, regularization=still)


def prepared(config: Described) -> list[np.ndarray]:
    """Real speech, float32, as the network reads it."""
    waveforms = [to_float(samples) for samples in read_speech()]
    if config.architecture.normalize_waveform:
        waveforms = [normalize(waveform) for waveform in waveforms]
    return waveforms


def compare_hidden_states(model, params, config: Described):
    """Every utterance alone: the input of block 1, every block's output, the final output.

    fairseq's padded batches are left out: with GroupNorm they give other features than the
    utterance alone, and a row has a frame too many where its last one is padded in part.
    """
    seen = []
    blocks = model.encoder.layers
    hooks = [blocks[0].register_forward_pre_hook(lambda block, given: seen.append(given[0]))]
    hooks += [
        block.register_forward_hook(lambda block, x, y: seen.append(y[0])) for block in blocks
    ]
    network = Hubert(config.architecture, choice.choose(Execution(), config.architecture))
    apply = jax.jit(lambda params, x: network.apply({"params": params}, x, collect=True))
    model.eval()
    differences = []
    for waveform in prepared(config):
        seen.clear()
        with torch.no_grad():
            last, _ = model.extract_features(torch.from_numpy(waveform)[None])
        ours = apply(params["hubert"], waveform[None])
        frames = num_frames(len(waveform))
        # (T, B, C), padded to an even number of frames.
        theirs = [state[:frames, 0].numpy() for state in seen] + [last[0].numpy()]
        ours = [*ours["layers"][:, 0], ours["output"][0]]
        differences += [largest_difference(*pair) for pair in zip(ours, theirs, strict=True)]
    for hook in hooks:
        hook.remove()
    yield "hidden states, largest absolute", max(differences)


def compare_loss(fairseq, task, model, params, config: Described, alpha: float):
    """Logits, the parts of the loss, its statistics and all gradients, with one mask for both."""
    random = np.random.default_rng(SEED)
    frames = min(num_frames(len(waveform)) for waveform in prepared(config))
    waveform = np.stack([w[: num_samples(frames)] for w in prepared(config)])
    rows = len(waveform)
    labels = [
        random.integers(SPECIALS, classes, size=(rows, frames), dtype=np.int32)
        for classes in config.head.codebook_sizes
    ]
    mask = np.array(span_mask(jax.random.key(SEED), rows, frames, 0.8, 10, rows))

    fairseq.hubert.compute_mask_indices = lambda *args, **more: mask
    # fairseq divides by all frames that have a weight; as weights of a mean they are ours.
    masked, unmasked = mask.sum(), (~mask).sum()
    weighted = masked * (alpha > 0) + unmasked * (alpha < 1)
    scale = float(weighted / (alpha * masked + (1 - alpha) * unmasked))
    criterion = fairseq.criterion(task, alpha * scale, (1 - alpha) * scale, loss_weights=[10.0])
    sample = {
        "id": torch.arange(rows),
        "net_input": {
            "source": torch.from_numpy(waveform),
            "padding_mask": torch.zeros(waveform.shape, dtype=torch.bool),
        },
        "target_list": [torch.from_numpy(label).long() for label in labels],
    }
    model.train()
    model.zero_grad()
    outputs = []
    hook = model.register_forward_hook(lambda model, given, output: outputs.append(output))
    their_sum, size, logged = criterion(model, sample)
    hook.remove()
    (their_sum / size).backward()

    kernels = choice.choose(Execution(), config.architecture)
    network = HubertForPretraining(config.architecture, config.head, kernels, config.regularization)
    loss = pretraining.loss_function(network, pretraining.LossConfig(alpha=(alpha,)))
    given = {"waveform": waveform} | {f"labels_{i}": label for i, label in enumerate(labels)}

    @jax.jit
    def compute(params):
        value, gradients = jax.value_and_grad(loss, has_aux=True)(
            params, given, jax.random.key(0), 0
        )
        logits = network.apply({"params": params}, waveform, mask)["logits"]
        return *value, gradients, logits

    drawn, pretraining.span_mask = pretraining.span_mask, lambda *args: mask
    our_loss, metrics, gradients, logits = compute(params)
    pretraining.span_mask = drawn

    for side, chosen in (("m", mask), ("u", ~mask)):
        part = {"m": "masked", "u": "unmasked"}[side]
        pairs = zip(logits, outputs[0][f"logit_{side}_list"], labels, strict=True)
        difference = 0.0
        for our_logits, positive_first, label in pairs:
            # The label's logit comes first; in its own place stands minus infinity.
            theirs = positive_first.detach().numpy()
            places = np.arange(theirs.shape[1] - 1) == label[chosen][:, None]
            theirs = np.where(places, theirs[:, :1], theirs[:, 1:])
            absolute = largest_difference(np.asarray(our_logits)[chosen], theirs)
            difference = max(difference, absolute / np.abs(theirs).max())
        yield f"{part} logits, relative to the largest", difference
        summed = sum(logged[f"loss_{side}_{i}"] for i in range(len(labels)))
        theirs = summed / logged[f"count_{side}_0"]
        yield (
            f"{part} cross-entropy, relative",
            relative_difference(metrics[f"{part}_loss"], theirs),
        )
        correct = round(float(metrics[f"{part}_accuracy"]) * chosen.sum() * len(labels))
        yield (
            f"{part} frames and correct ones ({chosen.sum()}, {correct}), difference of counts",
            abs(chosen.sum() - logged[f"count_{side}_0"])
            + abs(correct - sum(logged[f"correct_{side}_{i}"] for i in range(len(labels)))),
        )
    penalty = logged["loss_features_pen"] / size / 10.0
    yield "feature penalty, relative", relative_difference(metrics["feature_penalty"], penalty)
    yield "loss, relative", relative_difference(our_loss, their_sum.item() / size)
    their_gradients = from_state_dict(
        arrays({name: parameter.grad for name, parameter in model.named_parameters()}),
        config.architecture,
        config.head,
        "fairseq",
        "fairseq's gradients",
    )
    differences = gradient_differences(
        to_state_dict(gradients, config.architecture, config.head, "fairseq"),
        to_state_dict(their_gradients, config.architecture, config.head, "fairseq"),
    )
    worst = max(differences, key=differences.get)
    yield f"gradients of {len(differences)} tensors, relative; worst {worst}", differences[worst]


def compare_checkpoints(fairseq, built, params, config: Described, directory):
    """A checkpoint that fairseq's trainer saves, read here; written here, loaded by fairseq."""
    task, described, model = built
    criterion = fairseq.criterion(task, 1.0, 0.0, loss_weights=[10.0])
    run = run_config(fairseq, task, described)
    trainer = fairseq.trainer.Trainer(run, task, model, criterion)
    trainer.consolidate_optimizer()
    trainer.save_checkpoint(str(directory / "theirs.pt"), {"train_iterator": {"epoch": 1}})
    network = format_of_fairseq.read(directory / "theirs.pt")
    assert network.units.offset == SPECIALS
    assert Described(network.architecture, network.head, network.regularization) == config
    yield (
        "tensors that differ: saved by fairseq's trainer, read here",
        differing(flattened(params), network.flat),
    )
    format_of_fairseq.write(directory / "ours.pt", network)
    (loaded,), _, _ = fairseq.checkpoint_utils.load_model_ensemble_and_task(
        [str(directory / "ours.pt")]
    )
    yield (
        "tensors that differ: written here, loaded by fairseq",
        differing(arrays(model.state_dict()), arrays(loaded.state_dict())),
    )
    waveform = torch.from_numpy(prepared(config)[0])[None]
    with torch.no_grad():
        features = [m.eval().extract_features(waveform)[0].numpy() for m in (model, loaded)]
    yield "features of that network, largest absolute", largest_difference(*features[::-1])

    random = np.random.default_rng(SEED)
    shape = (config.architecture.dim, LIBRISPEECH.size)
    head = {
        "kernel": random.normal(size=shape).astype(np.float32),
        "bias": random.normal(size=LIBRISPEECH.size).astype(np.float32),
    }
    ctc = {**network.params, "ctc_head": head}
    tuned = config.network(ctc, LIBRISPEECH, network.units)
    format_of_fairseq.write(directory / "tuned.pt", tuned)
    (loaded,), _, _ = fairseq.checkpoint_utils.load_model_ensemble_and_task(
        [str(directory / "tuned.pt")]
    )
    with torch.no_grad():
        output = loaded.eval()(source=waveform, padding_mask=torch.zeros(waveform.shape).bool())
    kernels = choice.choose(Execution(), config.architecture)
    apply = jax.jit(HubertForCTC(config.architecture, LIBRISPEECH.size, kernels).apply)
    ours = apply({"params": {"hubert": ctc["hubert"], "ctc_head": head}}, waveform.numpy())
    theirs = output["encoder_out"][: ours.shape[1], 0].numpy()
    difference = largest_difference(ours[0], theirs) / np.abs(theirs).max()
    yield "CTC logits of a network written here, relative to the largest", difference


def flattened(params) -> dict[str, np.ndarray]:
    """Parameters by path."""
    return traverse_util.flatten_dict(params, sep="/")


def differing(expected, found) -> int:
    """How many tensors differ in any bit."""
    assert set(expected) == set(found)
    return sum(not np.array_equal(expected[name], found[name]) for name in expected)


def compare_masks(fairseq):
    """Share of masked frames over many draws, in standard errors, and its spread."""
    rows, frames, draws = 4, 781, 500
    np.random.seed(SEED)
    padding = torch.zeros((rows, frames), dtype=torch.bool)
    theirs = np.array(
        [
            fairseq.compute_mask_indices(
                (rows, frames), padding, 0.8, 10, "static", 0.0, min_masks=2
            ).mean()
            for _ in range(draws)
        ]
    )
    keys = jax.random.split(jax.random.key(SEED), draws)
    drawn = jax.jit(jax.vmap(lambda key: span_mask(key, rows, frames, 0.8, 10, rows)))(keys)
    ours = np.asarray(drawn).mean(axis=(1, 2))
    error = np.sqrt((ours.var() + theirs.var()) / draws)
    what = f"{draws} batches of {rows} x {frames} frames"
    return [
        f"masked share, {what}: {ours.mean():.4f} ours, {theirs.mean():.4f} fairseq's "
        f"({abs(ours.mean() - theirs.mean()) / error:.1f} standard errors)",
        f"its standard deviation: {ours.std():.4f} ours, {theirs.std():.4f} fairseq's",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fairseq", required=True, type=pathlib.Path, help="unpacked sources")
    parser.add_argument("--csv", type=pathlib.Path, help="also written here")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    fairseq = import_fairseq(options.fairseq)
    rows = []
    for network, config in NETWORKS.items():
        config = nothing_random(config)
        with tempfile.TemporaryDirectory() as directory:
            task, _, model = built = build(fairseq, config, pathlib.Path(directory), SEED)
            params = from_state_dict(
                arrays(model.state_dict()), config.architecture, config.head, "fairseq", "fairseq's"
            )
            found = [("", *row) for row in compare_hidden_states(model, params, config)]
            for alpha in (1.0, 0.5):
                compared = compare_loss(fairseq, task, model, params, config, alpha)
                found += [(f"{alpha:g}", *row) for row in compared]
            compared = compare_checkpoints(fairseq, built, params, config, pathlib.Path(directory))
            found += [("", *row) for row in compared]
        for alpha, what, difference in found:
            rows.append((network, alpha, what, f"{difference:.1e}"))
            print(f"{network:<10}  {alpha:<5}  {difference:8.1e}  {what}", flush=True)
    print(*compare_masks(fairseq), sep="\n")
    versions = {
        name: importlib.metadata.version(name) for name in ("torch", "jax", "flax", "numpy")
    }
    versions = {"python": platform.python_version(), "fairseq": fairseq.version} | versions
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            csv.writer(file).writerows([("network", "alpha", "what", "difference"), *rows])
    return int(any(float(difference) > TOLERANCE for *_, difference in rows))


if __name__ == "__main__":
    sys.exit(main())
