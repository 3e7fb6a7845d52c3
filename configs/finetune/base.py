"""Fine-tuning BASE with CTC: `--config=configs/finetune/base.py:10h`.

The paper sweeps these values and prints only the ranges. `10h` is the released configuration of
HuBERT, the others are wav2vec 2.0's, whose architecture is the same. They start from the second
iteration; the embedded corpus takes the place of the transcribed LibriSpeech subset unless
--config.audio says otherwise.
"""

from ml_collections import ConfigDict

from configs import base_it1

# Peak learning rate, steps, steps with the network frozen, share of masked time and of masked
# channels.
TABLE = {
    "10min": (5e-5, 13_000, 10_000, 0.65, 0.25),
    "1h": (5e-5, 13_000, 10_000, 0.65, 0.25),
    "10h": (2e-5, 25_000, 10_000, 0.75, 0.5),
    "100h": (3e-5, 80_000, 0, 0.65, 0.5),
    "960h": (1e-4, 320_000, 0, 0.5, 0.1),
}
PARTS = tuple(TABLE)
REGULARIZATION = dict(
    dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.1,
    input_dropout=0.0,
    layer_drop=0.1,
)


def get_config(part: str) -> ConfigDict:
    """The fine-tuning job for one amount of speech."""
    config = ctc(*TABLE[part])
    config.workdir = f"runs/finetune/base_{part}"
    config.init_from = "orbax:runs/base_it2/train/checkpoints"
    config.architecture = base_it1.train().architecture
    config.regularization = REGULARIZATION
    # 8 devices x 200 s of audio.
    config.frames_per_step = 80_000
    if part == "10h":
        # As released: warm-up over 8,000 steps, no hold, decay over 72,000 steps, of which the run
        # sees 17,000: it ends at 0.49 of the peak.
        config.optimizer.update(warmup_fraction=0.32, hold_fraction=0.0, decay_fraction=2.88)
    return config


def ctc(
    peak_learning_rate: float,
    steps: int,
    freeze_steps: int,
    time_mask_probability: float,
    channel_mask_probability: float,
) -> ConfigDict:
    """What BASE and LARGE share; the caller adds the network, the batch and the paths."""
    return ConfigDict(
        dict(
            audio="runs/base_it1/prepare/train-clean-5",
            loop=dict(steps=steps, log_every=200, save_every=1_000, keep=2),
            ctc=dict(
                freeze_steps=freeze_steps,
                time_mask_probability=time_mask_probability,
                time_mask_span=10,
                channel_mask_probability=channel_mask_probability,
                channel_mask_span=64,
                final_dropout=0.0,
            ),
            optimizer=dict(
                name="adam",
                peak_learning_rate=peak_learning_rate,
                beta1=0.9,
                beta2=0.98,
                epsilon=1e-8,
                weight_decay=0.0,
                clip_norm=0.0,
                schedule="tri_stage",
                warmup_fraction=0.1,
                hold_fraction=0.4,
            ),
            row_multiple=8,  # the devices; of fewer, a batch has the same rows
            seed=1337,
        )
    )
