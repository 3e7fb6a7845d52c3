"""Makes a training split of speech that nobody transcribed, by what a network heard in it.

Reads a prepared split and the hypotheses that a beam search of `decode` found for it, keeps the
utterances of which the search is sure, and writes them with these texts as WORKDIR/pseudo_label/
SPLIT, whose manifest says where the texts are from. `finetune` mixes it with transcribed speech by
config.more_audio. Its result.json has what is kept and, where the split has transcripts, the word
error rate of what is kept.
"""

import collections
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import time
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hubert_jax import config as config_lib
from hubert_jax import files, job, storage
from hubert_jax.config import MayChange, Reads
from hubert_jax.errors import InputError
from hubert_jax.frames import SAMPLE_RATE, num_frames

if TYPE_CHECKING:
    from hubert_jax.data.manifests import AudioManifest

_MEASURES = ("confidence", "score_per_frame")

VERSION = 1  # raise it when the same configuration and inputs give another split


@dataclasses.dataclass(frozen=True)
class PseudoLabelConfig:
    """Configuration of pseudo-labelling."""

    workdir: MayChange[str]
    audio: Reads[str]  # the prepared split that was decoded
    hypotheses: Reads[str]  # WORKDIR/decode of its beam search
    measure: str = "confidence"  # mean of the words'; or score_per_frame, in nats, of a text
    threshold: float = 0.9  # of what is kept, at least
    split: str = ""  # name of what is written; empty: that of config.audio
    shard_megabytes: int = 64  # 16-bit audio per shard

    def __post_init__(self) -> None:
        if self.measure not in _MEASURES:
            raise InputError(f"config.measure={self.measure!r}: expected one of {_MEASURES}")
        if self.measure == "confidence" and not 0 <= self.threshold <= 1:
            raise InputError(f"config.threshold={self.threshold}: expected a confidence, 0 to 1")
        if self.shard_megabytes < 1:
            raise InputError(f"config.shard_megabytes={self.shard_megabytes}: expected 1 or more")
        if "/" in self.split or self.split.startswith("."):
            raise InputError(f"config.split={self.split}: expected a plain name")


def run(config: PseudoLabelConfig) -> dict:
    """Writes the split; returns the content of `WORKDIR/pseudo_label/result.json`.

    Raises InputError for hypotheses of another split or without confidences, and where none is
    kept.
    """
    started = time.monotonic()
    from hubert_jax.asr.error_rates import word_error_rate
    from hubert_jax.data.index import read_index
    from hubert_jax.data.manifests import read_manifest

    workdir = files.require_writable(config.workdir)
    manifest = read_manifest(config.audio)
    split = config.split or manifest.split
    directory = workdir / "pseudo_label" / split
    if directory.resolve() == storage.path(config.audio).resolve():
        raise InputError(
            f"config.audio={config.audio}: would be replaced; pass --config.split=NAME"
        )
    decoded = _decoded(config, manifest.digest)
    index = read_index(config.audio, manifest)
    samples = dict(zip(index.ids, index.samples.tolist(), strict=True))
    texts: dict[str, str] = {}
    spoken, left_out = [], collections.Counter[str]()
    path = storage.path(config.hypotheses, "hypotheses.jsonl")
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if reason := _why_not(config, row, num_frames(samples[row["id"]])):
                left_out[reason] += 1
                continue
            text = unicodedata.normalize("NFC", " ".join(row["n_best"][0]["text"].split()))
            texts[row["id"]] = text
            if row["reference"]:
                spoken.append((row["reference"], text))
    kept = sum(samples[name] for name in texts) / SAMPLE_RATE
    for reason, count in left_out.items():
        print(f"{count} of {manifest.utterances} utterances are left out: {reason}", flush=True)
    if not texts:
        raise InputError(
            f"config.threshold={config.threshold}: none of {manifest.utterances} utterances is "
            "kept; lower it"
        )
    provenance = {
        "measure": config.measure,
        "threshold": config.threshold,
        "hours": round(kept / 3600, 3),
        "of_hours": round(manifest.seconds / 3600, 3),
        **decoded,
    }
    with files.locked(workdir / ".pseudo_label.lock", "pseudo-labelling"):
        (workdir / "pseudo_label" / "result.json").unlink(missing_ok=True)
        written = _write(config, manifest, texts, provenance, directory)
        wer = word_error_rate(*zip(*spoken, strict=True)).rate if spoken else None
        of_split = {
            "utterances": written.utterances,
            "seconds": written.seconds,
            "fraction_kept": kept / manifest.seconds,
            "left_out": dict(left_out),
            "wer": wer,  # of those kept that have a transcript
            "digest": written.digest,
        }
        measured = "" if wer is None else f"; their WER is {100 * wer:.2f} %"
        print(
            f"{directory}: {written.utterances} of {manifest.utterances} utterances, "
            f"{kept / 3600:.2f} of {manifest.seconds / 3600:.2f} h{measured}",
            flush=True,
        )
        result = {"splits": {split: of_split}, "provenance": provenance}
        return job.finish(config.workdir, "pseudo_label", result, started)


