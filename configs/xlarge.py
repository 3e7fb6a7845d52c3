"""HuBERT X-LARGE: 48 layers of width 1280, targets and data as LARGE."""

from ml_collections import ConfigDict

from configs import large

PARTS = large.PARTS


def get_config(part: str = "train") -> ConfigDict:
    """The part of one job."""
    if part == "train":
        return train()
    config = large.get_config(part)
    config.workdir = "runs/xlarge"
    if part == "label":
        config.audio = ("runs/xlarge/prepare/train",)
    return config


def train() -> ConfigDict:
    """400,000 steps of 256 devices x 22.5 s = 5,760 s of audio = 288,000 frames."""
    config = large.train()
    config.workdir = "runs/xlarge"
    config.audio = "runs/xlarge/prepare/train"
    config.labels = ("runs/xlarge/label/train",)
    config.architecture.update(dim=1280, num_layers=48, ffn_dim=5120, num_heads=16)
    config.head.projection_dim = 1024
    config.loss.mask_group_rows = 1
    config.optimizer.peak_learning_rate = 3e-3
    config.frames_per_step = 288_000
    config.row_multiple = 256
    return config
