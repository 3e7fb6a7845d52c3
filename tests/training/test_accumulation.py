"""A step in micro-batches is the step of one batch."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from splits import CLUSTERS, TINY_BASE, TINY_LARGE, random_parameters

from hubert_jax import config as config_lib
from hubert_jax import finetune, train
from hubert_jax.errors import InputError
from hubert_jax.frames import num_samples
from hubert_jax.model.architecture import Architecture, Execution, Head, Regularization
from hubert_jax.model.hubert import HubertForCTC, HubertForPretraining
from hubert_jax.model.kernels import choice
from hubert_jax.networks.sharding_rules import SHARDING_RULES
from hubert_jax.tasks import ctc, pretraining
from hubert_jax.training import sharding, step
from hubert_jax.training.fit import LoopConfig, fit
from hubert_jax.training.sharding import MeshConfig
from hubert_jax.training.state import TrainState, abstract_state
from hubert_jax.training.task import AdditiveLoss, Task

ROWS, FRAMES, CHARACTERS = 16, 48, 29
NO_DROPOUT = dict(dropout=0.0, attention_dropout=0.0, input_dropout=0.0, layer_drop=0.0)
# A step in which both kinds of frames count, and groups that micro-batches cut apart.
LOSS = pretraining.LossConfig(alpha=(0.7,), mask_group_rows=4)
SPEECH_MASKS = ctc.CTCConfig(channel_mask_span=4)


def _batch(kind: str) -> dict[str, np.ndarray]:
    """Noise; the rows of `ctc` differ in length, one has no transcript and one is too short."""
    random = np.random.default_rng(0)
    batch = {"waveform": random.normal(size=(ROWS, num_samples(FRAMES))).astype(np.float32)}
    if kind == "pretraining":
        return batch | {"labels_0": random.integers(CLUSTERS, size=(ROWS, FRAMES), dtype=np.int32)}
    label_lengths = random.integers(3, 10, ROWS, dtype=np.int32)
    frames = random.integers(24, FRAMES + 1, ROWS, dtype=np.int32)
    label_lengths[5], frames[2] = 0, 3
    labels = random.integers(1, CHARACTERS, (ROWS, 12), dtype=np.int32)
    lengths = {"num_samples": num_samples(frames).astype(np.int32), "label_lengths": label_lengths}
    return batch | {"labels": labels, **lengths}


def _task(kind: str, model: dict) -> Task:
    architecture = Architecture(**model["architecture"])
    regularization = Regularization(**{**model["regularization"], **NO_DROPOUT})
    kernels = choice.choose(Execution(), architecture, regularization)
    if kind == "pretraining":
        head = Head(**model["head"])
        network = HubertForPretraining(architecture, head, kernels, regularization)
        params = random_parameters(architecture, head)
        loss = pretraining.loss_function(network, LOSS)
    else:
        network = HubertForCTC(architecture, CHARACTERS, kernels, regularization)
        params = random_parameters(architecture, vocabulary_size=CHARACTERS)
        loss = ctc.loss_function(network, SPEECH_MASKS, freeze_steps=0, train_frontend=True)
    return Task(
        kind=kind,
        init=lambda key: params,
        loss=loss,
        optimizer=optax.sgd(0.1, momentum=0.9),  # after a step its state is the gradient
        learning_rate=lambda step: 0.1,
        batch_shapes=(_batch(kind),),
        batches=lambda first_step: iter(()),
        facts={"rows": {str(FRAMES): ROWS}},
        sharding_rules=SHARDING_RULES,
    )


def _mesh(devices: int = 1):
    return sharding.make_mesh(MeshConfig(), jax.devices()[:devices])


def _compile(task: Task, mesh, *counts: int):
    return step.compile_steps(task, mesh, abstract_state(task, mesh), 3, counts)


def _step(task: Task, mesh, count: int) -> tuple:
    """The program, and the parameters after a step, its gradient and its metrics."""
    (update,) = _compile(task, mesh, count).values()
    params = task.init(jax.random.key(0))
    state = TrainState(jnp.zeros((), jnp.int32), params, task.optimizer.init(params))
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(task, mesh))
    batch = sharding.to_global(mesh, task.batch_shapes[0])
    state, metrics = update(jax.device_put(state, where), batch)
    return update, state.params, state.opt_state[0].trace, metrics


def _assert_equal(found: tuple, expected: tuple) -> None:
    for ours, theirs in zip(found[1:3], expected[1:3], strict=True):
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
        for mine, its in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-5 * largest)
    assert found[3].keys() == expected[3].keys()
    for name, value in found[3].items():
        np.testing.assert_allclose(value, expected[3][name], rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("model", [TINY_BASE, TINY_LARGE], ids=["base", "large"])
@pytest.mark.parametrize("kind", ["pretraining", "ctc"])
def test_micro_batches_are_one_batch(kind, model):
    task = _task(kind, model)
    whole = _step(task, _mesh(), 1)
    if kind == "pretraining":
        assert 0 < whole[3]["masked_frames"] < ROWS * FRAMES and whole[3]["feature_penalty"] > 0
    else:
        assert whole[3]["infeasible_fraction"] == pytest.approx(1 / (ROWS - 1))
    _assert_equal(_step(task, _mesh(), 4), whole)
    if (kind, model) == ("pretraining", TINY_LARGE):
        cut = _step(task, _mesh(8), 2)
        _assert_equal(cut, whole)
        # But for sums and the position convolution's FFT, which XLA does not divide, nothing moves.
        text = cut[0].as_text()
        moved = re.findall(r"= (\S+) (?:all-to-all|collective-permute|all-gather)", text)
        assert "while" in text and "all-reduce" in text
        assert all(re.match(rf"(f32|c64)\[{ROWS // 2},16,", array) for array in moved), moved


def test_masks_are_the_batch_s_and_dropout_is_a_micro_batch_s_own():
    class Network:
        head = Head(codebook_sizes=(CLUSTERS,))

        def apply(self, variables, waveform, mask, deterministic, rngs):
            keys = jax.random.key_data(rngs["dropout"])
            jax.debug.callback(lambda *seen: calls.append(seen), waveform[:, 0], mask, keys)
            logits = jnp.zeros((*mask.shape, CLUSTERS)) + variables["params"]["bias"]
            return {"logits": [logits], "features": logits}

    task = dataclasses.replace(
        _task("pretraining", TINY_BASE),
        init=lambda key: {"bias": jnp.zeros(CLUSTERS)},
        loss=pretraining.loss_function(Network(), LOSS),
        sharding_rules=(("bias", PartitionSpec()),),
    )
    masks = []
    for count in (1, 2, 4, 16):
        calls = []
        _step(task, _mesh(), count)
        jax.effects_barrier()
        assert len({tuple(np.asarray(keys)) for _, _, keys in calls}) == len(calls) == count
        found = {
            float(row): np.asarray(mask)
            for rows, mask, _ in calls
            for row, mask in zip(rows, mask, strict=True)
        }
        masks.append([found[row] for row in task.batch_shapes[0]["waveform"][:, 0].tolist()])
    for mask in masks[1:]:
        np.testing.assert_array_equal(mask, masks[0])
    # Trimmed to the same count in the batch's groups of four rows, not in a micro-batch's.
    counts = np.sum(masks[0], axis=1).reshape(-1, LOSS.mask_group_rows)
    assert (counts == counts[:, :1]).all() and len(set(counts[:, 0])) > 1


def _toy(*shapes: tuple[int, int]) -> Task:
    """Rows times a matrix; most of the memory is what the gradient needs of them."""

    def part(params, batch, key, step):
        hidden = jnp.tanh(batch["waveform"][..., None] * params["scale"])
        return jnp.sum(hidden) / batch["rows"], {}

    return Task(
        kind="toy",
        init=lambda key: {"scale": jnp.ones(256)},
        loss=AdditiveLoss(
            lambda batch, key: {**batch, "rows": jnp.array(batch["waveform"].size)}, part
        ),
        optimizer=optax.sgd(0.1),
        learning_rate=lambda step: 0.1,
        batch_shapes=tuple({"waveform": jax.ShapeDtypeStruct(s, jnp.float32)} for s in shapes),
        batches=lambda first_step: iter(()),
        facts={"rows": {str(shape[1]): shape[0] for shape in shapes}},
        sharding_rules=(("scale", PartitionSpec()),),
    )


def test_the_fewest_micro_batches_that_fit_are_taken(monkeypatch, capsys):
    task, mesh = _toy((24, 64), (12, 999)), _mesh(2)
    counts = task.micro_batch_counts(0, 2)
    assert counts == (1, 2, 3, 6)
    device = type(jax.devices()[0])

    def taken(limit: int | None) -> tuple:
        monkeypatch.setattr(device, "memory_stats", lambda self: limit and {"bytes_limit": limit})
        return _compile(task, mesh, *counts), capsys.readouterr().out

    def held(count: int) -> int:
        found = [program.memory_analysis() for program in _compile(task, mesh, count).values()]
        return max(f.argument_size_in_bytes + f.temp_size_in_bytes for f in found)

    one, two, three = map(held, (1, 2, 3))
    assert three < 0.8 * two < 0.6 * one
    assert taken(None)[1] == "1 micro-batch: the devices do not say how much memory they have\n"
    steps, line = taken(2 * one)
    assert line.startswith("1 micro-batch(es) a step: 0.0 of 0.0 GiB") and len(steps) == 2
    assert taken(int(1.3 * two))[1].startswith("2 micro-batch(es)")
    assert taken(int(1.3 * three))[1].startswith("3 micro-batch(es)")
    with pytest.raises(InputError, match="=0: 6 micro-batches, the most .* do not fit .* GiB"):
        taken(1000)


def test_a_bucket_is_cut_into_more_parts_where_these_do_not_divide_it(monkeypatch):
    """Of BASE's fine-tuning on eight devices, in proportion: no number divides all rows."""
    task, mesh = _toy((14, 704), (10, 1792)), _mesh(2)
    counts = task.micro_batch_counts(0, 2)
    assert counts == (1, 5)
    whole, cut = (_compile(task, mesh, count) for count in counts)
    held = {shape: whole[shape].memory_analysis().temp_size_in_bytes for shape in whole}
    for shape, program in cut.items():
        parts = 7 if shape[0] == 14 else 5
        assert f"[{parts}]" in program.as_text()
        assert program.memory_analysis().temp_size_in_bytes < 0.5 * held[shape]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (3, "bucket 48 have 16 rows on 2 device.* multiple of 6; use one of 1, 2, 4, 8, or"),
        (16, "bucket 48 have 16 rows on 2 device.* multiple of 32; use one of 1, 2, 4, 8, or"),
        (-1, "expected 0 or more"),
    ],
)
def test_batches_that_cannot_be_cut_are_refused(tmp_path, wanted, message):
    with pytest.raises(InputError, match=f"^config.micro_batches={wanted}: .*{message}"):
        fit(_toy((16, 48)), LoopConfig(1), _mesh(2), tmp_path, 0, micro_batches=wanted)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_does_not_add_up_is_not_cut():
    task = dataclasses.replace(_toy((16, 48)), loss=lambda *arguments: None)
    assert task.micro_batch_counts(0, 2) == task.micro_batch_counts(1, 2) == (1,)
    with pytest.raises(InputError, match="micro_batches=2: expected 1 for toy"):
        task.micro_batch_counts(2, 2)


@pytest.mark.parametrize("job", [train, finetune])
def test_both_jobs_cut_their_batches_and_fingerprints_do_not_say_so(
    job, speech_split, speech_labels, tmp_path
):
    values = dict(workdir=str(tmp_path), audio=str(speech_split), loop=dict(steps=1))
    values |= dict(frames_per_step=4096, architecture=TINY_BASE["architecture"])
    if job is train:
        schema = train.TrainConfig
        values |= dict(labels=(str(speech_labels),), head=TINY_BASE["head"])
        values |= dict(loss=dict(mask_group_rows=8))
    else:
        schema = finetune.FinetuneConfig
        values |= dict(init_from="", padded_frames=(384,))
    one, many = (config_lib.build(schema, {**values, "micro_batches": n}) for n in (1, 1000))
    assert config_lib.decisive(one, complete=True) == config_lib.decisive(many, complete=True)
    with pytest.raises(InputError, match="config.micro_batches=1000: the batches of bucket"):
        job.run(many)
    assert not (tmp_path / job.__name__.rpartition(".")[2] / "checkpoints").exists()
