"""Transcribes a prepared split with a fine-tuned network, and scores what has a transcript.

Decodes every utterance greedily and, unless --config.greedy=True, with a CTC beam search. Writes
WORKDIR/decode/hypotheses.jsonl (id, reference by the vocabulary's policy or null, greedy, beam) and
result.json (word and character error rates over the utterances that have transcripts, null where
none has; the first dozen of these as `examples`).
"""

import collections
import dataclasses
import itertools
import json
import operator
import pathlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from hubert_jax import distributed, files, job
from hubert_jax.config import MayChange, Reads
from hubert_jax.distributed import DistributedConfig
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Execution

if TYPE_CHECKING:
    from hubert_jax.data.manifests import AudioManifest
    from hubert_jax.networks.trained import Trained

_PAIRS_SHOWN = 5
_NAMES_SHOWN = 5
_EXAMPLES = 12

VERSION = 2  # raise it when the same configuration and inputs give another output


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Configuration of the decode job; the beam's defaults suit no language model."""

    workdir: MayChange[str]
    checkpoint: Reads[str]  # network with a CTC head: orbax:DIR[@STEP, @best, @mean3], hf:DIR, ...
    audio: Reads[str]  # directory of a prepared split
    greedy: bool = False  # greedy only, no beam search
    beam_size: int = 20
    beam_threshold: float = 20.0  # nats
    word_score: float = 0.0  # w2 of equation 4, added for every word
    execution: MayChange[Execution] = Execution()  # how the network runs
    distributed: MayChange[DistributedConfig] = DistributedConfig()

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise InputError(f"config.beam_size={self.beam_size}: expected at least 1")
        if not self.beam_threshold > 0:
            raise InputError(f"config.beam_threshold={self.beam_threshold}: expected more than 0")


def run(config: DecodeConfig) -> dict:
    """Decodes the split; returns the content of `WORKDIR/decode/result.json`.

    Raises InputError for networks without CTC head, and where they give NaN.
    """
    started = time.monotonic()
    from hubert_jax.asr.beam_search import beam_search
    from hubert_jax.data.manifests import read_manifest

    directory = files.require_writable(config.workdir) / "decode"
    distributed.join(config.distributed)
    manifest = read_manifest(config.audio)
    # Later than the cheap checks: it imports orbax and TensorFlow.
    from hubert_jax.asr.emissions import emissions
    from hubert_jax.networks import trained as trained_lib
    from hubert_jax.tasks import transcripts

    trained = trained_lib.load(config.checkpoint, execution=config.execution)
    vocabulary = trained_lib.require_ctc(trained)
    found = {"config.checkpoint": trained.fingerprint, "config.audio": manifest.digest}
    distributed.require_agreement(config, found, directory)
    if distributed.is_first():
        transcripts.tell_outside(config.audio, manifest, vocabulary)
    (directory / "result.json").unlink(missing_ok=True)  # only a finished job has a result

    numbered = []  # by audio shards
    specials = dict(vocabulary.specials)
    left_out: collections.Counter[str] = collections.Counter()  # of the greedy texts
    seconds = {"greedy": 0.0} if config.greedy else {"greedy": 0.0, "beam": 0.0}
    for shard, utterance, reference, log_probs in emissions(
        trained, config.audio, distributed.takes
    ):
        if not np.isfinite(log_probs).all():
            raise InputError(
                f"{config.checkpoint}: gives NaN or infinite log probabilities for {utterance}; "
                "fine-tuning diverged: decode an earlier step (orbax:DIR@STEP), or lower its "
                "learning rate"
            )
        row = {"id": utterance, "reference": vocabulary.normalised(reference) or None}

        begun = time.monotonic()
        labels = vocabulary.collapse(log_probs.argmax(axis=1))
        row["greedy"] = vocabulary.decode(labels)
        left_out.update(specials[i] for i in labels.tolist() if i in specials)
        seconds["greedy"] += time.monotonic() - begun
        if not config.greedy:
            begun = time.monotonic()
            best = beam_search(
                log_probs,
                vocabulary,
                beam_size=config.beam_size,
                beam_threshold=config.beam_threshold,
                word_score=config.word_score,
            )[0]
            row["beam"] = best.text
            seconds["beam"] += time.monotonic() - begun
        numbered.append((shard, row))
    gathered = distributed.gather((numbered, seconds, dict(left_out)))
    return distributed.from_first(lambda: _finish(config, gathered, trained, manifest, started))


