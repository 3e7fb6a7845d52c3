"""Variants of the demonstration, one after the other, and a table of what each found.

    python -m studies.demo [--runs=runs/studies] [--begin=DIR] [--seeds=0,1,2] [VARIANT ...]

A VARIANT is NAME:KEY=VALUE,KEY=VALUE..., KEY being one of configs/demo.py such as
stages.it1.train.loop.steps, or `tuning` for the steps of both fine-tunings; none is the
demonstration as it is. Each runs with every one of the seeds, which are added to all seeds of the
configuration, in RUNS/NAME-SEED; a run that was interrupted goes on. `--begin` names the working
directory of another run, whose finished stages are taken over where the variant leaves them as they
are: what changes fine-tuning alone need not train again.

Prints a line for each run when it ends, and writes all lines to RUNS/tried.csv.
"""

import argparse
import ast
import csv
import json
import pathlib
import shutil
from typing import Any

from ml_collections import ConfigDict

from configs import demo
from hubert_jax import config as config_lib
from hubert_jax import pipeline

COLUMNS = (
    *("run", "minutes", "mfcc", "it1", "over_mfcc_least", "untrained", "mfcc_after", "it1_after"),
    *("it2", "control", "cer", "cer_scratch", "wer_greedy", "wer"),
)


def variant(changes: dict[str, Any], seed: int) -> ConfigDict:
    """The demonstration's configuration with other values, and `seed` added to its seeds."""
    config, changes = demo.get_config(), dict(changes)
    steps = changes.pop("tuning", None)
    for group in ("pretrained", "scratch") if steps else ():
        config.stages[group].finetune.loop.steps = steps
        config.stages[group].finetune.ctc.freeze_steps = steps // 10
    for key, value in changes.items():
        *path, name = key.split(".")
        part = config
        for each in path:
            part = part[each]
        if name not in part:
            raise SystemExit(f"error: {key}: no such key; there are {', '.join(sorted(part))}")
        part[name] = value
    _reseed(config.stages, seed)
    return config


def _reseed(part: ConfigDict, seed: int) -> None:
    for key, value in part.items():
        if isinstance(value, ConfigDict):
            _reseed(value, seed)
        elif key == "seed":
            part[key] = value + seed


def found(name: str, report: dict) -> dict[str, Any]:
    """A run's line of the table, from its report.json."""
    iterations = {each["name"]: each for each in report["iterations"]}
    first = iterations["it1"]
    layer = str(first["best_layer"])
    best = {
        each: found["pnmi_by_layer"][str(found["best_layer"])] for each, found in iterations.items()
    }
    return {
        "run": name,
        "minutes": round(sum(report["seconds"].values()) / 60, 1),
        "mfcc": report["mfcc"]["pnmi"],
        "it1": best["it1"],
        "over_mfcc_least": first["best_over_mfcc"]["utterances"][0],
        "untrained": first["untrained_pnmi_by_layer"][layer],
        "mfcc_after": report["mfcc"]["after_steps"]["pnmi"],
        "it1_after": first["after_steps"]["pnmi"],
        "it2": best["it2"],
        "control": best["longer"],
        "cer": report["greedy_cer"]["pretrained"],
        "cer_scratch": report["greedy_cer"]["scratch"],
        "wer_greedy": report["greedy_wer"]["pretrained"],
        "wer": report["wer"]["pretrained"],
    }


def main() -> None:
    """Runs the variants that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/studies"))
    parser.add_argument("--begin", type=pathlib.Path)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("variants", nargs="*", default=["demo:"])
    asked = parser.parse_args()
    lines = []
    for text in asked.variants:
        name, _, given = text.partition(":")
        changes = dict(pair.split("=") for pair in given.split(",") if pair)
        for seed in map(int, asked.seeds.split(",")):
            workdir = asked.runs / f"{name}-{seed}"
            values = {key: ast.literal_eval(value) for key, value in changes.items()}
            config = variant(values, seed)
            if asked.begin and not workdir.exists():
                shutil.copytree(asked.begin, workdir)
            config.workdir = str(workdir)
            pipeline.run(config_lib.build(pipeline.PipelineConfig, config.to_dict()))
            report = json.loads((workdir / "report.json").read_text())
            lines.append(found(workdir.name, report))
            print("  ".join(f"{key} {value}" for key, value in lines[-1].items()), flush=True)
            with (asked.runs / "tried.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(lines)


if __name__ == "__main__":
    main()
