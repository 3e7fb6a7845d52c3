"""HuBERT LARGE: 500 codewords of layer 9 of BASE's second iteration, Libri-light 60,000 h."""

from ml_collections import ConfigDict

from configs import base_it1

PARTS = ("prepare", "label", "train")


def get_config(part: str = "train") -> ConfigDict:
    """The part of one job."""
    return {"prepare": prepare, "label": label, "train": train}[part]()


def prepare() -> ConfigDict:
    """The embedded corpus unless --config.corpus and --config.splits say otherwise."""
    config = base_it1.prepare()
    config.workdir = "runs/large"
    return config


def label() -> ConfigDict:
    """Layer 9 of BASE's second iteration.

    The paper fits on 10 % of the utterances, of Libri-light 3.3 TB of features: fit_max_frames
    leaves 31 GB of them.
    """
    return ConfigDict(
        dict(
            workdir="runs/large",
            audio=("runs/large/prepare/train",),
            feature="layer",
            checkpoint="orbax:runs/base_it2/train/checkpoints",
            layer=9,
            num_clusters=500,
            fit_fraction=0.1,
            kmeans=dict(method="minibatch"),
            seed=0,
        )
    )


def train() -> ConfigDict:
    """400,000 steps of 128 devices x 56.25 s = 7,200 s of audio = 360,000 frames."""
    config = base_it1.train()
    config.workdir = "runs/large"
    config.audio = "runs/large/prepare/train"
    config.labels = ("runs/large/label/train",)
    config.architecture.update(
        frontend_norm="layer",
        normalize_waveform=True,
        dim=1024,
        num_layers=24,
        ffn_dim=4096,
        num_heads=16,
        pre_norm=True,
    )
    config.head.update(codebook_sizes=(500,), projection_dim=768)
    config.regularization.update(
        dropout=0.0,
        attention_dropout=0.0,
        input_dropout=0.0,
        layer_drop=0.0,
        frontend_gradient_scale=1.0,
    )
    config.execution.update(dtype="bfloat16", rematerialize="everything")
    config.loss.mask_group_rows = 3
    config.optimizer.peak_learning_rate = 1.5e-3
    config.optimizer.clip_norm = 1.0
    config.loop.steps = 400_000
    config.frames_per_step = 360_000
    config.row_multiple = 128
    return config
