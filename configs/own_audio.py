"""One iteration of pre-training on a folder of audio, without transcripts or alignments.

    python -m hubert_jax.pipeline --config=configs/own_audio.py \\
      --config.stages.prepare.corpus=FOLDER

takes every audio file below FOLDER, whatever its rate. The network and the number of steps are the
demonstration's; `--config.stages.it1.train.loop.steps=...` gives a larger corpus more of them, and
any other key of a stage is overridden in the same way.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config(part: str = "pipeline") -> ConfigDict:
    """The whole, for `pipeline`."""
    del part
    return ConfigDict(
        dict(
            workdir="runs/own_audio",
            stages=dict(
                prepare=dict(corpus="speech", splits=("train=.",), convert=True),
                it1=dict(
                    label=dict(inputs=dict(audio=("prepare:train",)), num_clusters=100),
                    train=dict(
                        demo.pretraining(2200, (0.5, 0.5, 1.0), (0, 300, 700), 2e-3),
                        inputs=dict(audio="prepare:train", labels=("it1/label:train",)),
                    ),
                    export=dict(inputs=dict(checkpoint="it1/train", audio="prepare:train")),
                ),
            ),
            report=dict(title="HuBERT on your own audio", iterations=("it1",)),
        )
    )