def _finish(
    config: DecodeConfig,
    gathered: list[tuple[list, dict[str, float], dict[str, int]]],
    trained: "Trained",
    manifest: "AudioManifest",
    started: float,
) -> dict:
    """Scores what the processes decoded, in the split's order, and writes it."""
    from hubert_jax.asr.error_rates import ErrorRate, character_error_rate, word_error_rate

    numbered = itertools.chain.from_iterable(decoded for decoded, *_ in gathered)
    rows = [row for _, row in sorted(numbered, key=operator.itemgetter(0))]
    seconds = {way: sum(spent[way] for _, spent, _ in gathered) for way in gathered[0][1]}
    scored = [row for row in rows if row["reference"] is not None]
    references = [row["reference"] for row in scored]

    def rates(measure: Callable[..., ErrorRate]) -> dict[str, ErrorRate | None]:
        return {w: measure(references, [r[w] for r in scored]) if scored else None for w in seconds}

    words, characters = rates(word_error_rate), rates(character_error_rate)
    hypotheses = pathlib.Path(config.workdir, "decode", "hypotheses.jsonl")
    files.write_text(hypotheses, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    result = {
        "config": dataclasses.asdict(config),
        "utterances": len(rows),
        "transcribed": len(scored),  # what the rates are of
        "words": words["greedy"].length if words["greedy"] else 0,
        "characters": characters["greedy"].length if characters["greedy"] else 0,
        "audio_seconds": manifest.seconds,
        "wer": {way: rate and rate.rate for way, rate in words.items()},
        "cer": {way: rate and rate.rate for way, rate in characters.items()},
        "word_errors": {way: rate and dataclasses.asdict(rate) for way, rate in words.items()},
        "character_errors": {
            way: rate and dataclasses.asdict(rate) for way, rate in characters.items()
        },
        "decode_seconds": {way: round(spent, 3) for way, spent in seconds.items()},
        "examples": scored[:_EXAMPLES],
        "hypotheses": str(hypotheses),
        "audio_digest": manifest.digest,
        "fingerprint": trained.fingerprint,
        "hypotheses_digest": files.sha256_file(hypotheses),
    }
    result = job.finish(config.workdir, "decode", result, started)
    _show(rows, result, hypotheses)
    left_out: collections.Counter[str] = collections.Counter()
    for *_, names in gathered:
        left_out.update(names)
    if left_out:
        listed = ", ".join(f"{name} {count}" for name, count in left_out.most_common(_NAMES_SHOWN))
        distributed.announce(
            f"left out of greedy texts: {left_out.total()} special symbols ({listed}); the "
            "pipeline of transformers writes names for them"
        )
    return result


def _show(rows: list[dict], result: dict, hypotheses: pathlib.Path) -> None:
    ways = list(result["wer"])
    for row in rows[:_PAIRS_SHOWN]:
        print(row["id"])
        for field in ("reference", *ways):
            print(f"  {field:<9}  {'(none)' if row[field] is None else row[field]}")
    for way in ways if result["transcribed"] else ():
        errors = result["word_errors"][way]
        print(
            f"{way}: WER {100 * result['wer'][way]:.2f} %, CER {100 * result['cer'][way]:.2f} % "
            f"({errors['substitutions']} substitutions, {errors['insertions']} insertions, "
            f"{errors['deletions']} deletions in {errors['length']} words)"
        )
    print(
        f"{result['utterances']} utterances, {result['transcribed']} of them with a transcript to "
        f"compare with; all hypotheses: {hypotheses}",
        flush=True,
    )


if __name__ == "__main__":
    job.main("decode", DecodeConfig, run)
