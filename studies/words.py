"""What pre-training, transcripts, language models and searched weights do for words: a table.

    python -m studies.words --corpus=FOLDER [--splits=NAME=FOLDER,...] [--workdir=runs/words]
        [--kenlm=DIR] [--pretraining=2400,600] [--tuning=3000,800] [--networks=scratch,it1,it2]

A network of the demonstration's size is pre-trained for two iterations of `--pretraining` steps.
From scratch and after each of them, it is fine-tuned on all transcripts and on ten minutes of them,
for `--tuning` steps; what comes out is decoded on the last two of the splits: greedily, with a
3-gram, with a Transformer, and with the 3-gram by weights that 60 trials on the first of the two
have found. Both language models know the training transcripts alone, with either amount of speech.

`--splits` are four, or those of configs/reference.py: to pre-train on, its transcribed part, to
measure on, to test on. The same command continues an interrupted run. Writes WORKDIR/words.csv and
prints it.
"""

import argparse
import csv
import json
import pathlib
import random
import shutil
from typing import Any

import soundfile

from configs import demo, reference, small
from hubert_jax import config as config_lib
from hubert_jax import files, pipeline
from hubert_jax.prepare import split_folders

TEN_MINUTES = 600.0  # seconds
TRIALS = 60
NETWORKS = {"scratch": "", "it1": "it1/train", "it2": "it2/train"}  # and what they begin from
COLUMNS = (
    *("network", "transcripts", "split", "decoding", "wer", "wer_least", "wer_most"),
    *("cer", "cer_least", "cer_most", "weights"),
)


def ten_minutes(sources: list[pathlib.Path], target: pathlib.Path, seed: int = 0) -> None:
    """Copies ten minutes of folders of LibriSpeech, drawn by utterance, with their transcripts.

    Fewer by part of an utterance; another `seed` draws others.
    """
    audio = sorted(
        (path.stem, path, source)
        for source in sources
        for path in source.rglob("*")
        if path.suffix in (".flac", ".opus")
    )
    random.Random(seed).shuffle(audio)
    seconds = 0.0
    for name, path, source in audio:
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
            file.writelines(line for line in lines if line.startswith(f"{name} "))


