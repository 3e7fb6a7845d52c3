"""What a rehearsal shrinks: the corpus, steps, crops, validation and, unless `full`, widths.

Stages, keys, layers, heads, norms, codebooks, schedules, dtypes and mask groups stay the paper's.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

_FOLDERS = {
    "60kh": "train-clean-100+train-clean-5",
    "960h": "train-clean-5",
    "100h": "train-clean-5/19",
    "10h": "train-clean-5/163",
    "1h": "train-clean-5/118",
    "10min": "train-clean-5/1088",
    "dev": "dev-mini",
    "dev-clean": "dev-mini/1898",
    "dev-other": "dev-mini/3664",
    "test-clean": "dev-mini/5789",
    "test-other": "dev-mini/3664",
}
_HEAD_DIM = 8
_CROP = 256
_LONGEST = 1792  # padded frames
_DEVICES = 8


def rehearse(config: ConfigDict, full_width: bool) -> None:
    """Shrinks a pipeline of this directory to the embedded corpus and a few minutes.

    With `full_width` the networks stay whole, and of the fine-tunes the one on 10 h is left.
    """
    config.workdir += "_full" if full_width else "_rehearsal"
    if full_width:
        _keep_ten_hours(config)
    prepare = config.stages.prepare
    prepare.corpus = "examples/minilibri"
    names = [entry.partition("=")[0] for entry in prepare.splits]
    prepare.splits = tuple(f"{name}={_FOLDERS[name]}" for name in names)
    rows = 1 if full_width else _DEVICES
    for job, stage in _stages(config):
        if job == "label":
            stage.fit_max_frames = 20_000
            stage.kmeans = dict(n_init=1)
        if job == "decode":
            stage.beam_size = 5
        if job not in ("train", "finetune"):
            continue
        steps = 2 if full_width else 4
        stage.loop.update(steps=steps, log_every=1, save_every=2)
        stage.validation = dict(utterances=4)
        if not full_width:
            _narrow(stage)
        if job == "train":
            stage.max_frames = _CROP
            # As many rows as have to be whole groups on every device.
            stage.frames_per_step = rows * stage.loss.mask_group_rows * _CROP
        else:
            stage.frames_per_step = rows * _LONGEST
            stage.ctc.freeze_steps = min(stage.ctc.freeze_steps, steps // 2)


def _stages(config: ConfigDict) -> Iterator[tuple[str, ConfigDict]]:
    """(job, values) of every stage in a group."""
    for name, group in config.stages.items():
        if name != "prepare":
            yield from group.items()


def _narrow(stage: ConfigDict) -> None:
    dim = stage.architecture.num_heads * _HEAD_DIM
    stage.architecture.update(conv_channels=(32,) * 7, dim=dim, ffn_dim=2 * dim)
    if "head" in stage:
        stage.head.projection_dim = 32


def _keep_ten_hours(config: ConfigDict) -> None:
    for name in list(config.stages):
        if any(
            "_" in name and split in name.split("_") for split in ("10min", "1h", "100h", "960h")
        ):
            del config.stages[name]
    config.report.recognisers = tuple(n for n in config.report.recognisers if n in config.stages)
