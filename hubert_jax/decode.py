"""Transcribes a prepared split with a fine-tuned network, and scores what has a transcript.

Takes the likeliest class of each frame (greedy), or searches for the best text by equation 4 of the
HuBERT paper, with a lexicon or letter by letter, with an n-gram, a Transformer or none; another
Transformer may score the best texts again. The network's outputs are kept in
WORKDIR/decode/emissions: later calls with other weights take them. A call that was killed goes on
where it was. Writes WORKDIR/decode/hypotheses.jsonl (id, reference by the vocabulary's
policy or null, greedy; of a search also beam and n_best, with scores, words' times and confidences)
and result.json (word and character error rates over the utterances that have transcripts, with
intervals; null where none has; the first dozen of these as `examples`).
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import pathlib
import pprint
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hubert_jax import config as config_lib
from hubert_jax import distributed, files, job, storage
from hubert_jax.asr import weights
from hubert_jax.asr.recognition import SearchParts, require_usable
from hubert_jax.asr.search import BeamSearch, Hypothesis, require_library
from hubert_jax.asr.weights import WeightSearch
from hubert_jax.config import MayChange, Reads
from hubert_jax.distributed import DistributedConfig
from hubert_jax.errors import InputError, printable
from hubert_jax.frames import SAMPLE_RATE, num_samples
from hubert_jax.model.architecture import Execution

if TYPE_CHECKING:
    from hubert_jax.asr.decoding import Searchers
    from hubert_jax.asr.emissions import Emitted, KeptEmissions
    from hubert_jax.data.manifests import AudioManifest
    from hubert_jax.vocabulary import Vocabulary

_PAIRS_SHOWN = 5
_NAMES_SHOWN = 5
_EXAMPLES = 12

VERSION = 5  # raise it when the same configuration and inputs give another output


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Configuration of the decode job."""

    workdir: MayChange[str]
    checkpoint: Reads[str]  # network with a CTC head: orbax:DIR[@STEP, @best, @mean3], hf:DIR, ...
    audio: Reads[str]  # directory of a prepared split
    method: str = "greedy"  # or lexicon, beam search of words, or letters, beam search without
    lm: Reads[str] = ""  # n-gram's file, of words, or letters and "|"; or orbax:DIR of train_lm
    lexicon: Reads[str] = ""  # of its method, lines "cat c a t |"; or the lm's words are taken
    rescore: Reads[str] = ""  # orbax:DIR of train_lm: scores the n-best texts in the lm's place
    search: BeamSearch = BeamSearch()
    weights: WeightSearch = WeightSearch()  # searches those of `search` on this split
    processes: MayChange[int] = 0  # that search; 0: one for each core; 1 with lm=orbax:DIR
    seed: int = 0  # of the intervals, which draw utterances
    execution: MayChange[Execution] = Execution()  # how the network runs
    distributed: MayChange[DistributedConfig] = DistributedConfig()

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"config.seed={self.seed}: expected 0 or more")
        trials = {"weights.trials": self.method == "greedy" and self.weights.trials}
        require_usable(self, trials)
        if self.weights.trials:
            self.weights.require_start(self.search)


