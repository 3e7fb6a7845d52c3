"""Memory of the sample that k-means is fitted on, beside the size of the sample itself.

    python -m benchmarks.frame_sample [--fractions=16,8,4]

Ten percent of LibriSpeech's 960 hours are 17,280,000 frames, 53 GB of BASE's 768-d features. Draws
a sixteenth, an eighth and a quarter of that, each in a process of its own, out of three times as
many synthetic frames, and puts it in the order in which k-means gets it. The ratio is the largest
resident memory beyond that of the process before, over the sample's own bytes.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

import numpy as np

FRAMES, WIDTH = 960 * 3600 * 50 // 10, 768
OFFERED = 3  # frames for each one that is kept
UTTERANCE = 750  # frames, 15 s
LARGEST = 1.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fractions", default="16,8,4", help="one over the parts that are drawn")
    parser.add_argument("--draw", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.draw:
        print(json.dumps(draw(FRAMES // arguments.draw)))
        return
    ratios = []
    for part in map(int, arguments.fractions.split(",")):
        command = [sys.executable, "-m", "benchmarks.frame_sample", f"--draw={part}"]
        size, memory = json.loads(subprocess.check_output(command).splitlines()[-1])
        ratios.append(memory / size)
        print(
            f"1/{part} of the frames: sample {size / 1e9:.3f} GB, largest memory "
            f"{memory / 1e9:.3f} GB, ratio {ratios[-1]:.3f}",
            flush=True,
        )
    result = {"benchmark": "frame_sample", "ratio": statistics.median(ratios)}
    result |= {"low": min(ratios), "high": max(ratios), "goal": LARGEST}
    print(json.dumps(result | {"met": max(ratios) <= LARGEST}))


def draw(frames: int) -> tuple[int, int]:
    """Bytes of a sample of `frames` frames, and of the memory that drawing it took."""
    from hubert_jax.units.kmeans import FrameSample

    shape = 64 * UTTERANCE, WIDTH
    synthetic = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    before = _memory("VmRSS")
    sample = FrameSample(frames, seed=0)
    for number in range(OFFERED * frames // UTTERANCE):
        first = number % 64 * UTTERANCE
        sample.add(f"utterance-{number}", synthetic[first : first + UTTERANCE])
    drawn = sample.frames()[0]
    assert drawn.shape == (frames, WIDTH)
    return drawn.nbytes, _memory("VmHWM") - before


def _memory(kind: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM, the most so far (Linux)."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))


if __name__ == "__main__":
    main()
