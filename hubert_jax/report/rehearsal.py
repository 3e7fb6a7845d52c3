"""What a rehearsal of a larger pipeline has proven, stage by stage, and what it shrank."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from hubert_jax import config as config_lib


def differences(recipe: Any, rehearsed: Any, left_out: Collection[str]) -> dict[str, list]:
    """Dotted key -> [value of `recipe`, value here], of two configurations of one job.

    Without the keys `left_out`, the workdir and those that name files.
    """
    found: dict[str, list] = {}
    for field in dataclasses.fields(recipe):
        key, values = field.name, [getattr(each, field.name) for each in (recipe, rehearsed)]
        if key in ("workdir", *left_out) or "reads" in config_lib.field_marks(type(recipe), key):
            continue
        if dataclasses.is_dataclass(values[0]):
            below = differences(values[0], values[1], ())
            found |= {f"{key}.{name}": pair for name, pair in below.items()}
        elif values[0] != values[1]:
            found[key] = values
    return found


def proven(config: Any, result: Mapping[str, Any], readers: int) -> str:
    """One line on what a stage's run shows; `readers` is how many stages have read its output."""
    job = result["job"]
    if job == "prepare":
        seconds = sum(split["seconds"] for split in result["splits"].values())
        return f"splits: {len(result['splits'])}, {seconds:.0f} s of audio"
    if job == "label":
        used = next(iter(result["splits"].values()))["used_codewords"]
        return f"K = {result['k']}, {used} of them used for {result['frames']:,} frames"
    if job == "decode":
        found = [
            f"{100 * rate:.0f} % {way}" for way, rate in result["wer"].items() if rate is not None
        ]
        rates = f"WER {', '.join(found)} on " if found else "texts, without transcripts, of "
        return f"{rates}{result['utterances']} utterances"
    if job == "evaluate":
        layers = result.get("pnmi_by_layer", {}).items()
        found = [f"{pnmi:.2f} of layer {layer}" for layer, pnmi in layers]
        found += [f"{scores['pnmi']:.2f} of labels" for scores in result.get("labels", ())]
        return f"PNMI {', '.join(found)}"
    if job not in ("train", "finetune"):
        return "finished"
    mesh = " x ".join(f"{axis} {size}" for axis, size in result["mesh"].items() if size > 1)
    parts = [f"loss {result['last']['loss']:.2f} after {result['steps']} steps"]
    parts += [f"resumed from {result['resumed_from']}"] * bool(result["resumed_from"])
    parts += [f"mesh {mesh or 'of one device'}", config.execution.dtype]
    again = config.execution.rematerialize
    parts += [f"{again.replace('_', ' ')} rematerialised"] * (again != "nothing")
    if job == "train":
        parts.append(f"classes {', '.join(map(str, config.head.codebook_sizes))}")
    parts += ["from a checkpoint"] * bool(result["init_from"])
    return ", ".join(parts + [f"checkpoint read by {readers}"] * bool(readers))


def shrunk(found: Mapping[str, list]) -> str:
    """The differences in one line: `KEY BEFORE -> AFTER; ...`."""
    return "; ".join(f"{key} {_short(a)} -> {_short(b)}" for key, (a, b) in found.items()) or "-"


def _short(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        if len(value) > 1 and len({*value}) == 1:
            return f"{len(value)} x {_short(value[0])}"
        return f"({len(value)} entries)" if len(value) > 1 else ", ".join(map(_short, value))
    return f"{value:,}" if type(value) is int else str(value)
