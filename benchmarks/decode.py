"""How long beam search takes, beside the network that it searches the outputs of.

    python -m benchmarks.decode CHECKPOINT SPLIT [LM]   (orbax:DIR or hf:DIR, a prepared split)

Prints seconds of emissions and, for beams of 20 to 500, of searching in one process, also as a
part of the audio's seconds. Without LM letters are searched, with it the words of its lexicon.
"""

import pathlib
import sys
import tempfile
import time

from hubert_jax.asr.emissions import KeptEmissions
from hubert_jax.asr.search import BeamSearch
from hubert_jax.data.manifests import read_manifest
from hubert_jax.language import lexicon, ngram
from hubert_jax.model.architecture import Execution
from hubert_jax.networks import trained as trained_lib


def main(checkpoint: str, split: str, lm: str = "") -> None:
    """Prints a table."""
    from hubert_jax.asr.beam import Decoder

    trained = trained_lib.load(checkpoint)
    vocabulary = trained_lib.require_ctc(trained)
    manifest = read_manifest(split)
    words = lexicon.of_words(ngram.words(lm), vocabulary, lm) if lm else None
    with tempfile.TemporaryDirectory() as folder:
        kept = KeptEmissions(trained, split, manifest, pathlib.Path(folder), Execution())
        begun = time.monotonic()
        kept.compute(lambda number: True, lambda fraction: None)
        print(f"emissions, compiling included: {_of(time.monotonic() - begun, manifest.seconds)}")
        emitted = [each for n in range(len(manifest.shards)) for each in kept.of_shard(n)]
    begun = time.monotonic()
    decoder = Decoder(vocabulary, lm, words)
    entries = f" of {len(words.words)} words" if words else ""
    print(f"n-gram and lexicon{entries} loaded in {time.monotonic() - begun:.2f} s")
    for beam in (20, 50, 200, 500):
        begun = time.monotonic()
        for each in emitted:
            decoder(each.log_probs, BeamSearch(beam=beam))
        print(f"beam {beam}: {_of(time.monotonic() - begun, manifest.seconds)}", flush=True)


def _of(seconds: float, audio: float) -> str:
    return f"{seconds:.2f} s, {seconds / audio:.5f} of the audio's {audio:.0f} s"


if __name__ == "__main__":
    main(*sys.argv[1:])
