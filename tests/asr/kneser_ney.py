"""Small interpolated Kneser-Ney n-grams in ARPA format, where there is no lmplz.

`python tests/asr/kneser_ney.py FOLDER ORDER`, of LibriSpeech's transcripts in a folder, prints one.
"""

import collections
import math
import pathlib
import sys

DISCOUNT = 0.5


def arpa(sentences, order):
    """An ARPA file's text, estimated on lists of words."""
    counts = [collections.Counter() for _ in range(order + 1)]
    for sentence in sentences:
        words = ("<s>", *sentence, "</s>")
        for n in range(1, order + 1):
            counts[n].update(words[i : i + n] for i in range(len(words) - n + 1))
    # Below the highest order, an n-gram counts in how many words come before it, unless none can.
    for n in range(order - 1, 0, -1):
        before = collections.Counter(gram[1:] for gram in counts[n + 1])
        for gram in counts[n]:
            if gram[0] != "<s>":
                counts[n][gram] = before[gram]
    counts[1][("<s>",)] = 0
    vocabulary = [gram[0] for gram in counts[1] if gram[0] != "<s>"] + ["<unk>"]

    probability = {}
    backoff = {}
    for n in range(1, order + 1):
        totals, kinds = collections.Counter(), collections.Counter()
        for gram, count in counts[n].items():
            totals[gram[:-1]] += count
            kinds[gram[:-1]] += count > 0
        for context in totals:
            backoff[context] = DISCOUNT * kinds[context] / totals[context]
        for gram, count in counts[n].items():
            lower = 1 / len(vocabulary) if n == 1 else probability[gram[1:]]
            discounted = max(count - DISCOUNT, 0) / totals[gram[:-1]]
            probability[gram] = discounted + backoff[gram[:-1]] * lower
    probability["<unk>",] = backoff[()] / len(vocabulary)
    grams = [sorted(g for g in probability if len(g) == n) for n in range(1, order + 1)]
    lines = ["\\data\\", *(f"ngram {n}={len(g)}" for n, g in enumerate(grams, start=1))]
    for n, of_order in enumerate(grams, start=1):
        lines += ["", f"\\{n}-grams:"]
        for gram in of_order:
            log10 = -99.0 if gram == ("<s>",) else math.log10(probability[gram])
            entry = f"{log10:.6f}\t{' '.join(gram)}"
            if n < order:
                entry += f"\t{math.log10(backoff[gram]) if gram in backoff else 0.0:.6f}"
            lines.append(entry)
    return "\n".join([*lines, "", "\\end\\", ""])


def sentences_of(folder):
    """The words of every transcript below a folder, in the order of the utterances' ids."""
    lines = (
        line
        for path in pathlib.Path(folder).rglob("*.trans.txt")
        for line in path.read_text().splitlines()
    )
    return [line.split()[1:] for line in sorted(lines)]


if __name__ == "__main__":
    sys.stdout.write(arpa(sentences_of(sys.argv[1]), int(sys.argv[2])))
