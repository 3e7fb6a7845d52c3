"""Refuses stages that could never take what another one gives; their jobs would, but after days."""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NoReturn

from hubert_jax import config as config_lib
from hubert_jax import decode, label, prepare, storage
from hubert_jax.asr import vocabularies
from hubert_jax.convert import formats
from hubert_jax.convert.network import Description
from hubert_jax.data import manifests
from hubert_jax.errors import InputError
from hubert_jax.layout import Reference, job_of
from hubert_jax.stages.stage import Stage, outside_paths
from hubert_jax.tasks import ctc
from hubert_jax.tasks.held_out import HeldOut
from hubert_jax.training import sharding
from hubert_jax.training.task import micro_batch_counts
from hubert_jax.units import kmeans, mfcc, steps


def require_fits(stage: Stage, stages: Mapping[str, Stage]) -> None:
    """Refuses what a stage could never take of another: its jobs would, but after days."""
    config, inputs = stage.config, stage.inputs
    for key, references in inputs.items():
        for reference in references:
            if lacking := _lacking(reference, stages, key, config):
                raise InputError(f"inputs.{key}={reference}: {lacking}")
    _require_network(stage, stages)
    _require_splits(stage, stages)
    if hasattr(config, "head"):
        _require_labels(stage, stages)
    _require_start(stage, stages)


def _refuse(stage: Stage, key: str, found: Any, source: str, expected: str) -> NoReturn:
    path = f"config.stages.{stage.name.replace('/', '.')}.{key}"
    raise InputError(f"{path}: found {found}, but {source} has {expected}; change one of them")


def _require_network(stage: Stage, stages: Mapping[str, Stage]) -> None:
    """What a stage asks of the network that it runs, and of a codebook of its features."""
    config, inputs = stage.config, stage.inputs
    key = "source" if hasattr(config, "source") else "checkpoint"
    source, network = _network(stage, key, stages)
    if isinstance(config, label.LabelConfig) and config.codebook and "codebook" not in inputs:
        for name in config.listed():
            _known_codebook(config, name, network)
    if (origin := _origin(stage, stages)) is not stage:
        source_of = f"the codebook of {origin.name}"
        for name in config.listed():
            clustered = _clustered(origin, name)
            for part, found in _clustered(stage, name).items():
                if found != clustered[part]:
                    _refuse(stage, part, found, source_of, str(clustered[part]))
        if _other_network(stage, origin, stages):
            (given,) = inputs.get(key, (config.checkpoint,))
            (fitted,) = origin.inputs.get(key, (origin.config.checkpoint,))
            named = f"inputs.{key}" if key in inputs else key
            _refuse(stage, named, given, source_of, str(fitted))
    if not network:
        return
    if isinstance(config, decode.DecodeConfig) and network.kind != "ctc":
        (given,) = inputs.get(key, (config.checkpoint,))
        raise InputError(
            f"{'inputs' if key in inputs else 'config'}.{key}={given}: has no CTC head; expected a "
            "network of fine-tuning, such as GROUP/finetune"
        )
    key = "layers" if hasattr(config, "layers") else "layer"
    layers = getattr(config, "layers", (getattr(config, "layer", 0),))
    if (highest := max(layers, default=0)) > (most := network.architecture.num_layers):
        _refuse(stage, key, highest, source, f"{most} layers")
    if isinstance(config, label.LabelConfig):
        for each in config.listed().values():
            steps.dimensions((*config.steps, *each.steps), network.architecture.dim)


def _require_splits(stage: Stage, stages: Mapping[str, Stage]) -> None:
    """Held-out audio that is not trained on, and labels of the audio that is read."""
    inputs = stage.inputs
    for reference in inputs.get("validation_audio", ()):
        for other in (*inputs.get("audio", ()), *inputs.get("more_audio", ())):
            if reference == other:
                _refuse(
                    stage, "inputs.validation_audio", reference, "inputs.audio", "the same split"
                )
            if shared := _shared_folder(reference, other, stages):
                _refuse(
                    stage, "inputs.validation_audio", reference, f"inputs.audio={other}", shared
                )
    for reference in inputs.get("hypotheses", ()):
        for heard in stages[reference.stage].inputs.get("audio", ()):
            for asked in inputs.get("audio", ()):
                if heard.stage == asked.stage and heard != asked:
                    _refuse(stage, "inputs.audio", asked, reference.stage, str(heard))
    for part in ("", "validation_"):
        audio = [reference.split for reference in inputs.get(f"{part}audio", ())]
        for reference in inputs.get(f"{part}labels", ()):
            if audio and reference.audio_split not in audio:
                _refuse(stage, f"inputs.{part}labels", reference, f"inputs.{part}audio", audio[0])


