"""The model card of a network, README.md of a Hugging Face directory: what is known of it, only."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import hubert_jax
from hubert_jax.asr.recognition import is_transformer
from hubert_jax.convert.network import Network
from hubert_jax.frames import SAMPLE_RATE

_UNKNOWN = "unknown"


def model_card(
    network: Network,
    name: str,
    decoded: Sequence[Mapping[str, Any]] = (),
    license: str = _UNKNOWN,
    languages: Sequence[str] = (),
    lm: str = "",
) -> str:
    """The card in Markdown, with Hugging Face's front matter.

    `decoded` are results of the decode job, `license` is one of Hugging Face's names, `lm` the path
    of an n-gram in the directory. What nothing tells is said to be unknown.
    """
    front: dict[str, Any] = {"license": license}
    if languages:
        front["language"] = list(languages)
    ctc = network.vocabulary is not None
    front |= {
        "library_name": "transformers",
        "pipeline_tag": "automatic-speech-recognition" if ctc else "feature-extraction",
        "tags": ["hubert"],
    }
    if scored := [result for result in decoded if result["transcribed"]]:
        front["model-index"] = [{"name": name, "results": [_indexed(each) for each in scored]}]
    # JSON is YAML, whatever a name holds.
    matter = "".join(f"{key}: {json.dumps(value)}\n" for key, value in front.items())
    sections = [
        f"---\n{matter}---\n",
        f"# {name}\n",
        _what(network),
        "## Use\n",
        _use(ctc),
        *(["## Language model\n", _language_model(lm)] if lm else []),
        "## Training data\n",
        _data(network),
        "## Error rates\n",
        _rates(scored),
        "## Languages and licence\n",
        f"Languages: {', '.join(languages) or _UNKNOWN}. Licence: {license}.\n",
        "## Configuration\n",
        _configuration(network),
    ]
    return "\n".join(sections)


def _what(network: Network) -> str:
    architecture, vocabulary = network.architecture, network.vocabulary
    shape = (
        f"HuBERT of {architecture.num_layers} layers of width {architecture.dim}, "
        f"{network.num_parameters:,} parameters"
    )
    if vocabulary is None:
        head = "without a head for text"
    else:
        policy = vocabulary.policy
        head = (
            f"fine-tuned with CTC on {len(vocabulary.characters)} symbols (case {policy.case}, "
            f"punctuation {policy.punctuation})"
        )
    return f"{shape}, {head}; written by hubert_jax {hubert_jax.__version__}.\n"


def _use(ctc: bool) -> str:
    lines = [
        "from transformers import AutoModel",
        'model = AutoModel.from_pretrained("THIS_DIRECTORY")',
    ]
    if ctc:
        lines = [
            "from transformers import pipeline",
            'transcribe = pipeline("automatic-speech-recognition", model="THIS_DIRECTORY")',
            'transcribe("speech.wav")["text"]',
        ]
    return "\n".join(
        [f"It hears one channel at {SAMPLE_RATE:,} Hz.\n", "```python", *lines, "```\n"]
    )


def _language_model(lm: str) -> str:
    return (
        f"`{lm}` is an n-gram for beam search, for example "
        f"`python -m hubert_jax.decode --config.checkpoint=hf:THIS_DIRECTORY "
        f"--config.method=lexicon --config.lm=THIS_DIRECTORY/{lm}`.\n"
    )


def _data(network: Network) -> str:
    run = network.run
    rows = ["| split | hours | utterances | drawn | transcripts |", "| --- " * 5 + "|"]
    for part in run.get("data", ()):
        made = part["provenance"]
        texts = "as prepared"
        if made:
            texts = f"hypotheses, {made['measure']} of {made['threshold']} or more"
        rows.append(
            f"| {part['split']} | {part['seconds'] / 3600:.2f} | {part['utterances']:,} | "
            f"{part['share']:.1%} | {texts} |"
        )
    lines = [f"The speech that it was trained on is {_UNKNOWN}.\n"]
    if len(rows) > 2:
        lines = ["\n".join(rows) + "\n"]
    if "config" in run:
        start = run.get("init_from") or ""
        began = f"`{start}`" if start else "random weights"
        lines.append(f"Training began with {began}, and this is step {run['step']}.\n")
    if run.get("init_from"):
        lines.append(f"What that network was trained on is {_UNKNOWN} here.\n")
    return "\n".join(lines)


def _rates(scored: Sequence[Mapping[str, Any]]) -> str:
    if not scored:
        return f"They are {_UNKNOWN}.\n"
    rows = ["| split | decoding | WER | 95 % | CER | utterances | words |", "| --- " * 7 + "|"]
    for result in scored:
        for way, rate in result["wer"].items():
            low, high = (100 * each for each in result["word_errors"][way]["interval"])
            rows.append(
                f"| {_split(result)} | {_decoding(result, way)} | {100 * rate:.2f} % | "
                f"{low:.2f} to {high:.2f} | {100 * result['cer'][way]:.2f} % | "
                f"{result['transcribed']:,} | {result['words']:,} |"
            )
    return "\n".join(rows) + "\n"


def _configuration(network: Network) -> str:
    if "config" not in network.run:
        return f"That of the training is {_UNKNOWN}.\n"
    listed = json.dumps(network.run["config"], indent=2, ensure_ascii=False)
    return f"```json\n{listed}\n```\n"


def _indexed(result: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of Hugging Face's model index; a split's name is all that is known of it."""
    best = list(result["wer"])[-1]
    task = "automatic-speech-recognition"
    metrics = [
        {
            "type": kind,
            "name": f"{kind.upper()} ({_decoding(result, best)})",
            "value": round(100 * result[kind][best], 4),
        }
        for kind in ("wer", "cer")
    ]
    dataset = {"type": _UNKNOWN, "name": _split(result)}
    return {"task": {"type": task}, "dataset": dataset, "metrics": metrics}


def _split(result: Mapping[str, Any]) -> str:
    return result["config"]["audio"].rstrip("/").rpartition("/")[2]


def _decoding(result: Mapping[str, Any], way: str) -> str:
    """greedy, or how the beam search was done."""
    if way == "greedy":
        return way
    config = result["config"]
    said = f"{config['method']}, beam of {config['search']['beam']}"
    if config["lm"]:
        kind = "a Transformer" if is_transformer(config["lm"]) else "an n-gram"
        said += f" with {kind}"
    return said + ", its best texts scored again by a Transformer" * bool(config["rescore"])
