"""The demonstration: two iterations of a small HuBERT on the embedded corpus, in half an hour.

The front-end's geometry is HuBERT's (seven layers, 320 x); everything is narrower. What departs
from the recipe, to learn within minutes on two CPU cores: first units of cepstra without their
mean, nine frames at a time, instead of MFCC; Muon instead of Adam on the transformer's matrices;
alpha that goes from all frames to masked frames; short crops; no dropout, no feature penalty; a
second iteration that starts from the first one's weights, on units of layer 4 without the
utterance's mean and smoothed over three frames. Beside it stands its control, `longer`: as many
steps on the first units. `python -m hubert_jax.pipeline --config=configs/demo.py` runs all of it.
"""

import importlib.util

from ml_collections import ConfigDict


def get_config(part: str = "pipeline") -> ConfigDict:
    """The whole, for `pipeline`."""
    del part
    return pipeline(it1_steps=1200, it2_steps=400, tuning_steps=800)


EXPECTED_SECONDS = {  # on two cores; of a training those of a step
    "prepare": 9,
    "it1/label": 7,
    "it1/train": 0.30,
    "it1/evaluate": 73,
    "it2/label": 77,
    "it2/train": 0.32,
    "it2/evaluate": 27,
    "it2/export": 1,
    "longer/train": 0.34,
    "longer/evaluate": 31,
    "pretrained/finetune": 0.50,
    "pretrained/decode": 9,
    "pretrained/export": 1,
    "scratch/finetune": 0.56,
    "scratch/decode": 19,
}
# Of phones they tell more than MFCC do, and a network learns what its targets tell.
SPLICED_CEPSTRA = dict(feature="cepstra", steps=("mean", "splice 9"))
SMOOTHED = ("mean", "smooth 3")  # after which layers tell more: without the speaker, and steadier


def network() -> dict:
    """2.1 M parameters, no dropout; the same in pre-training and fine-tuning."""
    return dict(
        architecture=dict(
            conv_channels=(32, 48, 64, 64, 96, 96, 128),
            frontend_norm="layer",
            normalize_waveform=True,
            dim=192,
            num_layers=4,
            ffn_dim=768,
            num_heads=4,
            pre_norm=True,
            positional_kernel=64,
            positional_groups=16,
        ),
        regularization=dict(
            dropout=0.0,
            attention_dropout=0.0,
            input_dropout=0.0,
            layer_drop=0.0,
            frontend_gradient_scale=1.0,
        ),
        execution=dict(scan_unroll=4),
    )


def pretraining(steps: int, alpha: tuple, alpha_steps: tuple, peak_learning_rate: float) -> dict:
    """One iteration; a step is 8 crops of 2.56 s."""
    return dict(
        **network(),
        head=dict(codebook_sizes=(100,), projection_dim=96),
        loop=dict(steps=steps, log_every=50, save_every=200, keep=2),
        loss=dict(
            mask_probability=0.8,
            mask_group_rows=8,  # the whole batch: fewer masked frames, learnt within minutes
            alpha=alpha,
            alpha_steps=alpha_steps,
            feature_penalty=0.0,
        ),
        optimizer=dict(
            name="muon",
            peak_learning_rate=peak_learning_rate,
            weight_decay=0.01,
            clip_norm=10.0,
            schedule="linear",
            warmup_fraction=0.05,
        ),
        frames_per_step=1024,
        max_frames=128,
        seed=1337,
    )


def finetuning(
    steps: int, peak_learning_rate: float, freeze_steps: int, head_scale: float = 5.0
) -> dict:
    """CTC on the transcribed part of the corpus; the same for both networks."""
    return dict(
        **network(),
        loop=dict(steps=steps, log_every=25, save_every=50, keep=2),
        ctc=dict(
            freeze_steps=freeze_steps,
            time_mask_probability=0.0,
            channel_mask_probability=0.0,
            # Or most of these few steps would pass on the plateau where all outputs are blank.
            head_learning_rate_scale=head_scale,
        ),
        optimizer=dict(
            name="adam",
            peak_learning_rate=peak_learning_rate,
            epsilon=1e-8,
            weight_decay=0.0,
            clip_norm=200.0,  # of a loss per utterance, of some 200 characters
            schedule="tri_stage",
            warmup_fraction=0.1,
            hold_fraction=0.5,
        ),
        frames_per_step=2048,
        padded_frames=(512, 768, 896),
        seed=1337,
    )