def run(config: DecodeConfig) -> dict:
    """Decodes the split; returns the content of `WORKDIR/decode/result.json`.

    Raises InputError for networks without CTC head or that give NaN, and for a language model or
    lexicon that cannot be used, before the network runs.
    """
    started = time.monotonic()
    from hubert_jax.data.manifests import read_manifest

    workdir = files.require_writable(config.workdir)
    if config.weights.trials:
        require_library("optuna", "config.weights.trials")
    distributed.join(config)
    manifest = read_manifest(config.audio)
    if config.weights.trials and not manifest.transcribed:
        raise InputError(
            f"config.audio={config.audio}: has no transcripts, by which weights are searched; "
            "expected a validation split, or leave out config.weights.trials"
        )
    asked = SearchParts(config)
    # Later than the cheap checks: it imports orbax and TensorFlow.
    from hubert_jax.asr.emissions import KeptEmissions
    from hubert_jax.networks import trained as trained_lib
    from hubert_jax.tasks import transcripts

    trained = trained_lib.load(config.checkpoint, execution=config.execution)
    vocabulary = trained_lib.require_ctc(trained)
    found = {"config.checkpoint": trained.fingerprint, "config.audio": manifest.digest}
    found |= asked.fit(vocabulary)
    directory = workdir / "decode"
    distributed.require_agreement(config, found, directory)
    if distributed.is_first():
        transcripts.tell_outside(config.audio, manifest, vocabulary)
    with contextlib.ExitStack() as stack:
        stack.enter_context(distributed.locked(workdir / ".decode.lock", "decode job"))
        searchers = asked.begin()
        if searchers:
            stack.enter_context(searchers)
        # Only a finished job has a result.
        distributed.from_first(lambda: (directory / "result.json").unlink(missing_ok=True))
        kept = KeptEmissions(
            trained, config.audio, manifest, directory / "emissions", config.execution
        )
        shards = range(len(manifest.shards))
        computed = kept.compute(
            distributed.takes, job.Progress("emissions", 1.0, "{:.0%} of {:.0%}")
        )
        computed = sum(distributed.gather(computed))
        if shards and not computed:
            distributed.announce(f"emissions kept from an earlier call: {kept.directory}")
        trials = None
        if config.weights.trials and searchers:
            searching, word_score = searchers, asked.word_score

            def weigh() -> dict[str, Any]:
                return _weighed(config, kept, len(shards), searching, vocabulary, found, word_score)

            weighed = distributed.from_first(weigh)
            trials, best = weighed["trials"], BeamSearch(**weighed["search"])
            config = dataclasses.replace(config, search=best, weights=WeightSearch())
        decisive = config_lib.decisive(config, complete=True) | {"seed": 0}
        key = config_lib.digest([VERSION, kept.digest, found, decisive])
        parts = directory / "parts" / key[:16]
        _decode(config, manifest, vocabulary, kept, searchers, parts)
        distributed.gather(None)
        about = {
            "audio_seconds": manifest.seconds,
            "audio_digest": manifest.digest,
            "fingerprint": trained.fingerprint,
            "inputs": {key.removeprefix("config."): digest for key, digest in found.items()},
            "emissions": str(kept.directory),
            "emissions_computed": computed,  # audio shards; the others were kept
            "trials": trials,
        }
        words = asked.lexicon_words
        files_of_shards = [parts / f"{number:05d}.kept" for number in shards]
        return distributed.from_first(
            lambda: _finish(config, manifest, vocabulary, files_of_shards, words, about, started)
        )


def _weighed(
    config: DecodeConfig,
    kept: "KeptEmissions",
    shards: int,
    searchers: "Searchers",
    vocabulary: "Vocabulary",
    found: dict[str, Any],
    word_score: float,
) -> dict[str, Any]:
    """The best weights, also written as a configuration's file, and all trials."""
    from hubert_jax.asr.error_rates import ErrorRate, word_errors

    def error_rate(search: BeamSearch) -> float:
        references, texts = [], []
        for number in range(shards):
            spoken = [e for e in kept.of_shard(number) if vocabulary.normalised(e.text)]
            references += [vocabulary.normalised(each.text) for each in spoken]
            emitted = (each.log_probs for each in spoken)
            if not config.rescore:  # which puts the n-best texts in another order
                search = dataclasses.replace(search, n_best=1)
            texts += [
                vocabulary.normalised(n_best[0].text)
                for n_best, _ in searchers.search(emitted, search)
            ]
        return ErrorRate.of(word_errors(references, texts)).rate

    asked = config.weights
    directory = storage.path(config.workdir, "decode")
    made_of = [VERSION, kept.digest, found, dataclasses.asdict(config.search), config.method]
    study = config_lib.digest([*made_of, dataclasses.asdict(dataclasses.replace(asked, trials=0))])
    start = dataclasses.replace(config.search, word_score=word_score)
    best, trials = weights.find(
        asked, start, error_rate, directory / "trials.log", study, distributed.announce
    )
    values = {
        key: getattr(config, key) for key in ("checkpoint", "method", "lm", "lexicon", "rescore")
    }
    values["search"] = dataclasses.asdict(best)
    rate = min(trial["error_rate"] for trial in trials)
    path, listed = directory / "searched.py", pprint.pformat(values, sort_dicts=False)
    files.write_text(
        path,
        f'"""Weights of {len(trials)} trials, with a WER of {100 * rate:.2f} %."""\n\n'
        "from ml_collections import ConfigDict\n\n\n"
        'def get_config(part: str = "decode") -> ConfigDict:\n'
        f'    """For decode."""\n    return ConfigDict({listed})\n',
    )
    from hubert_jax.report import figures

    files.write_text(directory / "searched.svg", figures.search_of_weights(trials))
    distributed.announce(f"weights: --config={path}")
    return {"search": values["search"], "trials": trials}


