"""Transcribes audio files with a fine-tuned network: text, captions, and words with their times.

Takes files and folders, of any length and sampling rate, in the formats of a corpus. Writes
WORKDIR/transcribe, for each recording NAME: NAME.txt, NAME.srt and NAME.vtt (captions), NAME.json
(`text`, `duration` in seconds, `words` as [word, start, end, confidence]), and at the end
result.json. What a call that was killed has done is kept. Decoding is as in `decode`: each frame's
likeliest class, or a search, of long recordings in stretches of 30 s at most that end in pauses.
"""

import collections
import contextlib
import dataclasses
import itertools
import math
import pathlib
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from hubert_jax import config as config_lib
from hubert_jax import files, job
from hubert_jax.asr.recognition import SearchParts, require_usable
from hubert_jax.asr.search import BeamSearch, Word
from hubert_jax.config import MayChange, Reads
from hubert_jax.errors import InputError, printable
from hubert_jax.frames import HOP, SAMPLE_RATE
from hubert_jax.model.architecture import Execution

if TYPE_CHECKING:
    from hubert_jax.asr.decoding import Searchers
    from hubert_jax.vocabulary import Vocabulary

_VERSION = 1  # raise it when the same files give other texts
_FORMATS = ("txt", "srt", "vtt", "json")


@dataclasses.dataclass(frozen=True)
class TranscribeConfig:
    """Configuration of the transcribe job."""

    checkpoint: Reads[str]  # network with a CTC head: orbax:DIR[@STEP, @best, @mean3], hf:DIR, ...
    files: Reads[tuple[str, ...]] = ()  # audio files, and folders of them
    workdir: MayChange[str] = "."
    formats: MayChange[tuple[str, ...]] = _FORMATS
    method: str = "greedy"  # as in decode, with the next four
    lm: Reads[str] = ""
    lexicon: Reads[str] = ""
    rescore: Reads[str] = ""
    search: BeamSearch = BeamSearch()
    processes: MayChange[int] = 0
    unchecked: MayChange[bool] = False  # take formats that do not tell whether a file is complete
    execution: MayChange[Execution] = Execution()

    def __post_init__(self) -> None:
        require_usable(self)
        unknown = [name for name in self.formats if name not in _FORMATS]
        if unknown or not self.formats:
            raise InputError(f"config.formats={self.formats}: expected some of {_FORMATS}")


def run(config: TranscribeConfig) -> dict:
    """Transcribes; returns the content of `WORKDIR/transcribe/result.json`.

    Raises InputError for a network without a CTC head, a language model or lexicon that cannot be
    used, and where no file could be read.
    """
    started = time.monotonic()
    workdir = files.require_writable(config.workdir)
    parts = SearchParts(config)
    from hubert_jax.corpus.recordings import Recordings

    recordings = Recordings(config.files, config.unchecked)
    from hubert_jax.asr.emissions import emissions
    from hubert_jax.networks import trained as trained_lib

    trained = trained_lib.load(config.checkpoint, execution=config.execution)
    vocabulary = trained_lib.require_ctc(trained)
    found = parts.fit(vocabulary)
    directory = workdir / "transcribe"
    with contextlib.ExitStack() as stack:
        stack.enter_context(files.locked(workdir / ".transcribe.lock", "transcribe job"))
        content = recordings.content()
        decisive = config_lib.decisive(config, complete=True)
        execution = dataclasses.asdict(config.execution)
        key = config_lib.digest([_VERSION, trained.fingerprint, found, decisive, execution])
        kept = stack.enter_context(contextlib.closing(files.KeptLines(directory / ".kept", key)))
        (directory / "result.json").unlink(missing_ok=True)  # only a finished job has a result
        done = {name for name, digest in content.items() if digest in kept}
        targets, joint = _targets(content), _joint(vocabulary)

        def write(name: str) -> None:
            said = kept[content[name]]
            _write(directory / targets[name], name, said, config.formats, joint)

        if done:
            print(f"{len(done)} of {len(content)} recordings kept from an earlier call", flush=True)
        progress = job.Progress("recordings", len(content) - len(done), "{} of {}")
        # Of a long one, nothing else would be told until it is finished.
        heard = job.Progress("audio", math.inf, "{:.0f} s heard")
        searchers = None
        if len(done) < len(content) and (searchers := parts.begin()):
            stack.enter_context(searchers)
        groups = recordings.groups(lambda name: name not in done)
        for _, emitted in emissions(trained, groups, heard):
            if not np.isfinite(emitted.log_probs).all():
                raise InputError(
                    f"config.checkpoint={config.checkpoint}: gives NaN or infinite log "
                    f"probabilities for {emitted.id}; fine-tuning diverged: take an earlier "
                    "step (orbax:DIR@STEP)"
                )
            said = _transcribed(emitted.log_probs, vocabulary, searchers, config.search)
            kept.add(content[emitted.id], said)
            write(emitted.id)
            progress(1)
        for name in done:
            write(name)
        if len(recordings.refused) == (count := len(recordings.paths)):
            raise InputError(f"config.files: none of {count} recordings could be read")
        texts = {
            name: kept[digest]["text"]
            for name, digest in content.items()
            if name not in recordings.refused
        }
        seconds = sum(kept[content[name]]["duration"] for name in texts)
        for name, text in texts.items():
            print(printable(f"{name}: {text}"), flush=True)
        result = {
            "recordings": {name: f"{directory / targets[name]}" for name in texts},
            "audio_seconds": round(seconds, 3),
            "fingerprint": trained.fingerprint,
            "inputs": found,
            "config": config_lib.to_dict(config),
            "refused": recordings.refused,
            "remarks": recordings.remarks,
        }
        return job.finish(config.workdir, "transcribe", result, started)


