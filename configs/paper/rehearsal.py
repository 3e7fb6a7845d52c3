"""What a rehearsal shrinks: the corpus, steps, lengths, validation and, unless `full`, widths.

Stages, keys, layers, heads, norms, codebooks, schedules, dtypes and mask groups stay the paper's.
The report says of every stage what it has proven, and what differs.
"""

import copy

from ml_collections import ConfigDict

_TRAINING, _EVALUATION = "short/train.tsv", "short/dev.tsv"  # utterances of up to 256 frames
_UNLABELLED = "train-clean-100/909+train-clean-100/83+train-clean-100/248+train-clean-100/1246"
_CUT_SECONDS = 5.0  # of what is not transcribed, so that it fits as well
_PADDED = 256
_CROP = 32  # frames
_HEAD_DIM = 4
_DEVICES = 8
# Where they are not all along `data`.
_MESHES = {
    "large/train": dict(fsdp=2),
    "xlarge/train": dict(fsdp=2, tensor=2),
    "base/finetune": dict(tensor=4),
    "large/finetune": dict(fsdp=2, tensor=4),
    "xlarge/finetune": dict(tensor=8),
}


def rehearse(config: ConfigDict, full_width: bool) -> None:
    """Shrinks a pipeline of this directory to some utterances of the embedded corpus.

    With `full_width` the networks stay whole and are on one device; what is left is BASE with its
    fine-tuning on 10 h, and LARGE's training.
    """
    config.workdir += "_full" if full_width else "_rehearsal"
    if full_width:
        _keep_base_and_large(config)
    config.recipe = copy.deepcopy(config.stages)
    prepare = config.stages.prepare
    prepare.corpus = "examples/minilibri"
    prepare.cut_seconds = _CUT_SECONDS
    names = [entry.partition("=")[0] for entry in prepare.splits]
    prepare.splits = tuple(f"{name}={_audio(name)}" for name in names)
    for name, group in config.stages.items():
        if name == "prepare":
            continue
        for job, stage in group.items():
            _shrink(name.partition("_")[0], job, stage, full_width)


def _audio(split: str) -> str:
    if split == "60kh":
        return _UNLABELLED
    return _EVALUATION if split.startswith(("dev", "test")) else _TRAINING


def _shrink(network: str, job: str, stage: ConfigDict, full_width: bool) -> None:
    if job == "label":
        stage.update(fit_max_frames=20_000, fit_fraction=1.0)
        stage.kmeans.update(n_init=1, max_iter=5)
    if job == "evaluate":
        kmeans = dict(n_init=1, max_iter=5)
        stage.update(layers=(6,), fit_max_frames=2_000, kmeans=kmeans)
    if job not in ("train", "finetune"):
        return
    steps = 1 if full_width and network == "large" else 2
    stage.loop.update(steps=steps, log_every=1, save_every=steps)
    stage.validation = dict(utterances=4)
    rows = 1
    if not full_width:
        _narrow(stage)
        stage.mesh = _MESHES.get(f"{network}/{job}", {})
        rows = _DEVICES // stage.mesh.get("tensor", 1)  # one on every device
    if job == "train":
        stage.max_frames = _CROP
        # A group of rows on each device; of BASE's 40 rows its row_multiple leaves 32.
        stage.frames_per_step = rows * stage.loss.mask_group_rows * _CROP
    else:
        stage.padded_frames = (_PADDED,)
        stage.frames_per_step = rows * _PADDED
        stage.ctc.freeze_steps = min(stage.ctc.freeze_steps, steps // 2)


def _narrow(stage: ConfigDict) -> None:
    dim = stage.architecture.num_heads * _HEAD_DIM
    stage.architecture.update(conv_channels=(8,) * 7, dim=dim, ffn_dim=2 * dim)
    if "head" in stage:
        stage.head.projection_dim = 16


def _keep_base_and_large(config: ConfigDict) -> None:
    for name in list(config.stages):
        network, _, tuned = name.partition("_")
        if network == "xlarge" or (tuned and not name.startswith("base_10h")):
            del config.stages[name]
    for key in ("iterations", "recognisers"):
        config.report[key] = tuple(n for n in config.report[key] if n in config.stages)