def pipeline(it1_steps: int, it2_steps: int, tuning_steps: int) -> ConfigDict:
    """All stages; what a stage reads of another one stands in its `inputs`."""
    splits = dict(train="prepare:train", dev="prepare:dev-mini")
    both = (splits["train"], splits["dev"])
    further = pretraining(it2_steps, (1.0,), (0,), 1e-3)
    return ConfigDict(
        dict(
            workdir="runs/demo",
            stages=dict(
                prepare=dict(
                    corpus="examples/minilibri",
                    splits=("train=train-clean-5+train-clean-100", "train-clean-5", "dev-mini"),
                ),
                it1=dict(
                    label=dict(
                        inputs=dict(audio=both), **SPLICED_CEPSTRA, **clustering(num_clusters=100)
                    ),
                    train=dict(
                        pretraining(it1_steps, (0.5, 0.5, 1.0), (0, 300, 700), 2e-3),
                        inputs=dict(audio=splits["train"], labels=("it1/label:train",)),
                    ),
                    evaluate=evaluation("it1/train", ("it1/label:dev-mini",), untrained=True),
                ),
                it2=dict(
                    label=dict(
                        inputs=dict(audio=both, checkpoint="it1/train"),
                        feature="layer",
                        layer=4,
                        steps=SMOOTHED,
                        **clustering(num_clusters=100),
                    ),
                    train=dict(
                        further,
                        inputs=dict(
                            audio=splits["train"],
                            labels=("it2/label:train",),
                            init_from="it1/train",
                        ),
                    ),
                    evaluate=evaluation("it2/train", ("it2/label:dev-mini",)),
                    export=dict(inputs=dict(checkpoint="it2/train", audio=splits["dev"])),
                ),
                longer=dict(
                    train=dict(
                        further,
                        inputs=dict(
                            audio=splits["train"],
                            labels=("it1/label:train",),
                            init_from="it1/train",
                        ),
                        keep_head=True,
                    ),
                    evaluate=evaluation("longer/train", ("it1/label:dev-mini",)),
                ),
                pretrained=recognition("pretrained", tuning_steps, "longer/train", export=True),
                scratch=recognition("scratch", tuning_steps),
            ),
            expected_seconds=EXPECTED_SECONDS,
            report=dict(
                title="HuBERT on 1.7 hours of speech",
                iterations=("it1", "it2"),
                controls=("it2=longer",),
                recognisers=("pretrained", "scratch"),
            ),
        )
    )


def clustering(num_clusters: int) -> dict:
    """Of the targets: on some forty minutes of speech, the best of three starts."""
    return dict(num_clusters=num_clusters, seed=0, fit_max_frames=120_000, kmeans=dict(n_init=3))


def evaluation(checkpoint: str, labels: tuple[str, ...], untrained: bool = False) -> dict:
    """The upper layers of a network, and its targets, beside MFCC."""
    return dict(
        inputs=dict(
            audio="prepare:dev-mini",
            fit_audio="prepare:train",
            checkpoint=checkpoint,
            labels=labels,
        ),
        alignments="examples/minilibri/alignments/dev-mini.phones.txt",
        layers=(3, 4),
        untrained=untrained,
        after_steps=SMOOTHED,
        num_clusters=100,
        frame_rate=50,
        seed=0,
        fit_max_frames=60_000,
        kmeans=dict(n_init=1),
    )


def recognition(group: str, steps: int, init_from: str = "", export: bool = False) -> dict:
    """Fine-tuning, decoding and perhaps an export of one network."""
    inputs = dict(audio="prepare:train-clean-5")
    tuned = finetuning(steps, 1e-3, steps // 10)
    if init_from:
        inputs["init_from"] = init_from
    else:
        tuned["init_from"] = ""
    dev = dict(checkpoint=f"{group}/finetune", audio="prepare:dev-mini")
    stages = dict(
        finetune=dict(tuned, inputs=inputs),
        decode=dict(inputs=dev),
    )
    if importlib.util.find_spec("flashlight"):  # or greedy alone
        stages["decode"] |= dict(
            method="lexicon",
            lm="examples/minilibri/lm.arpa",  # of the training transcripts alone
            search=dict(beam=100, lm_weight=1.0, word_score=1.0),
        )
    if export:
        stages["export"] = dict(inputs=dev)
    return stages
