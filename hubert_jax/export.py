"""Exports a network as a directory that Hugging Face transformers loads.

Reads a checkpoint (train, finetune) and writes WORKDIR/export/model and result.json. With an audio
split, and transformers and torch installed, it prints the largest difference of hidden states.
"""

import dataclasses
import itertools
import time

from hubert_jax import files, job
from hubert_jax.config import MayChange, Reads
from hubert_jax.model.architecture import Execution

_COMPARED_UTTERANCES = 10

VERSION = 2  # raise it when the same configuration and inputs give another output


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Configuration of the export."""

    workdir: MayChange[str]
    checkpoint: Reads[str]  # orbax:DIR[@STEP], fairseq:FILE, torchaudio:FILE or hf:DIR
    out: str = ""  # the model directory; empty: WORKDIR/export/model
    audio: Reads[str] = ""  # prepared split to compare on, if any
    execution: MayChange[Execution] = Execution()  # of our network in the comparison


def run(config: ExportConfig) -> dict:
    """Exports; returns the content of `WORKDIR/export/result.json`.

    Raises InputError for an unusable network, or where `out` is something else than a model.
    """
    started = time.monotonic()
    workdir = files.require_writable(config.workdir)
    from hubert_jax.convert import formats

    if config.audio:
        from hubert_jax.data import manifests, records

        manifest = manifests.read_manifest(config.audio)
    network = formats.read(config.checkpoint, "config.checkpoint")
    out = config.out or str(workdir / "export" / "model")
    written = formats.write(f"hf:{out}", network, "config.out")
    (workdir / "export" / "result.json").unlink(missing_ok=True)  # of the model that was there
    notes = [*network.notes, *written.notes]
    for note in notes:
        print(note, flush=True)

    difference, compared = None, 0
    if config.audio:
        from hubert_jax.convert.compare import can_compare, largest_difference

        if can_compare():
            compared = min(_COMPARED_UTTERANCES, manifest.utterances)
            first = itertools.islice(records.read_audio(config.audio), compared)
            audio = (utterance.audio for utterance in first)
            difference = largest_difference(
                out, network.params, network.architecture, audio, config.execution
            )
            print(
                f"largest absolute difference to transformers over {compared} utterances, all "
                f"layers: {difference:.2e}",
                flush=True,
            )
        else:
            print("not compared: transformers and torch are not installed", flush=True)
    result = {
        "kind": network.kind,
        "out": out,
        "parameters": network.num_parameters,
        "max_abs_difference": difference,
        "compared_utterances": compared,
        "notes": notes,
        "inputs": {
            "checkpoint": network.fingerprint,
            **({"audio": manifest.digest} if config.audio else {}),
        },
        "digests": written.digests,
    }
    print(f"{result['parameters']:,} parameters in {out}", flush=True)
    return job.finish(config.workdir, "export", result, started)


if __name__ == "__main__":
    job.main("export", ExportConfig, run)