def _write(
    config: PseudoLabelConfig,
    manifest: "AudioManifest",
    texts: Mapping[str, str],
    provenance: dict[str, Any],
    directory: pathlib.Path,
) -> "AudioManifest":
    """Writes the utterances that are in `texts`, by id, with these, as a split.

    Parts, one of each audio shard, outlive a call that is killed.
    """
    from hubert_jax.corpus import assembly, parts
    from hubert_jax.data import records

    made_of = config_lib.digest([VERSION, manifest.digest, provenance])
    aside = storage.scratch(directory.with_name(f".{directory.name}.{made_of[:16]}.parts"))
    aside.mkdir(parents=True, exist_ok=True)
    hours = manifest.seconds / 3600
    progress = job.Progress("pseudo_label", hours, "{:.2f} of {:.2f} h")

    def part_of(number: int) -> parts.Part:
        shard, path = manifest.shards[number], aside / f"{number:05d}.tfrecord"
        read = records.read_shard(storage.path(config.audio, shard.file), shard.utterances)
        kept = (
            ((number, place), dataclasses.replace(utterance, text=texts[utterance.id]))
            for place, utterance in enumerate(read)
            if utterance.id in texts
        )
        part = parts.read(path) or parts.write(
            path, [parts.Item(shard.file, kept)], manifest.encoding
        )
        if part.notes.rejected:
            raise InputError(": ".join(part.notes.rejected[0]))
        progress(shard.samples / SAMPLE_RATE / 3600)
        return part

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        written = list(pool.map(part_of, range(len(manifest.shards))))
    with files.writing_directory(directory) as new:
        result = assembly.assemble(
            new,
            directory.name,
            written,
            config.shard_megabytes,
            encoding=manifest.encoding,
            provenance=provenance,
        )
    for left in (aside, *directory.parent.glob(f".{directory.name}.*.parts")):
        storage.remove_tree(left, ignore_errors=True)
    return result


def _decoded(config: PseudoLabelConfig, audio_digest: str) -> dict[str, Any]:
    """Where the hypotheses are from, for the manifest; InputError where they do not fit."""
    directory = storage.path(config.hypotheses)
    found = files.read_json(directory / "result.json", "result of decode", "hubert_jax.decode")
    key = f"config.hypotheses={directory}"
    if found.get("job") != "decode":
        raise InputError(f"{key}: expected WORKDIR/decode, found a result of {found.get('job')}")
    if found["audio_digest"] != audio_digest:
        raise InputError(
            f"{key}: of another split, {found['config']['audio']}, than config.audio="
            f"{config.audio}; decode this one, or name that"
        )
    if found["config"]["method"] == "greedy":
        raise InputError(
            f"{key}: of greedy decoding, which has no confidences; decode with "
            "--config.method=lexicon or letters"
        )
    if config.measure == "confidence" and found["config"]["search"]["n_best"] == 1:
        raise InputError(
            f"{key}: of one text an utterance, beside which nothing is less sure; decode with "
            "--config.search.n_best=10, or pass --config.measure=score_per_frame"
        )
    if files.sha256_file(directory / "hypotheses.jsonl") != found["hypotheses_digest"]:
        raise InputError(
            f"{directory / 'hypotheses.jsonl'}: not what its result.json names, it was edited or "
            "damaged; run hubert_jax.decode again"
        )
    return {
        "hypotheses": found["hypotheses_digest"],
        "inputs": found["inputs"],
        "method": found["config"]["method"],
        "search": found["config"]["search"],
    }


def _why_not(config: PseudoLabelConfig, row: dict[str, Any], frames: int) -> str:
    """Why an utterance is not kept; "" if it is."""
    best = row["n_best"][0]
    if not best["words"]:
        return "no word was heard"
    if not best["complete"]:
        return "the text breaks off within a word"
    measured = best["score"] / frames
    if config.measure == "confidence":
        measured = sum(word[3] for word in best["words"]) / len(best["words"])
    return "" if measured >= config.threshold else f"below the threshold of {config.threshold}"


if __name__ == "__main__":
    job.main("pseudo_label", PseudoLabelConfig, run, computes=False)