def _require_labels(stage: Stage, stages: Mapping[str, Stage]) -> None:
    """A class for every unit, and held-out labels by the codebooks that are trained on."""
    config, inputs = stage.config, stage.inputs
    sizes = config.head.codebook_sizes
    if job_of(stage.name) == "train" and config.validation_audio:
        if not config.validation_labels:
            audio = config.validation_audio
            _refuse(stage, "validation_labels", "none", "validation_audio", audio)
    for key in ("labels", "validation_labels"):
        labels = inputs.get(key, ())
        if labels and len(labels) != len(sizes):
            expected = f"{len(labels)} label set(s)"
            _refuse(stage, "head.codebook_sizes", sizes, f"inputs.{key}", expected)
        for size, reference in zip(sizes, labels, strict=bool(labels)):
            given_by = _origin(stages[reference.stage], stages)
            clusters = _num_clusters(given_by, reference.codebook)
            if clusters is not None and size - clusters not in (0, config.specials):
                expected = f"num_clusters={clusters}"
                _refuse(stage, "head.codebook_sizes", sizes, given_by.name, expected)
    sets = (inputs.get(key, ()) for key in ("labels", "validation_labels"))
    for mine, held_out in zip(*sets, strict=False):
        if _other_codebook(mine, held_out, stages):
            key, source = "inputs.validation_labels", f"inputs.labels={mine}"
            _refuse(stage, key, held_out, source, "another codebook")


def _require_start(stage: Stage, stages: Mapping[str, Stage]) -> None:
    """What a training keeps of the network that it begins with."""
    config = stage.config
    source, network = _network(stage, "init_from", stages)
    if not network:
        return
    described = {"architecture": {**vars(network.architecture)}}
    if config.init_from.startswith("hf:"):
        # Such directories may ask for another preparation than their weights had.
        del described["architecture"]["normalize_waveform"]
    if getattr(config, "keep_head", False):
        if network.kind != "pretraining":
            _refuse(stage, "keep_head", True, source, "no pre-training head")
        described["head"] = vars(network.head)
        before = stages[source].inputs.get("labels", ()) if source in stages else ()
        for mine, its in zip(stage.inputs.get("labels", ()), before, strict=False):
            if _other_codebook(mine, its, stages):
                expected = f"labels by another codebook, of {its}"
                _refuse(stage, "keep_head", True, source, expected)
    if job_of(stage.name) == "finetune" and config.vocabulary.source == "init_from":
        if network.kind != "ctc":
            _refuse(stage, "vocabulary.source", "init_from", source, "no CTC head")
    for part, values in described.items():
        for name, value in values.items():
            if (found := getattr(getattr(config, part), name)) != value:
                _refuse(stage, f"{part}.{name}", found, source, str(value))


def require_data(stage: Stage, attached: bool = True) -> None:
    """Refuses a training that its prepared splits do not fit, before what comes before it is run.

    That is: rows, groups, spans, micro-batches and transcripts; and held-out utterances that are
    trained on. Rows are divided over the devices that are `attached`, or over as many as the
    configuration names.
    """
    config, job = stage.config, job_of(stage.name)
    if job not in ("train", "finetune"):
        return
    shards = max(config.mesh.data, 1) * config.mesh.fsdp
    if attached:
        shards = sharding.batch_shards(sharding.make_mesh(config.mesh))
    if job == "train":
        audio = manifests.read_manifest(config.audio)
        if config.validation_audio:
            HeldOut.read(config.validation_audio, config.audio, audio)
    else:
        audio, held_out = ctc.read(config)
        given = config.vocabulary
        if given.source != "init_from" or "init_from" not in stage.inputs:  # is there already
            where = (config.vocabulary_file, config.init_from, config.audio)
            vocabulary = vocabularies.choose(given, *where, audio)
            config.learnable_seconds(audio, held_out, vocabulary)
    buckets = config.buckets(audio, shards)
    rows = {str(bucket.frames): bucket.rows for bucket in buckets}
    micro_batch_counts(rows, config.micro_batches, shards)