def _joint(vocabulary: "Vocabulary") -> str:
    """What stands between words: nothing in scripts that do not part them."""
    pieces = any(symbol.startswith(" ") for symbol in vocabulary.symbols)
    return " " if vocabulary.boundary >= 0 or vocabulary.separated or pieces else ""


def _transcribed(
    log_probs: np.ndarray,
    vocabulary: "Vocabulary",
    searchers: "Searchers | None",
    search: BeamSearch,
) -> dict[str, Any]:
    from hubert_jax.asr.spoken import greedy_words, stretches

    duration = round(HOP * len(log_probs) / SAMPLE_RATE, 3)
    if searchers is None:
        text = vocabulary.decode(vocabulary.collapse(log_probs.argmax(axis=1)))
        return {"text": text, "duration": duration} | _listed(greedy_words(log_probs, vocabulary))
    cuts = stretches(log_probs, vocabulary)
    best = [n_best[0] for n_best, _ in searchers.search([log_probs[cut] for cut in cuts], search)]
    words = [
        dataclasses.replace(word, start=word.start + later, end=word.end + later)
        for cut, hypothesis in zip(cuts, best, strict=True)
        for later in [cut.start * HOP / SAMPLE_RATE]
        for word in hypothesis.words
    ]
    text = " ".join(filter(None, (hypothesis.text for hypothesis in best)))
    return {"text": text, "duration": duration} | _listed(words)


def _listed(words: Iterable[Word]) -> dict[str, Any]:
    return {
        "words": [
            [word.text, round(word.start, 3), round(word.end, 3), round(word.confidence, 4)]
            for word in words
        ]
    }


def _targets(names: Iterable[str]) -> dict[str, pathlib.PurePosixPath]:
    """Where each recording's files go, but for the suffix; with its own where two are called so.

    And with a number where that is not enough; `result` is the job's own.
    """
    paths = {}
    for name in names:
        _, _, below = name.partition("://")
        parts = pathlib.PurePosixPath((below or name).lstrip("/")).parts
        paths[name] = pathlib.PurePosixPath(*(part for part in parts if part != ".."))
    wanted = collections.Counter(path.with_suffix("") for path in paths.values())
    wanted.update({*paths.values()})
    taken, found = {pathlib.PurePosixPath("result")}, {}
    for name, path in paths.items():
        short = path.with_suffix("")
        numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
        choices = itertools.chain([short] if wanted[short] == 1 else [], [path], numbered)
        found[name] = next(choice for choice in choices if choice not in taken)
        taken.add(found[name])
    return found


def _write(
    target: pathlib.Path, name: str, said: dict[str, Any], formats: Iterable[str], joint: str
) -> None:
    """A recording's files, each complete or not at all."""
    from hubert_jax.asr.spoken import Captions

    captions = Captions.of_words([Word(*word) for word in said["words"]], joint)
    texts = {"txt": said["text"] + "\n", "srt": captions.subrip(), "vtt": captions.webvtt()}
    for suffix in formats:
        path = target.with_name(f"{target.name}.{suffix}")
        if suffix == "json":
            files.write_json(path, {"audio": name, **said})
        else:
            files.write_text(path, texts[suffix])


if __name__ == "__main__":
    job.main("transcribe", TranscribeConfig, run, listed="files")
