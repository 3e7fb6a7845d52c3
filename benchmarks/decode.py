"""Beam search with an n-gram beside transformers and pyctcdecode, and by the size of the beam.

    python -m benchmarks.decode CHECKPOINT SPLIT LM [--peer=PYTHON] [--beam=50] [--turns=3]

CHECKPOINT is orbax:DIR or hf:DIR, SPLIT a prepared split with transcripts, LM an n-gram of words
with its words. Ours: emissions, then a search of its lexicon, as the decode job does, in as many
processes as there are cores. The peer is PYTHON of an environment of its own with torch,
transformers, pyctcdecode and kenlm (pyctcdecode needs NumPy 1): the same weights as a transformers
directory, one utterance at a time, as its users run it, then `decode_batch` in as many processes,
by the same n-gram, words, beam and weights, and with the same threshold: ten nats below a frame's
best hypothesis, the peer's default. The peer also leaves out classes below exp(-5), ours all but
the 12 likeliest of a frame. They take turns in one run; loading, and the first pass of each, which
compiles, do not count.

Prints seconds and word error rates, our search by beam and threshold in one process, and two JSON
lines: the peer's time over ours, and the search's seconds for a second of audio and a core, at that
beam.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import pathlib
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable

import numpy as np

from hubert_jax import host_memory
from hubert_jax.asr.decoding import Searchers
from hubert_jax.asr.emissions import Emitted, KeptEmissions
from hubert_jax.asr.error_rates import word_error_rate
from hubert_jax.asr.search import BeamSearch
from hubert_jax.convert import formats
from hubert_jax.data import records
from hubert_jax.data.manifests import read_manifest
from hubert_jax.data.waveform import to_float
from hubert_jax.language import lexicon, ngram
from hubert_jax.model.architecture import Execution
from hubert_jax.networks import trained as trained_lib
from hubert_jax.networks.trained import require_ctc

LM_WEIGHT, WORD_SCORE = 2.0, -1.0
THRESHOLD = 10.0
TOKENS = 12  # of a frame: fewer than 1 in 100 have more above exp(-5)
BEAMS = (20, 50, 200, 500)


def peer_passes(python: str, folder: pathlib.Path, request: dict) -> Callable[[], dict]:
    """A function that has the peer decode everything once, and gives its answer."""
    (folder / "request.json").write_text(json.dumps(request))
    process = subprocess.Popen(
        [python, pathlib.Path(__file__).with_name("decode_peer.py"), folder / "request.json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    answers, questions = process.stdout, process.stdin

    def run() -> dict:
        questions.write("go\n")
        questions.flush()
        return json.loads(answers.readline())

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("split")
    parser.add_argument("lm")
    parser.add_argument("--peer", default="", help="Python that has transformers and pyctcdecode")
    parser.add_argument("--beam", type=int, default=50)
    parser.add_argument("--turns", type=int, default=3, help="passes of each")
    arguments = parser.parse_args()
    host_memory.keep_freed_memory()  # as jobs do
    trained = trained_lib.load(arguments.checkpoint)
    vocabulary, manifest = require_ctc(trained), read_manifest(arguments.split)
    words = lexicon.of_words(ngram.words(arguments.lm), vocabulary, arguments.lm)
    references = {each.id: each.text for each in records.read_audio(arguments.split)}
    cores = len(os.sched_getaffinity(0))
    search = BeamSearch(
        beam=arguments.beam,
        beam_tokens=TOKENS,
        beam_threshold=THRESHOLD,
        lm_weight=LM_WEIGHT,
        word_score=WORD_SCORE,
        n_best=1,
    )
    took: dict[str, list[float]] = {"emissions": [], "search": [], "ours": [], "peer": []}
    texts: dict[str, dict[str, str]] = {}
    with (
        tempfile.TemporaryDirectory() as temporary,
        Searchers(vocabulary, arguments.lm, words) as searchers,
    ):
        folder = pathlib.Path(temporary)

        def decoded(number: int) -> list[Emitted]:
            begun = time.perf_counter()
            of = arguments.split, manifest, folder / f"emissions-{number}", Execution()
            kept = KeptEmissions(trained, *of)
            kept.compute(lambda shard: True, lambda fraction: None)
            emitted = [each for n in range(len(manifest.shards)) for each in kept.of_shard(n)]
            between = time.perf_counter()
            found = searchers.search((each.log_probs for each in emitted), search)
            texts["ours"] = {
                e.id: n_best[0].text for e, (n_best, _) in zip(emitted, found, strict=True)
            }
            ended = time.perf_counter()
            for name, seconds in (
                ("emissions", between - begun),
                ("search", ended - between),
                ("ours", ended - begun),
            ):
                took[name].append(seconds)
            return emitted

        peer = None
        if arguments.peer:
            formats.write(f"hf:{folder}/network", formats.read(arguments.checkpoint))
            audio = {each.id: to_float(each.audio) for each in records.read_audio(arguments.split)}
            np.savez(folder / "audio.npz", **audio)
            request = {
                "network": f"{folder}/network",
                "audio": f"{folder}/audio.npz",
                "lm": os.path.abspath(arguments.lm),
                "words": list(words.words),
                "beam": arguments.beam,
                "threshold": -THRESHOLD,
                "alpha": LM_WEIGHT / math.log(10),  # it takes the n-gram's logarithm to base e
                "beta": WORD_SCORE,
                "processes": cores,
            }
            peer = peer_passes(arguments.peer, folder, request)
        for turn in range(arguments.turns + 1):
            emitted = decoded(turn)
            if peer:
                answer = peer()
                took["peer"].append(answer["seconds"])
                texts["peer"] = answer["texts"]
            if turn == 0:  # it compiles
                took = {name: [] for name in took}
        from hubert_jax.asr.beam import Decoder

        decoder = Decoder(vocabulary, arguments.lm, words)
        print(f"{len(references)} utterances, {manifest.seconds:.0f} s; {len(words.words)} words")
        for beam, threshold in itertools.product(BEAMS, (THRESHOLD, BeamSearch.beam_threshold)):
            asked = dataclasses.replace(search, beam=beam, beam_threshold=threshold)
            decoder(emitted[0].log_probs, asked)
            begun = time.perf_counter()
            scores = [decoder(each.log_probs, asked)[0].score for each in emitted]
            seconds = time.perf_counter() - begun
            print(
                f"beam {beam}, threshold {threshold:g}, one process: {seconds:.2f} s, "
                f"{seconds / manifest.seconds:.5f} of it; mean score {statistics.mean(scores):.3f}"
            )
    for name, values in took.items():
        if values:
            spread = f"{min(values):.2f} to {max(values):.2f}"
            print(f"{name:10} {statistics.median(values):7.2f} s ({spread})")
    for name, found in texts.items():
        ids = list(references)
        rate = word_error_rate([references[i] for i in ids], [found[i] for i in ids]).rate
        print(f"{name:10} WER {100 * rate:.2f} %")
    if peer:
        pairs = [a / b for a, b in zip(took["peer"], took["ours"], strict=True)]
        claim("decode_beside_pyctcdecode", statistics.median(pairs), 2.0, min(pairs), max(pairs))
    factors = [seconds * cores / manifest.seconds for seconds in took["search"]]
    claim(
        "search_per_second_and_core", statistics.median(factors), 0.002, min(factors), max(factors)
    )


def claim(name: str, found: float, goal: float, low: float, high: float) -> None:
    met = found >= goal if name.startswith("decode") else found <= goal
    rounded = {k: round(v, 5) for k, v in (("value", found), ("low", low), ("high", high))}
    print(json.dumps({"benchmark": name, **rounded, "goal": goal, "met": met}))


if __name__ == "__main__":
    main()
