"""One iteration of pre-training on a folder of audio, without transcripts or alignments.

    python -m hubert_jax.pipeline --config=configs/own_audio.py --config.corpus=FOLDER

takes every audio file below FOLDER, whatever its rate. Units are those of the demonstration, of
cepstra without their mean, from which so small a network learns more than from the paper's MFCC.
Keys of this file:

    --config.corpus=FOLDER      required
    --config.splits=train,dev   folders below it, as of the prepare job; the first is trained on,
                                the others are labelled too; without it all of FOLDER is trained on
    --config.steps=2200         the network and the number of steps are the demonstration's: give
                                more audio more steps

Any other key is that of a stage: `--config.stages.it1.label.fit_fraction=0.5`.
"""

from ml_collections import ConfigDict

from configs import demo
from hubert_jax.prepare import split_folders


def get_config(
    part: str, corpus: str, splits: tuple[str, ...] = ("train=.",), steps: int = 2200
) -> ConfigDict:
    """The whole, for `pipeline`."""
    del part
    audio = tuple(f"prepare:{split}" for split in split_folders(splits))
    labels = (f"it1/label:{audio[0].partition(':')[2]}",)
    return ConfigDict(
        dict(
            workdir="runs/own_audio",
            stages=dict(
                prepare=dict(corpus=corpus, splits=splits, convert=True),
                it1=dict(
                    label=dict(inputs=dict(audio=audio), **demo.SPLICED_CEPSTRA, num_clusters=100),
                    train=dict(
                        demo.pretraining(steps, (0.5, 0.5, 1.0), (0, 300, 700), 2e-3),
                        inputs=dict(audio=audio[0], labels=labels),
                    ),
                    export=dict(inputs=dict(checkpoint="it1/train", audio=audio[-1])),
                ),
            ),
            report=dict(title="HuBERT on your own audio", iterations=("it1",)),
        )
    )