def _lacking(reference: Reference, stages: Mapping[str, Stage], key: str, config: Any) -> str:
    """Why a stage that is finished never has what another one reads of it; "" if it may."""
    source, which = stages[reference.stage], reference.which
    if key == "rescore" and job_of(source.name) == "lm":
        return "is an n-gram; expected a Transformer, GROUP/train_lm, or pass it as inputs.lm"
    if key == "lm" and job_of(source.name) == "lm" and source.config.unit == "letter":
        if getattr(config, "method", "") == "lexicon":
            return "is an n-gram of letters; expected one of words, or decode with method=letters"
    if key == "hypotheses" and source.config.method == "greedy":
        return "is greedy, which has no confidences; expected method=lexicon or letters there"
    if isinstance(source.config, label.LabelConfig):
        named = list(source.config.listed())
        if key == "codebook" and source.config.feature in label.IMPORTED:
            return "has no codebook, as its labels are given"
        if key == "codebook" and not {*config.listed()} <= {*named}:
            return f"has the codebooks {named}, expected {list(config.listed())}"
        if key != "codebook" and reference.codebook not in named:
            known = [f"{name}/{reference.audio_split}".lstrip("/") for name in named]
            return f"no such labels; there are {', '.join(known)}"
    if which in ("", "best"):
        return ""
    loop, number = source.config.loop, int(which.removeprefix("mean"))
    saves = -(-loop.steps // loop.save_every)
    newer = saves - -(-number // loop.save_every)
    # One that is validated saves its best steps, too, keeps the best, and may end early.
    validated = bool(source.config.validation_audio)
    every = validated and source.config.validation.every or loop.save_every
    if which.startswith("mean"):
        there = number <= loop.keep and (validated or number <= saves)
    else:
        saved = number % loop.save_every == 0 or number % every == 0 or number == loop.steps
        there = 0 < number <= loop.steps and saved and (validated or newer < loop.keep)
    if there:
        return ""
    return (
        f"the stage has loop.steps={loop.steps}, save_every={loop.save_every} and "
        f"keep={loop.keep}: there is no such checkpoint at its end"
    )


def _network(stage: Stage, key: str, stages: Mapping[str, Stage]) -> tuple[str, Description | None]:
    """Which network a stage reads as its `key`, through conversions, and what it is, if known."""
    if key in stage.inputs:
        (reference,) = stage.inputs[key]
        source = stages[reference.stage]
        if (job := job_of(source.name)) in ("export", "convert"):
            where, found = _network(source, "source" if job == "convert" else "checkpoint", stages)
            return where, found and dataclasses.replace(found, fingerprints=())
        kind = "pretraining" if job == "train" else "ctc"
        head = getattr(source.config, "head", None)
        return source.name, Description(kind, source.config.architecture, head)
    where = getattr(stage.config, key, "")
    if not where or not all(path.exists() for path in outside_paths(stage.config, key)):
        return where, None  # what is missing is told when all that is outside is read
    return where, formats.describe(where, f"config.{key}")


def _known_codebook(
    config: label.LabelConfig, name: str, network: Description | None
) -> kmeans.Codebook:
    """The codebook from elsewhere that a label stage takes; InputError if it is of another feature.

    Of the network, if another stage's, nothing but its architecture is known, if that.
    """
    described: dict[str, Any] = {"kind": config.feature}
    dim = mfcc.DIMS.get(config.feature)
    if config.feature == "layer":
        described |= {"layer": config.layer, "residual": "added"}
        dim = network.architecture.dim if network else None
    if every := (*config.steps, *config.listed()[name].steps):
        described["steps"] = list(every)
    dim = steps.dimensions(steps.before_whitening(every), dim)
    codebook = kmeans.read(str(storage.path(config.codebook, name)), described, dim)
    fitted = codebook.feature.get("checkpoint")
    if fitted and network and network.fingerprints and fitted not in network.fingerprints:
        raise InputError(
            f"config.codebook={config.codebook}: fitted on another network than "
            f"config.checkpoint={config.checkpoint}; name that one, or fit another codebook"
        )
    return codebook


def _origin(stage: Stage, stages: Mapping[str, Stage]) -> Stage:
    """The stage whose codebooks a label stage has, through any number of inputs."""
    while "codebook" in stage.inputs:
        (reference,) = stage.inputs["codebook"]
        stage = stages[reference.stage]
    return stage


def _clustered(stage: Stage, name: str) -> dict[str, Any]:
    """What a codebook of a label stage is of, but for the network."""
    config = stage.config
    every = (*config.steps, *config.listed()[name].steps)
    return {"feature": config.feature, "layer": config.layer, "steps": every}


def _other_network(one: Stage, other: Stage, stages: Mapping[str, Stage]) -> bool:
    """Whether two label stages certainly read two networks."""
    both = (one, other)
    (where, network), (its, fitted) = (_network(each, "checkpoint", stages) for each in both)
    if where in stages and where == its:
        references = [ref for each in both for ref in each.inputs.get("checkpoint", ())]
        read = {_checkpoint(reference, stages) for reference in references}
        return "" not in read and len(read) == 2
    if where in stages and its in stages:
        first, second = (stages[where], stages[its])
        if config_lib.decisive(first.config) != config_lib.decisive(second.config):
            return True
        labels = zip(*(each.inputs.get("labels", ()) for each in (first, second)), strict=False)
        return any(_other_codebook(mine, theirs, stages) for mine, theirs in labels)
    if not network or not fitted:
        return False
    if network.fingerprints and fitted.fingerprints:
        return not {*network.fingerprints} & {*fitted.fingerprints}
    return network.architecture.dim != fitted.architecture.dim


def _checkpoint(reference: Reference, stages: Mapping[str, Stage]) -> str:
    """Which checkpoint of a training it is at the end; "" where that is not known."""
    config = stages[reference.stage].config
    if reference.which == "best" or not hasattr(config, "loop"):
        return ""
    return reference.which or ("" if config.validation.patience else str(config.loop.steps))


def _other_codebook(one: Reference, other: Reference, stages: Mapping[str, Stage]) -> bool:
    """Whether two label sets are certainly by two codebooks."""
    mine, its = (_origin(stages[each.stage], stages) for each in (one, other))
    if {mine.config.feature, its.config.feature} & {*label.IMPORTED}:
        return False
    if one.codebook == other.codebook and mine is its:
        return False
    if _clustered(mine, one.codebook) != _clustered(its, other.codebook):
        return True
    if _num_clusters(mine, one.codebook) != _num_clusters(its, other.codebook):
        return True
    if mine is its or mine.config.codebook or its.config.codebook:
        return False  # perhaps twice the same
    if mine.config.seed != its.config.seed or _other_network(mine, its, stages):
        return True
    fitted_on = [storage.path("".join(each.config.audio[:1])).resolve() for each in (mine, its)]
    return mine.config.feature != "random_projection" and fitted_on[0] != fitted_on[1]


def _num_clusters(origin: Stage, name: str) -> int | None:
    """How many units the labels by a codebook of a stage have; None if its files say it."""
    if origin.config.feature == "phones":
        return None
    if origin.config.codebook:
        return len(_known_codebook(origin.config, name, None).centroids)
    return origin.config.listed()[name].num_clusters


def _shared_folder(one: Reference, other: Reference, stages: Mapping[str, Stage]) -> str:
    """A folder of the corpus that is in both of two splits; "" if they share none."""
    if one.stage != other.stage or job_of(one.stage) != "prepare":
        return ""
    folders = prepare.split_folders(tuple(stages[one.stage].config.splits))
    for mine, its in itertools.product(folders[one.split], folders[other.split]):
        a, b = (pathlib.PurePosixPath(os.path.normpath(folder)) for folder in (mine, its))
        if a.is_relative_to(b) or b.is_relative_to(a):
            return f"the same audio, {mine}" if a == b else f"{its}, which shares audio with {mine}"
    return ""
