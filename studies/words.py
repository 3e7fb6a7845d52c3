"""What pre-training, transcripts, language models and searched weights do for words: a table.

    python -m studies.words [--workdir=runs/words] [--test=FOLDER] [--begin=DIR] [--steps=800,400]

The demonstration's network, from scratch and after each of its two iterations, is fine-tuned on all
of its transcripts and on ten minutes of them (`--steps` of each); what comes out is decoded on
dev-mini and on FOLDER, such as LibriSpeech's test-other: greedily, with the embedded 3-gram, with a
Transformer, and with the 3-gram by weights that 60 trials on dev-mini have found. Both language
models know the training transcripts alone, with either amount of transcribed speech.

The same command continues an interrupted run. `--begin` names the working directory of a
demonstration, whose finished stages are taken over. Writes WORKDIR/words.csv and prints it.
"""

import argparse
import csv
import json
import pathlib
import random
import shutil
from typing import Any

import soundfile

from configs import demo, small
from hubert_jax import config as config_lib
from hubert_jax import files, pipeline

NETWORKS = {"scratch": "", "it1": "it1/train", "it2": "it2/train"}
AMOUNTS = {"all": "train-clean-5", "ten": "ten-minutes"}
TEN_MINUTES = 600.0  # seconds
TRIALS = 60
COLUMNS = (
    *("network", "transcripts", "split", "decoding", "wer", "wer_least", "wer_most"),
    *("cer", "cer_least", "cer_most", "weights"),
)


def ten_minutes(source: pathlib.Path, target: pathlib.Path, seed: int = 0) -> None:
    """Copies ten minutes of a folder of LibriSpeech, drawn by utterance, with their transcripts.

    Fewer by part of an utterance; another `seed` draws others.
    """
    audio = sorted(source.rglob("*.opus"))
    random.Random(seed).shuffle(audio)
    seconds = 0.0
    for path in audio:
        duration = soundfile.info(path).duration
        if seconds + duration > TEN_MINUTES:
            break
        seconds += duration
        folder = target / path.parent.relative_to(source)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
        transcripts = next(path.parent.glob("*.trans.txt"))
        with (folder / transcripts.name).open("a") as file:
            lines = transcripts.read_text().splitlines(keepends=True)
            file.writelines(line for line in lines if line.startswith(f"{path.stem} "))


def stages(corpus: str, steps: tuple[int, int], ten: str, test: str) -> dict[str, Any]:
    """All but the decoding with searched weights of another split than dev-mini."""
    kept = demo.get_config().stages.to_dict()
    splits = {"ten-minutes": ten} | ({"test": test} if test else {})
    kept["prepare"]["splits"] += tuple(f"{name}={folder}" for name, folder in splits.items())
    kept["prepare"]["corpus"] = corpus
    language_model = small.get_config("train_lm").to_dict()
    for key in ("workdir", "audio", "validation_audio"):
        del language_model[key]
    words = dict(language_model, inputs=dict(audio=("prepare:train-clean-5",)))
    words["inputs"]["validation_audio"] = "prepare:dev-mini"
    found = {"prepare": kept["prepare"], "words": dict(train_lm=words)}
    for name in ("it1", "it2"):
        found[name] = {job: kept[name][job] for job in ("label", "train")}
    for network, init_from in NETWORKS.items():
        for (amount, split), length in zip(AMOUNTS.items(), steps, strict=True):
            group = f"{network}-{amount}"
            tuned = demo.finetuning(length, 1e-3, length // 10)
            tuned["inputs"] = dict(audio=f"prepare:{split}")
            if init_from:
                tuned["inputs"]["init_from"] = init_from
            else:
                tuned["init_from"] = ""
            found[group] = dict(finetune=tuned)
            for part in ("dev-mini", *(["test"] if test else ())):
                found[f"{group}-{part}-ngram"] = dict(decode=decoding(group, part))
                found[f"{group}-{part}-transformer"] = dict(decode=decoding(group, part, "words"))
            searched = decoding(group, "dev-mini")
            searched["weights"] = dict(trials=TRIALS, lm_weight=(0.0, 4.0))
            found[f"{group}-dev-mini-searched"] = dict(decode=searched)
    return found


def decoding(group: str, split: str, words: str = "") -> dict[str, Any]:
    """Beam search of words with the demonstration's weights; by a Transformer's texts rescored."""
    inputs = dict(checkpoint=f"{group}/finetune", audio=f"prepare:{split}")
    values = demo.recognition(group, 1)["decode"] | dict(inputs=inputs)
    if words:
        inputs["rescore"] = f"{words}/train_lm"
        values["search"] = dict(values["search"], n_best=100)
    return values


def table(workdir: pathlib.Path, groups: list[str]) -> list[dict[str, Any]]:
    """A line for each network, amount, split and decoding that is finished."""
    lines = []
    for group in groups:
        network, amount, split, decoding = group.replace("dev-mini", "dev_mini").split("-")
        result = json.loads((workdir / group / "decode" / "result.json").read_text())
        ways = {"greedy": "greedy"} if decoding == "ngram" else {}
        for way, name in (ways | {"beam": decoding}).items():
            line = {"network": network, "transcripts": amount, "decoding": name}
            line["split"] = split.replace("_", "-")
            for key, errors in (("wer", "word_errors"), ("cer", "character_errors")):
                found = result[errors][way]
                line[key] = found["rate"]
                line[f"{key}_least"], line[f"{key}_most"] = found["interval"]
            search = result["config"]["search"]
            if way == "beam":
                line["weights"] = f"{search['lm_weight']:.3g} {search['word_score']:.3g}"
            lines.append(line)
    return lines


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/words"))
    parser.add_argument("--corpus", default="examples/minilibri")
    parser.add_argument("--test", default="")
    parser.add_argument("--begin", type=pathlib.Path)
    parser.add_argument("--steps", default="800,400")
    asked = parser.parse_args()
    workdir = asked.workdir.absolute()
    if asked.begin and not workdir.exists():
        shutil.copytree(asked.begin, workdir)
    ten = workdir / "ten-minutes"
    if not ten.exists():
        with files.writing_directory(ten) as aside:
            ten_minutes(pathlib.Path(asked.corpus, AMOUNTS["all"]), aside)
    all_steps, ten_steps = map(int, asked.steps.split(","))
    test = str(pathlib.Path(asked.test).absolute()) if asked.test else ""
    found = stages(asked.corpus, (all_steps, ten_steps), str(ten), test)

    def run() -> None:
        values = dict(workdir=str(workdir), stages=found)
        pipeline.run(config_lib.build(pipeline.PipelineConfig, values))

    run()
    for group in [name for name in found if name.endswith("-searched")] if test else ():
        result = json.loads((workdir / group / "decode" / "result.json").read_text())
        tuned, other = group.removesuffix("-dev-mini-searched"), group.replace("dev-mini", "test")
        searched = dict(decoding(tuned, "test"), search=result["config"]["search"])
        found[other] = dict(decode=searched)
    if test:
        run()
    lines = table(workdir, [name for name, each in found.items() if "decode" in each])
    with (workdir / "words.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
    print((workdir / "words.csv").read_text(), end="")


if __name__ == "__main__":
    main()
