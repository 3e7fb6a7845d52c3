"""The demonstration, as small as it can be: every stage in seconds."""

from ml_collections import ConfigDict

from configs import demo


def get_config(part: str = "pipeline") -> ConfigDict:
    """The whole; --config.prepare.corpus and --config.alignments say where the speech is."""
    config = demo.get_config(part)
    config.prepare.splits = ("train", "train-clean-5=train", "dev-mini")
    for iteration in config.iterations.values():
        iteration.label.num_clusters = 12
        iteration.label.fit_max_frames = 2_000
        iteration.train.update(_network())
        iteration.train.head.update(codebook_sizes=(12,), projection_dim=8)
        iteration.train.loop.update(steps=6, log_every=2, save_every=2)
        iteration.train.frames_per_step = 256
        iteration.train.loss.alpha_steps = tuple(range(len(iteration.train.loss.alpha)))
    config.iterations.it2.label.layer = 1
    config.evaluate.update(num_clusters=12, fit_max_frames=2_000)
    config.finetune.update(_network())
    config.finetune.loop.update(steps=4, log_every=2, save_every=2)
    config.finetune.ctc.freeze_steps = 2
    config.finetune.frames_per_step = 768
    config.finetune.padded_frames = (384,)
    config.decode.beam_size = 2
    return config


def _network() -> dict:
    network = demo.network()
    network["architecture"].update(
        conv_channels=(8,) * 7,
        dim=16,
        num_layers=2,
        ffn_dim=32,
        num_heads=2,
        positional_kernel=16,
        positional_groups=4,
    )
    network["execution"].update(scan_unroll=1)
    return network
