"""The other side of `benchmarks.decode`, run by the Python of its own environment."""

import json
import multiprocessing
import sys
import time

import numpy as np
import torch
from pyctcdecode import build_ctcdecoder
from transformers import AutoProcessor, HubertForCTC

request = json.load(open(sys.argv[1]))
processor = AutoProcessor.from_pretrained(request["network"])
model = HubertForCTC.from_pretrained(request["network"]).eval()
tokens = processor.tokenizer.get_vocab()
labels = [token for token, _ in sorted(tokens.items(), key=lambda item: item[1])]
labels = labels[: model.config.vocab_size]
special = {processor.tokenizer.word_delimiter_token: " ", processor.tokenizer.pad_token: ""}
decoder = build_ctcdecoder(
    [special.get(label, label) for label in labels],
    kenlm_model_path=request["lm"],
    unigrams=request["words"],
    alpha=request["alpha"],
    beta=request["beta"],
)
audio = dict(np.load(request["audio"]))


def decoded():
    """Texts by id, of emissions one by one and of a search in several processes."""
    found = []
    with torch.inference_mode():
        for waveform in audio.values():
            inputs = processor(waveform, sampling_rate=16_000, return_tensors="pt")
            found.append(torch.log_softmax(model(**inputs).logits[0], dim=-1).numpy())
    with multiprocessing.get_context("fork").Pool(request["processes"]) as pool:
        texts = decoder.decode_batch(
            pool, found, beam_width=request["beam"], beam_prune_logp=request["threshold"]
        )
    return dict(zip(audio, texts, strict=True))


for _ in sys.stdin:
    begun = time.perf_counter()
    texts = decoded()
    print(json.dumps({"seconds": time.perf_counter() - begun, "texts": texts}), flush=True)