def _decode(
    config: DecodeConfig,
    manifest: "AudioManifest",
    vocabulary: "Vocabulary",
    kept: "KeptEmissions",
    searchers: "Searchers | None",
    parts: pathlib.Path,
) -> None:
    """Writes the rows of this process's shards that are not there yet, a file for each shard."""
    mine = [number for number in range(len(manifest.shards)) if distributed.takes(number)]
    samples = sum(manifest.shards[number].samples for number in mine)
    progress = job.Progress("decode", samples / SAMPLE_RATE / 3600, "{:.2f} of {:.2f} h")
    there = 0
    for number in mine:
        with contextlib.closing(files.KeptLines(parts / f"{number:05d}.kept", parts.name)) as rows:
            done = [*rows]
            there += len(done)
            emitted = [each for each in kept.of_shard(number) if each.id not in rows]
            searched: Iterable[tuple[list[Hypothesis], float]] = itertools.repeat(([], 0.0))
            if searchers:
                searched = searchers.search((each.log_probs for each in emitted), config.search)
            for each, (hypotheses, seconds) in zip(emitted, searched, strict=False):
                row = _row(each, vocabulary)
                if searchers:
                    row |= {
                        "beam": hypotheses[0].text,
                        "n_best": [_listed(hypothesis) for hypothesis in hypotheses],
                        "beam_seconds": seconds,
                    }
                rows.add(each.id, row)
                progress(num_samples(len(each.log_probs)) / SAMPLE_RATE / 3600)
    if there:
        print(f"{there} utterances were decoded by an earlier call", flush=True)


def _row(each: "Emitted", vocabulary: "Vocabulary") -> dict[str, Any]:
    """What is known of an utterance without a search."""
    begun = time.monotonic()
    labels = vocabulary.collapse(each.log_probs.argmax(axis=1))
    specials = dict(vocabulary.specials)
    return {
        "id": each.id,
        "speaker": each.speaker,
        "reference": vocabulary.normalised(each.text) or None,
        "greedy": vocabulary.decode(labels),
        "left_out": [specials[index] for index in labels.tolist() if index in specials],
        "greedy_seconds": time.monotonic() - begun,
    }


def _listed(hypothesis: Hypothesis) -> dict[str, Any]:
    """A text, its scores, and words as [word, start, end, confidence]."""
    scores = {key: round(getattr(hypothesis, key), 4) for key in ("score", "acoustic", "lm")}
    words = [
        [word.text, round(word.start, 3), round(word.end, 3), round(word.confidence, 4)]
        for word in hypothesis.words
    ]
    return {"text": hypothesis.text, **scores, "words": words, "complete": hypothesis.complete}


