"""Fine-tuning X-LARGE with CTC: `--config=configs/finetune/xlarge.py:10h`; values are LARGE's."""

from ml_collections import ConfigDict

from configs import xlarge
from configs.finetune import large

# The paper prints none for X-LARGE alone.
TABLE = large.TABLE
PARTS = large.PARTS


def get_config(part: str) -> ConfigDict:
    """The fine-tuning job for one amount of speech."""
    config = large.get_config(part)
    config.workdir = f"runs/finetune/xlarge_{part}"
    config.init_from = "orbax:runs/xlarge/train/checkpoints"
    config.architecture = xlarge.train().architecture
    # 8 devices x 40 s of audio.
    config.frames_per_step = 16_000
    return config
