"""The demonstration, as small as it can be: every stage in seconds."""

from ml_collections import ConfigDict

from configs import demo


def get_config(part: str = "pipeline") -> ConfigDict:
    """The whole; --config.stages.prepare.corpus says where the speech is."""
    config = demo.get_config(part)
    config.expected_seconds = None  # which are of the demonstration's size
    config.stages.prepare.splits = ("train", "train-clean-5=train", "dev-mini")
    clustering = dict(num_clusters=12, fit_max_frames=2_000, kmeans=dict(n_init=1, max_iter=5))
    for name in ("it1", "it2", "longer"):
        iteration = config.stages[name]
        shrink(iteration.train)
        iteration.evaluate.update(clustering, layers=(1,))
    for name in ("it1", "it2"):
        config.stages[name].label.update(clustering)
    config.stages.it2.label.layer = 1
    for name in ("pretrained", "scratch"):
        recogniser = config.stages[name]
        recogniser.finetune.update(_network())
        recogniser.finetune.loop.update(steps=4, log_every=2, save_every=2)
        recogniser.finetune.ctc.freeze_steps = 2
        recogniser.finetune.frames_per_step = 768
        recogniser.finetune.padded_frames = (384,)
        recogniser.decode.search = dict(beam=5, beam_tokens=5)
    return config


def shrink(train: ConfigDict) -> None:
    """Makes a pre-training tiny."""
    train.update(_network())
    train.head.update(codebook_sizes=(12,), projection_dim=8)
    train.loop.update(steps=6, log_every=2, save_every=2)
    train.frames_per_step = 256
    train.loss.mask_group_rows = 1
    train.loss.alpha_steps = tuple(range(len(train.loss.alpha)))


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
