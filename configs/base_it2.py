"""HuBERT BASE, second iteration: 500 codewords on layer 6 of the first, 400,000 steps."""

from ml_collections import ConfigDict

from configs import base_it1

PARTS = ("label", "train")


def get_config(part: str = "train") -> ConfigDict:
    """The part of one job; audio is the first iteration's."""
    return {"label": label, "train": train}[part]()


def label() -> ConfigDict:
    """Layer 6 of the first iteration; k-means is fitted on 10 % of the utterances."""
    return ConfigDict(
        dict(
            workdir="runs/base_it2",
            audio=("runs/base_it1/prepare/train",),
            feature="layer",
            checkpoint="orbax:runs/base_it1/train/checkpoints",
            layer=6,
            num_clusters=500,
            fit_fraction=0.1,
            fit_max_frames=20_000_000,  # of LibriSpeech 17,300,000: 53 GB of memory
            kmeans=dict(method="minibatch"),
            seed=0,
        )
    )


def train() -> ConfigDict:
    """As the first iteration but for targets and length."""
    config = base_it1.train()
    config.workdir = "runs/base_it2"
    config.labels = ("runs/base_it2/label/train",)
    config.head.codebook_sizes = (500,)
    config.loop.steps = 400_000
    return config
