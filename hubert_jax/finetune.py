"""Fine-tunes a pre-trained network with CTC on transcribed speech.

Reads an audio split with transcripts (prepare) and a network: the checkpoints of a pre-training
run (train) or public weights of another library. With an empty config.init_from the same network
learns from scratch. Audio is never cropped.
Writes WORKDIR/finetune/checkpoints, metrics.jsonl, tensorboard/ and, at the end,
WORKDIR/finetune/result.json. The same command continues an interrupted run. On several hosts,
started on each of them with `--config.processes.coordinator`, it is one run.
"""

import dataclasses
import pathlib
import time

from hubert_jax import config as config_lib
from hubert_jax import files, job
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import HubertConfig
from hubert_jax.training.finetuning import CTCConfig
from hubert_jax.training.loop import LoopConfig
from hubert_jax.training.optimizer import OptimizerConfig
from hubert_jax.training.processes import ProcessesConfig


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Configuration of fine-tuning.

    Attributes:
      workdir: where the run is written.
      audio: directory of a prepared split with transcripts.
      init_from: network to fine-tune: orbax:DIR (checkpoints of a pre-training run), hf:DIR,
        fairseq:FILE or torchaudio:FILE; a CTC head of the same vocabulary is kept; empty: from
        scratch.
      model, ctc, optimizer, loop: see there; the front-end is always frozen, unless the network
        is trained from scratch, when there is nothing in it worth keeping.
      frames_per_step: padded frames (20 ms) of one update over all devices.
      padded_frames: the padded lengths that may occur, each compiled once; longer utterances are
        left out.
      processes: that train together, see there.
      seed: of the linear layer, data order, masks and dropout.
    """

    workdir: str
    audio: str
    init_from: str
    loop: LoopConfig
    model: HubertConfig = HubertConfig()
    ctc: CTCConfig = CTCConfig()
    optimizer: OptimizerConfig = OptimizerConfig(
        peak_learning_rate=2e-5,
        epsilon=1e-8,
        weight_decay=0.0,
        clip_norm=0.0,
        schedule="tri_stage",
        warmup_share=0.1,
        hold_share=0.4,
    )
    frames_per_step: int = 80_000
    padded_frames: tuple[int, ...] = (256, 384, 512, 640, 768, 1280)
    processes: ProcessesConfig = ProcessesConfig()
    seed: int = 1337


def run(config: FinetuneConfig) -> dict:
    """Fine-tunes; returns the content of `WORKDIR/finetune/result.json`.

    Raises:
      InputError: inputs that do not fit together, before anything expensive starts.
    """
    started = time.monotonic()
    directory = files.require_writable(config.workdir) / "finetune"
    from hubert_jax.data import manifests

    manifest = manifests.read_manifest(config.audio)
    if manifest.transcribed < manifest.utterances:
        raise InputError(
            f"{config.audio}: {manifest.utterances - manifest.transcribed} of "
            f"{manifest.utterances} utterances have no transcript; fine-tune on a transcribed split"
        )
    import jax

    from hubert_jax.data import batches, buckets, schedule
    from hubert_jax.model.transformer import attention_backend
    from hubert_jax.training import finetuning, processes, sharding, state
    from hubert_jax.training.checkpoint import identity
    from hubert_jax.training.loop import run_digest, run_loop
    from hubert_jax.vocabulary import LIBRISPEECH

    processes.join(config.processes)
    vocabulary = LIBRISPEECH
    mesh = sharding.make_mesh()
    plan = schedule.BucketSchedule(
        schedule.padded_buckets(
            manifest,
            buckets.BUCKETS,
            config.frames_per_step,
            config.padded_frames,
            jax.device_count(),
        ),
        config.seed,
    )
    optimizer = finetuning.FinetuningOptimizer(
        config.optimizer,
        config.loop.steps,
        train_frontend=not config.init_from,
        head_learning_rate_scale=config.ctc.head_learning_rate_scale,
    )
    inputs = {
        "audio": manifest.digest,
        "finetune": run_digest(config, ("workdir", "audio", "init_from", "processes")),
    }
    start = None
    if config.init_from:
        from hubert_jax.convert import continuing

        start = continuing.for_finetuning(config.init_from, config.model, vocabulary)
        inputs["init_from"] = start.identity

    init = finetuning.init_ctc(config.model, vocabulary.size)
    abstract = state.abstract_state(init, optimizer, mesh)

    def new_state():
        created = state.create_state(init, optimizer, mesh, config.seed)
        if start is None:
            return created
        processes.announce(start.description)
        return state.with_parameters(created, start.params)

    objective = finetuning.ctc_objective(
        config.model, config.ctc, vocabulary.size, train_frontend=not config.init_from
    )
    update = finetuning.finetuning_step(objective, optimizer, config.seed)
    freeze_steps = config.ctc.freeze_steps if config.init_from else 0
    metadata = {
        "kind": "ctc",
        "model": config_lib.to_dict(config.model),
        "inputs": inputs,
        "config": config_lib.to_dict(config),
        "vocabulary": vocabulary.to_dict(),
    }
    processes.announce(
        f"fine-tuning {'from ' + config.init_from if config.init_from else 'from scratch'}: "
        f"{manifest.seconds / 3600:.2f} h, {config.loop.steps} steps; "
        f"attention by {attention_backend(config.model, deterministic=False)}"
    )
    outcome = run_loop(
        config.loop,
        directory,
        metadata,
        mesh,
        new_state,
        abstract,
        lambda step: lambda state, batch: update(state, batch, step < freeze_steps),
        lambda first_step: finetuning.with_labels(
            batches.finetuning_batches(
                pathlib.Path(config.audio),
                manifest,
                plan,
                seed=config.seed,
                first_step=first_step,
                last_step=config.loop.steps,
                normalize_waveform=config.model.normalize_waveform,
                host=batches.Host(jax.process_index(), jax.process_count()),
            ),
            vocabulary,
        ),
    )
    result = {
        "steps": config.loop.steps,
        "checkpoint": str(directory / "checkpoints"),
        "checkpoint_identity": identity({**metadata, "step": config.loop.steps}),
        "from_scratch": not config.init_from,
        "audio_seconds": manifest.seconds,
        **dataclasses.asdict(outcome),
        "inputs": inputs,
    }
    return job.finish(config.workdir, "finetune", result, started, write=processes.is_first())


if __name__ == "__main__":
    job.main("finetune", FinetuneConfig, run)