class Study:
    """The stages of the study, by group; `splits` are prepared splits, in the order above."""

    def __init__(
        self, prepare: dict[str, Any], splits: list[str], kenlm: str, networks: list[str]
    ) -> None:
        self.untranscribed, self.transcribed, self.dev, self.test = splits
        named = "prepare:{}".format
        self.stages: dict[str, Any] = {"prepare": prepare}
        self.networks = {name: NETWORKS[name] for name in networks}
        self.amounts = {"all": self.transcribed, "ten": "ten-minutes"}
        for job, others in (("lm", dict(kenlm=kenlm)), ("train_lm", {})):
            values = small.get_config(job).to_dict() | others
            measured = "measured_on" if job == "lm" else "validation_audio"
            for key in ("workdir", "audio", measured):
                del values[key]
            values["inputs"] = dict(audio=(named(self.transcribed),))
            values["inputs"][measured] = named(self.dev)
            self.stages.setdefault("words", {})[job] = values

    def pretrain(self, steps: tuple[int, int]) -> None:
        """Two iterations: the demonstration's, with other numbers of steps and fewer masks."""
        recipe = demo.pipeline(*steps, 0).stages.to_dict()
        for name in ("it1", "it2") if "it2" in self.networks else ("it1",):
            label, train = recipe[name]["label"], recipe[name]["train"]
            audio = f"prepare:{self.untranscribed}"
            label["inputs"]["audio"] = (audio,)
            train["inputs"]["audio"] = audio
            train["inputs"]["labels"] = (f"{name}/label:{self.untranscribed}",)
            train["loss"]["mask_probability"] = 0.5  # for 0.8, PNMI 0.378 for 0.371
            self.stages[name] = dict(label=label, train=train)

    def tune(self, steps: tuple[int, int]) -> None:
        """Each network on either amount of transcribed speech, decoded in all ways but one.

        With smaller steps than the demonstration's, and Muon: by as much audio, from one of its
        networks, the CER was 59.0 % for 61.4 % (Muon, its steps) and 61.5 % (Adam).
        """
        for network, init_from in self.networks.items():
            for (amount, split), length in zip(self.amounts.items(), steps, strict=True):
                tuned = demo.finetuning(length, 1e-3, length // 10) | dict(frames_per_step=1024)
                tuned["optimizer"]["name"] = "muon"
                tuned["inputs"] = dict(audio=f"prepare:{split}")
                if init_from:
                    tuned["inputs"]["init_from"] = init_from
                else:
                    tuned["init_from"] = ""
                group = f"{network}_{amount}"
                self.stages[group] = dict(finetune=tuned)
                for part in (self.dev, self.test):
                    self.decode(group, part, "ngram")
                    self.decode(group, part, "transformer", rescore="words/train_lm")
                self.decode(group, self.dev, "searched", weights=True)

    def decode(
        self,
        group: str,
        split: str,
        way: str,
        rescore: str = "",
        weights: bool = False,
        search: dict[str, Any] | None = None,
    ) -> None:
        """Beam search of words, with the demonstration's weights or those of `search`."""
        inputs = dict(checkpoint=f"{group}/finetune", audio=f"prepare:{split}", lm="words/lm")
        values = demo.recognition(group, 1)["decode"] | dict(inputs=inputs)
        del values["lm"]
        values["search"] |= dict(beam_threshold=15.0)  # nats; 100 takes twice as long
        if rescore:
            inputs["rescore"] = rescore
            values["search"] = dict(values["search"], n_best=100)
        if weights:
            values["weights"] = dict(trials=TRIALS, lm_weight=(0.0, 4.0))
        if search:
            values["search"] = search
        self.stages[f"{group}_{split}_{way}"] = dict(decode=values)

    def decoded(self) -> list[tuple[str, str, str, str, str]]:
        """Network, amount, split, way and group of everything that is decoded, in order."""
        return [
            (network, amount, split, way, group)
            for network in self.networks
            for amount in self.amounts
            for split in (self.dev, self.test)
            for way in ("ngram", "transformer", "searched")
            if (group := f"{network}_{amount}_{split}_{way}") in self.stages
        ]


def table(workdir: pathlib.Path, study: Study) -> list[dict[str, Any]]:
    """A line for each network, amount, split and decoding."""
    lines = []
    for network, amount, split, decoding, group in study.decoded():
        result = json.loads((workdir / group / "decode" / "result.json").read_text())
        ways = {"greedy": "greedy"} if decoding == "ngram" else {}
        for way, name in (ways | {"beam": decoding}).items():
            line = {"network": network, "transcripts": amount, "split": split, "decoding": name}
            for key, errors in (("wer", "word_errors"), ("cer", "character_errors")):
                found = result[errors][way]
                line[key] = found["rate"]
                line[f"{key}_least"], line[f"{key}_most"] = found["interval"]
            search = result["config"]["search"]
            if way == "beam":
                line["weights"] = f"{search['lm_weight']:.3g} {search['word_score']:.3g}"
            lines.append(line)
    return lines


def _two(text: str) -> tuple[int, int]:
    first, second = map(int, text.split(","))
    return first, second


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/words"))
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--splits", default=",".join(reference.SPLITS))
    parser.add_argument("--kenlm", default="", help="folder of lmplz and build_binary")
    parser.add_argument("--pretraining", type=_two, default="2400,600", metavar="STEPS,STEPS")
    parser.add_argument("--tuning", type=_two, default="3000,800", metavar="STEPS,STEPS")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="some of them")
    asked = parser.parse_args()
    workdir = asked.workdir.absolute()
    splits = split_folders(tuple(asked.splits.split(",")))
    study = Study(
        dict(corpus=asked.corpus, splits=(*asked.splits.split(","), f"ten-minutes={workdir}/ten")),
        list(splits),
        asked.kenlm,
        asked.networks.split(","),
    )
    if not (workdir / "ten").exists():
        with files.writing_directory(workdir / "ten") as aside:
            sources = [pathlib.Path(asked.corpus, each) for each in splits[study.transcribed]]
            ten_minutes(sources, aside)
    study.pretrain(asked.pretraining)
    study.tune(asked.tuning)

    def run() -> None:
        values = dict(workdir=str(workdir), stages=study.stages)
        pipeline.run(config_lib.build(pipeline.PipelineConfig, values))

    run()
    for network in study.networks:
        for amount in study.amounts:
            tuned = f"{network}_{amount}"
            found = workdir / f"{tuned}_{study.dev}_searched" / "decode" / "result.json"
            search = json.loads(found.read_text())["config"]["search"]
            study.decode(tuned, study.test, "searched", search=search)
    run()
    lines = table(workdir, study)
    with (workdir / "words.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
    print((workdir / "words.csv").read_text(), end="")


if __name__ == "__main__":
    main()
