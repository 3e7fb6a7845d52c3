"""Exports a network as a directory that Hugging Face transformers loads, with its model card.

Reads a checkpoint (train, finetune) and writes WORKDIR/export/model and result.json. With an audio
split, and transformers and torch installed, it prints the largest difference of hidden states.
The card says what the checkpoint, and results of `decode`, tell, and what is unknown. With
config.programs it writes WORKDIR/export/programs too: StableHLO that jax runs without this package,
for any batch and length.
"""

import dataclasses
import itertools
import pathlib
import re
import time
from typing import Any

from hubert_jax import files, job, storage
from hubert_jax.config import MayChange, Reads
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Execution

_COMPARED_UTTERANCES = 10
# What the card has of a result of decode.
_OF_CARD = ("fingerprint", "config", "wer", "cer", "word_errors", "transcribed", "words")

VERSION = 4  # raise it when the same configuration and inputs give another output


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Configuration of the export."""

    workdir: MayChange[str]
    checkpoint: Reads[str]  # orbax:DIR[@STEP], fairseq:FILE, torchaudio:FILE or hf:DIR
    out: str = ""  # the model directory; empty: WORKDIR/export/model
    audio: Reads[str] = ""  # prepared split to compare on, if any
    decoded: Reads[tuple[str, ...]] = ()  # WORKDIR/decode of the checkpoint, for the card
    lm: Reads[str] = ""  # n-gram that is put into the directory, if any
    license: str = "unknown"  # for the card, as Hugging Face names it, such as apache-2.0
    languages: tuple[str, ...] = ()  # for the card, such as en
    programs: tuple[str, ...] = ()  # emissions, and layer_N for the hidden states of layer N
    execution: MayChange[Execution] = Execution()  # of our network in the comparison

    def __post_init__(self) -> None:
        for key, values, example in (
            ("license", (self.license,), "apache-2.0"),
            ("languages", self.languages, "en"),
        ):
            for value in values:
                if not re.fullmatch(r"[a-z0-9][A-Za-z0-9.+-]*", value):
                    raise InputError(
                        f"config.{key}={value!r}: expected a name of Hugging Face's, such as "
                        f"{example}"
                    )


def run(config: ExportConfig) -> dict:
    """Exports; returns the content of `WORKDIR/export/result.json`.

    Raises InputError for an unusable network, or where `out` is something else than a model.
    """
    started = time.monotonic()
    workdir = files.require_writable(config.workdir)
    import numpy as np

    from hubert_jax.convert import formats
    from hubert_jax.convert.hugging_face import LANGUAGE_MODEL
    from hubert_jax.language import ngram
    from hubert_jax.networks.programs import require_programs, write_programs
    from hubert_jax.report.model_card import model_card

    if config.audio:
        from hubert_jax.data import manifests, records

        manifest = manifests.read_manifest(config.audio)
    if config.lm:
        ngram.words(config.lm)
    network = formats.read(config.checkpoint, "config.checkpoint")
    if broken := [name for name, leaf in network.flat.items() if not np.isfinite(leaf).all()]:
        raise InputError(
            f"config.checkpoint={config.checkpoint}: NaN or infinite in {len(broken)} parameters, "
            f"such as {broken[0]}; training diverged: export an earlier step (orbax:DIR@STEP)"
        )
    require_programs(network, config.programs)
    out = config.out or str(workdir / "export" / "model")
    source = formats.parse(config.checkpoint, "config.checkpoint")[1]
    if source.resolve() == storage.path(out).resolve():
        raise InputError(f"config.out={out}: the same place as config.checkpoint")
    lm = f"{LANGUAGE_MODEL}/{storage.path(config.lm).name}" if config.lm else ""
    results = [_decoded(path, network.fingerprint) for path in config.decoded]
    name = storage.path(config.out or config.workdir).absolute().name
    about = (config.license, config.languages, lm)
    more: dict[str, str | pathlib.Path] = {"README.md": model_card(network, name, results, *about)}
    if lm:
        more[lm] = storage.path(config.lm)
    written = formats.write(f"hf:{out}", network, "config.out", more)
    (workdir / "export" / "result.json").unlink(missing_ok=True)  # of the model that was there
    programs = {}
    if config.programs:
        directory = workdir / "export" / "programs"
        programs = write_programs(directory, network, config.programs)
        print(f"{', '.join(config.programs)} as StableHLO in {directory}", flush=True)
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
        "programs": programs,
    }
    print(f"{result['parameters']:,} parameters in {out}", flush=True)
    return job.finish(config.workdir, "export", result, started)


def _decoded(path: str, fingerprint: str) -> dict[str, Any]:
    """A result of the decode job; InputError for that of another network."""
    found = files.read_json(f"{path}/result.json", "result of decode", "hubert_jax.decode")
    known = found if isinstance(found, dict) else {}
    if known.get("job") != "decode" or not {*_OF_CARD} <= {*known}:
        raise InputError(
            f"{path}/result.json: expected a result of decode, with {', '.join(_OF_CARD)}; give "
            "the command of hubert_jax.decode again"
        )
    if known["fingerprint"] != fingerprint:
        raise InputError(
            f"config.decoded={path}: not of config.checkpoint, whose fingerprint is "
            f"{fingerprint[:12]}; expected WORKDIR/decode of this checkpoint"
        )
    return found


if __name__ == "__main__":
    job.main("export", ExportConfig, run)
