"""The reference run: two iterations on 4.4 hours of LibriSpeech, about a day of two cores.

    python -m hubert_jax.pipeline --config=configs/reference.py --config.corpus=FOLDER \
        --config.alignments=FOLDER

The same command continues an interrupted run. `alignments` holds dev-mini.phones.txt and
train-clean-5.phones.txt, lines UTT-ID START END PHONE. Keys of this file, for another corpus:

    --config.corpus=FOLDER       required; holds the folders of `splits`
    --config.alignments=FOLDER   required
    --config.splits=NAME=FOLDER+FOLDER,...   four: to pre-train on, its part with transcripts (of
                                 the name that its alignments have), to measure on, to test on
    --config.width=256           of the network; it has a layer for every 42

What departs from the recipe is what departs from it in configs/demo.py, but for longer crops, more
units and more steps.
"""

from ml_collections import ConfigDict

from configs import demo
from hubert_jax.prepare import split_folders

SPLITS = (
    "train=LibriSpeech/train-clean-5+LibriSpeech-opus/train-clean-5+LibriSpeech-opus/train-clean-100",
    "train-clean-5=LibriSpeech/train-clean-5+LibriSpeech-opus/train-clean-5",
    "dev-mini=LibriSpeech/dev-mini+LibriSpeech-opus/dev-mini",
    "test-other=LibriSpeech/test-other",
)


def get_config(
    part: str, corpus: str, alignments: str, splits: tuple[str, ...] = SPLITS, width: int = 256
) -> ConfigDict:
    """The whole, for `pipeline`."""
    del part
    names = tuple(split_folders(splits))
    train, transcribed, dev, _ = (f"prepare:{name}" for name in names)
    labelled = dict(audio=(train, dev))
    _, transcribed_name, dev_name, _ = names

    def evaluation(group: str, labels: str) -> dict:
        return dict(
            inputs=dict(
                audio=dev,
                fit_audio=train,
                probe_audio=transcribed,
                checkpoint=f"{group}/train",
                labels=(f"{labels}/label:{dev_name}",),
            ),
            alignments=f"{alignments}/{dev_name}.phones.txt",
            probe_alignments=f"{alignments}/{transcribed_name}.phones.txt",
            untrained=group == "it1",
            after_steps=demo.SMOOTHED,
            num_clusters=100,
            fit_max_frames=60_000,
            kmeans=dict(n_init=1),
        )

    def training(steps: int, labels: str, **inputs: str) -> dict:
        read = dict(
            audio=train,
            labels=(f"{labels}/label:{names[0]}",),
            validation_audio=dev,
            validation_labels=(f"{labels}/label:{dev_name}",),
            **inputs,
        )
        return dict(pretraining(steps, width), inputs=read)

    def stages_of(name: str, labels: str, **inputs: str) -> dict:
        steps = 12_000 if name == "it1" else 6_000
        trained = training(steps, labels, **inputs)
        return dict(train=trained, evaluate=evaluation(name, labels))

    units = demo.clustering(num_clusters=500)
    refined = dict(audio=labelled["audio"], checkpoint="it1/train")
    first = dict(label=dict(inputs=labelled, **demo.SPLICED_CEPSTRA, **units))
    second = dict(
        label=dict(inputs=refined, feature="layer", layer=4, steps=demo.SMOOTHED, **units)
    )
    control = stages_of("longer", "it1", init_from="it1/train")
    control["train"]["keep_head"] = True
    return ConfigDict(
        dict(
            workdir="runs/reference",
            stages=dict(
                prepare=dict(corpus=corpus, splits=splits),
                it1=first | stages_of("it1", "it1"),
                it2=second | stages_of("it2", "it2", init_from="it1/train"),
                longer=control,
            ),
            report=dict(
                title="HuBERT on 4.4 hours of speech",
                iterations=("it1", "it2"),
                controls=("it2=longer",),
            ),
        )
    )


def pretraining(steps: int, width: int) -> dict:
    """One iteration; a step is 8 crops of 5.12 s."""
    values = demo.pretraining(steps, (0.5, 0.5, 1.0), (0, 300, 700), 2e-3)
    layers = round(width / 42)
    values["architecture"] |= dict(
        conv_channels=(32, 64, 96, 96, 128, 128, width),
        dim=width,
        ffn_dim=4 * width,
        num_layers=layers,
    )
    values |= dict(
        head=dict(codebook_sizes=(500,), projection_dim=width // 2),
        loop=dict(steps=steps, log_every=100, save_every=500, keep=2),
        frames_per_step=2048,
        max_frames=256,
        execution=dict(scan_unroll=layers),
    )
    return values
