"""A finished run of two iterations and two recognisers, as its jobs leave it."""

import pathlib

import numpy as np
import pytest
import splits
from results import finish

ALIGNMENTS = "<u1> 0.0 2.5 SIL\n<u1> 2.5 4.5 AA1\n<u1> 4.5 5.0 S\n"


@pytest.fixture(scope="session")
def speech(tmp_path_factory) -> dict[str, str]:
    """A split of one utterance of five seconds, its alignments, and labels at 50 Hz."""
    from hubert_jax import frames
    from hubert_jax.data.records import Utterance
    from hubert_jax.units.kmeans import Codebook

    root = tmp_path_factory.mktemp("speech")
    (root / "dev").mkdir()
    audio = np.random.default_rng(0).integers(-999, 999, 5 * 16_000).astype(np.int16)
    splits.write_split(root / "dev", "dev", [Utterance("<u1>", audio, "s", "IT'S <HERE>")], [], 1)
    units = np.arange(frames.num_frames(len(audio), 50)) // 100
    codebook = Codebook(np.zeros((4, 2), np.float32), {"kind": "mfcc"}, 0.0, 0, 0, 9)
    splits.write_labels(root / "dev", root / "labels", [("<u1>", units)], codebook, 50)
    (root / "phones.txt").write_text(ALIGNMENTS)
    return {
        "audio": str(root / "dev"),
        "labels": str(root / "labels"),
        "alignments": str(root / "phones.txt"),
    }


@pytest.fixture
def workdir(tmp_path, speech) -> pathlib.Path:
    """The run's directory."""
    split = {"utterances": 1234, "seconds": 7200.0, "speakers": 18}
    finish(tmp_path, "prepare", splits={"train & more": split}, seconds=1400.0)
    for name, best, accuracy, weights in (("it1", 2, 0.2124, ""), ("it2", 0, 0.03, "orbax:it1")):
        directories = {"audio": speech["audio"], "directory": speech["labels"]}
        finish(tmp_path, f"{name}/label", splits={"dev": directories})
        finish(
            tmp_path,
            f"{name}/train",
            steps=300,
            parameters=7_123_456,
            fingerprint=f"weights {name}",
            init_from=weights,
            inputs={"init_from": "weights it1"} if weights else {},
            architecture={"num_layers": 10},
            last={"masked_accuracy": accuracy},
            commonest_unit_share=0.0411,
            curves={
                "loss": [[10, 20, 30], [4.0, 3.0, 2.0]],
                "masked_accuracy": [[10, 20, 30], [0.1, 0.2, 0.3]],
                "unmasked_accuracy": [[10, 20, 30], [0.12, 0.25, 0.37]],
                "learning_rate": [[10, 20, 30], [1e-4, 2e-4, 3e-4]],
            },
        )
        kind = {"kind": "mfcc"} if name == "it1" else {"kind": "layer", "layer": 2}
        finish(
            tmp_path,
            f"{name}/evaluate",
            audio=speech["audio"],
            alignments=speech["alignments"],
            frame_rate=50,
            k=100,
            phones=["<AA>", "S", "SIL"],
            labels=[
                {
                    "directory": speech["labels"],
                    "counts": [[9, 1, 0, 0], [0, 5, 0, 0], [2, 0, 7, 0]],
                    "feature": kind,
                    "k": 4,
                    "pnmi": 0.336 if name == "it1" else 0.34,
                }
            ],
            best_layer=best,
            pnmi_by_layer={"0": 0.38 if best == 0 else 0.24, "2": 0.3412, "10": 0.3},
            mfcc={"k": 100, "pnmi": 0.3301, "phone_purity": 0.4, "cluster_purity": 0.2},
            **({"untrained_pnmi_by_layer": {"0": 0.22, "2": 0.238}} if name == "it1" else {}),
        )
    for name, weights, wer, cer, text in (
        ("pretrained", "orbax:it2", 0.812, 0.38, "THE  CUTS"),
        ("scratch", "", 0.971, 0.38, ""),
    ):
        inputs = {"init_from": "weights it2"} if weights else {}
        curves = {"loss": [[5], [3.0]]}
        facts = {"init_from": weights, "inputs": inputs, "curves": curves}
        finish(tmp_path, f"{name}/finetune", steps=80, **facts)
        rates = {"wer": {"greedy": 1.0, "beam": wer}, "cer": {"greedy": 1.0, "beam": cer}}
        examples = [
            {"id": "<u1>", "reference": "THE CAT", "greedy": "X", "beam": text},
            {"id": "u2", "reference": "<SCRIPT>", "greedy": "<SCRIPT>"},
        ]
        finish(tmp_path, f"{name}/decode", examples=examples, **rates)
    for name, difference in (("it2", 2.4e-6), ("pretrained", 1.1e-6)):
        finish(tmp_path, f"{name}/export", max_abs_difference=difference)
    return tmp_path