def _finish(
    config: DecodeConfig,
    manifest: "AudioManifest",
    vocabulary: "Vocabulary",
    parts: list[pathlib.Path],
    lexicon_words: Sequence[str] | None,
    about: dict[str, Any],
    started: float,
) -> dict:
    """Scores what the processes decoded, shard by shard in the order of ids, and writes it."""
    from hubert_jax.asr import error_rates

    rows: list[dict[str, Any]] = []
    for path, shard in zip(parts, manifest.shards, strict=True):
        with contextlib.closing(files.KeptLines(path, path.parent.name)) as stored:
            names = sorted(stored)
            rows += [stored[name] for name in names]
            if len(names) != shard.utterances:
                raise InputError(
                    f"{path}: {len(names)} of {shard.utterances} utterances; give the same "
                    "command again"
                )
    ways = ("greedy",) if config.method == "greedy" else ("greedy", "beam")
    written = ("id", "reference", *ways)
    hypotheses = storage.path(config.workdir, "decode", "hypotheses.jsonl")
    with files.writing_file(hypotheses) as aside, open(aside, "w", encoding="utf-8") as lines:
        for row in rows:
            kept = {key: row[key] for key in (*written, "n_best") if key in row}
            lines.write(json.dumps(kept, ensure_ascii=False) + "\n")
    scored = [row for row in rows if row["reference"] is not None]
    references = [row["reference"] for row in scored]
    rates: dict[str, dict[str, Any]] = {}
    speakers: dict[str, dict[str, Any]] = {}
    less_than_greedy: dict[str, list[float]] = {}  # 95 % of the differences, of the same draws
    said_by = np.array([row["speaker"] for row in scored])
    for name, count in (("wer", error_rates.word_errors), ("cer", error_rates.character_errors)):
        rates[name], of_greedy = {}, None
        for way in ways:
            rates[name][way] = None
            if not scored:
                continue
            counts = count(references, [vocabulary.normalised(row[way]) for row in scored])
            of_all = error_rates.ErrorRate.of(counts)
            between = list(error_rates.interval(counts, config.seed))
            rates[name][way] = dataclasses.asdict(of_all) | {"interval": between}
            for speaker in sorted({*said_by.tolist()} - {""}):
                spoken = counts[said_by == speaker]
                found = speakers.setdefault(
                    speaker, {"utterances": len(spoken), "wer": {}, "cer": {}}
                )
                found[name][way] = error_rates.ErrorRate.of(spoken).rate
            if of_greedy is None:
                of_greedy = counts
            else:
                errors, length = of_greedy[:, :3] - counts[:, :3], counts[:, 3:]
                paired = np.concatenate([errors, length], axis=1)
                less_than_greedy[name] = list(error_rates.interval(paired, config.seed))
    outside = None
    if lexicon_words is not None and scored:
        known = {vocabulary.normalised(word) for word in lexicon_words}
        spoken = [word for reference in references for word in reference.split()]
        outside = sum(word not in known for word in spoken) / max(len(spoken), 1)
    result = {
        "config": config_lib.to_dict(config),
        "utterances": len(rows),
        "transcribed": len(scored),  # what the rates are of
        "words": rates["wer"]["greedy"]["length"] if scored else 0,
        "characters": rates["cer"]["greedy"]["length"] if scored else 0,
        **{
            name: {way: found and found["rate"] for way, found in of_ways.items()}
            for name, of_ways in rates.items()
        },
        "word_errors": rates["wer"],
        "character_errors": rates["cer"],
        "less_than_greedy": less_than_greedy,
        "speakers": speakers,
        "decode_seconds": {
            way: round(sum(row[f"{way}_seconds"] for row in rows), 3) for way in ways
        },
        "examples": [{key: row[key] for key in written} for row in scored[:_EXAMPLES]],
        "hypotheses": str(hypotheses),
        "hypotheses_digest": files.sha256_file(hypotheses),
        "lexicon_words": None if lexicon_words is None else len(lexicon_words),
        "outside_lexicon": outside,  # fraction of the references' words
        **about,
    }
    result = job.finish(config.workdir, "decode", result, started)
    if parts:
        storage.remove_tree(parts[0].parent.parent)
    _show(rows, result)
    return result


def _show(rows: list[dict], result: dict) -> None:
    ways = list(result["wer"])
    for row in rows[:_PAIRS_SHOWN]:
        print(printable(row["id"]))
        for field in ("reference", *ways):
            print(f"  {field:<9}  {'(none)' if row[field] is None else printable(row[field])}")
    for way in ways if result["transcribed"] else ():
        errors = result["word_errors"][way]
        low, high = (100 * rate for rate in errors["interval"])
        print(
            f"{way}: WER {100 * result['wer'][way]:.2f} % (95 %: {low:.2f} to {high:.2f}), "
            f"CER {100 * result['cer'][way]:.2f} % "
            f"({errors['substitutions']} substitutions, {errors['insertions']} insertions, "
            f"{errors['deletions']} deletions in {errors['length']} words)"
        )
    print(
        f"{result['utterances']} utterances, {result['transcribed']} of them with a transcript to "
        f"compare with; all hypotheses: {result['hypotheses']}",
        flush=True,
    )
    if result["outside_lexicon"]:
        print(
            f"{result['outside_lexicon']:.1%} of the references' words are outside the lexicon of "
            f"{result['lexicon_words']:,} words, and cannot be found",
            flush=True,
        )
    left_out = collections.Counter(name for row in rows for name in row["left_out"])
    if left_out:
        listed = ", ".join(f"{name} {count}" for name, count in left_out.most_common(_NAMES_SHOWN))
        print(
            f"left out of greedy texts: {left_out.total()} special symbols ({listed}); the "
            "pipeline of transformers writes names for them",
            flush=True,
        )
    broken_off = sum(not row["n_best"][0]["complete"] for row in rows if "n_best" in row)
    if broken_off:
        print(
            f"{broken_off} texts break off within a word: the beam had none that ends with a word "
            "of the lexicon; raise config.search.beam or beam_threshold",
            flush=True,
        )


if __name__ == "__main__":
    job.main("decode", DecodeConfig, run)
