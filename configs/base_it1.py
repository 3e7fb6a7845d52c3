"""HuBERT BASE, first iteration: MFCC k-means targets, LibriSpeech 960 h (Hsu et al. 2021).

Defaults follow the released configuration where it differs from the paper. The batch is 32
devices x 87.5 s = 2,800 s of audio = 140,000 frames of 20 ms. The paths take the embedded corpus:

    python -m hubert_jax.prepare --config=configs/base_it1.py
    python -m hubert_jax.label --config=configs/base_it1.py
    python -m hubert_jax.train --config=configs/base_it1.py --config.frames_per_step=3840 ...

For LibriSpeech, pass --config.corpus=... and --config.splits=... to `prepare`.
"""

from ml_collections import ConfigDict

PARTS = ("prepare", "label", "train")


def get_config(part: str = "train") -> ConfigDict:
    """The part of one job."""
    return {"prepare": prepare, "label": label, "train": train}[part]()


def prepare() -> ConfigDict:
    """LibriSpeech: --config.splits=train=train-clean-100+train-clean-360+train-other-500,..."""
    return ConfigDict(
        dict(
            workdir="runs/base_it1",
            corpus="examples/minilibri",
            splits=("train=train-clean-5+train-clean-100", "train-clean-5", "dev-mini"),
        )
    )


def label() -> ConfigDict:
    """k-means with 100 codewords on 39-dimensional MFCC, by mini-batches as released."""
    return ConfigDict(
        dict(
            workdir="runs/base_it1",
            audio=("runs/base_it1/prepare/train",),
            feature="mfcc",
            num_clusters=100,
            fit_max_frames=35_000_000,  # 10 % of LibriSpeech, as released: 5.5 GB of memory
            kmeans=dict(method="minibatch"),
            seed=0,
        )
    )


def train() -> ConfigDict:
    """250,000 steps; the network, its regularisation and its loss are the jobs' defaults."""
    return ConfigDict(
        dict(
            workdir="runs/base_it1",
            audio="runs/base_it1/prepare/train",
            labels=("runs/base_it1/label/train",),
            # 94,371,712 parameters without the head. The paper's Table I prints 8 attention heads;
            # every released model has 12.
            architecture=dict(
                dim=768, num_layers=12, ffn_dim=3072, num_heads=12, frontend_norm="group"
            ),
            # As many classes as clusters; released models have 4 more, which no frame ever has.
            head=dict(codebook_sizes=(100,), projection_dim=256, temperature=0.1),
            regularization=dict(
                dropout=0.1,
                attention_dropout=0.1,
                activation_dropout=0.0,
                input_dropout=0.1,
                layer_drop=0.05,
                frontend_gradient_scale=0.1,
            ),
            # On accelerators bfloat16 and scan_unroll=12, which moves less memory and takes about
            # twice as long to compile (docs/results/plan.md); the release trained in float16.
            execution=dict(dtype="float32", rematerialize="nothing"),
            loss=dict(
                mask_probability=0.8,
                mask_span=10,
                mask_group_rows=5,  # released: the rows of 768 frames in one device's 87.5 s
                feature_penalty=10.0,
            ),
            optimizer=dict(
                peak_learning_rate=5e-4,
                beta1=0.9,
                beta2=0.98,
                epsilon=1e-6,
                weight_decay=0.01,
                clip_norm=10.0,
                schedule="linear",
                warmup_fraction=0.08,
            ),
            loop=dict(steps=250_000, log_every=200, save_every=5_000, keep=2),
            frames_per_step=140_000,
            row_multiple=32,  # the devices: fewer of them, in micro-batches, have the same rows
            # Released: at most 250,000 samples (781 frames); 768 is the longest bucket.
            max_frames=768,
            seed=1337,
        )
    )
