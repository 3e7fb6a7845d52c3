"""The word Transformer of the paper's decoding: `python -m hubert_jax.train_lm --config=...`.

Network, batch, dropout and warm-up are those of wav2letter's recipe for LibriSpeech, which trained
it for 48 passes of 800 million words on 128 GPUs, to a perplexity of 48 on dev-clean. That used
Nesterov's momentum with a rate of 1; Adam's rate here is not tuned.
"""

from ml_collections import ConfigDict

PARTS = ("train_lm",)


def get_config(part: str = "train_lm") -> ConfigDict:
    """The job; --config.texts=librispeech-lm-norm.txt.gz says where the text is."""
    return ConfigDict(
        dict(
            workdir="runs/transformer_lm",
            texts=("librispeech-lm-norm.txt.gz",),
            validation_audio="runs/base_it1/prepare/dev-mini",
            unit="word",
            vocabulary_size=220_000,  # those that occur ten times or more
            architecture=dict(
                dim=1280, num_layers=20, ffn_dim=6144, num_heads=16, cutoffs=(60_000, 160_000)
            ),
            dropout=0.1,
            attention_dropout=0.1,
            execution=dict(dtype="bfloat16", rematerialize="everything"),
            optimizer=dict(
                name="adam",
                peak_learning_rate=2e-4,
                weight_decay=0.0,
                clip_norm=0.1,
                schedule="linear",
                warmup_fraction=0.107,
            ),
            loop=dict(steps=150_000, log_every=200, save_every=5_000, keep=2),
            tokens_per_step=262_144,
            row_multiple=128,
            seed=1337,
        )
    )
