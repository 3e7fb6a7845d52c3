"""Fine-tuning LARGE with CTC: `--config=configs/finetune/large.py:10h`; values as in `base.py`."""

from ml_collections import ConfigDict

from configs import large
from configs.finetune import base

# Columns as in `base.TABLE`.
TABLE = {
    "10min": (1e-4, 13_000, 10_000, 0.65, 0.25),
    "1h": (3e-4, 13_000, 10_000, 0.75, 0.25),
    "10h": (1e-4, 20_000, 10_000, 0.75, 0.25),
    "100h": (3e-5, 80_000, 10_000, 0.5, 0.5),
    "960h": (3e-5, 320_000, 10_000, 0.5, 0.25),
}
PARTS = tuple(TABLE)


def get_config(part: str) -> ConfigDict:
    """The fine-tuning job for one amount of speech."""
    config = base.ctc(*TABLE[part])
    config.workdir = f"runs/finetune/large_{part}"
    config.init_from = "orbax:runs/large/train/checkpoints"
    pretrained = large.train()
    config.architecture, config.execution = pretrained.architecture, pretrained.execution
    config.regularization = dict(base.REGULARIZATION, frontend_gradient_scale=1.0)
    # 8 devices x 80 s of audio.
    config.frames_per_step = 32_000
    return config
