"""What a run takes over from another network that it starts from, and what is fresh."""

import dataclasses

from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Architecture, Head
from hubert_jax.training.task import WarmStart
from hubert_jax.unit_classes import Units
from hubert_jax.vocabulary import Vocabulary


def for_pretraining(
    where: str, architecture: Architecture, head: Head, units: Units, keep_head: bool = False
) -> WarmStart:
    """Where a pre-training run starts; `where` is the value of config.init_from.

    The head is kept where it predicts the same `units`, as the digests show, in the same way. One
    of released weights has no digests: with `keep_head` it is taken to be of the run's codebooks,
    and InputError is raised where a head cannot be kept. Raises InputError as `formats.read` does,
    and for a network of another architecture.
    """
    network = _read(where, architecture)
    reason = _why_fresh(network, head, units, keep_head)
    if keep_head and reason:
        raise InputError(
            f"config.keep_head=True: the head of config.init_from={where} cannot be kept: {reason}"
        )
    return _warm_start(where, network, "final_proj_", "label_embeddings_", reason=reason)


def for_finetuning(where: str, architecture: Architecture, vocabulary: Vocabulary) -> WarmStart:
    """As `for_pretraining`, for fine-tuning; a CTC head of the same vocabulary is kept."""
    network = _read(where, architecture)
    reason = ""
    if network.vocabulary is None:
        reason = "it has no CTC head"
    elif not network.vocabulary.same_classes(vocabulary):
        reason = (
            f"its CTC head has {network.vocabulary.size} classes, the run's {vocabulary.size}"
            if network.vocabulary.size != vocabulary.size
            else "its CTC head spells other characters"
        )
    return _warm_start(where, network, "ctc_head", reason=reason)


def _read(where: str, architecture: Architecture) -> Network:
    network = formats.read(where, "config.init_from")
    for field in dataclasses.fields(Architecture):
        found, expected = (getattr(a, field.name) for a in (network.architecture, architecture))
        if found != expected and field.name == "normalize_waveform" and where.startswith("hf:"):
            # Released directories ask for another preparation than the weights were trained with.
            note = f"{field.name} is {found} there and {expected} in this run"
            network = dataclasses.replace(network, notes=(*network.notes, note))
        elif found != expected:
            raise InputError(
                f"config.init_from={where}: a network of another architecture: {field.name} is "
                f"{found}, config.architecture.{field.name} is {expected}; use the architecture "
                "that it was trained with"
            )
    return network


def _warm_start(where: str, network: Network, *head: str, reason: str) -> WarmStart:
    names = ("hubert",) if reason else ("hubert", *head)
    params = {name: leaf for name, leaf in network.params.items() if name.startswith(names)}
    taken = f"with a fresh head: {reason}" if reason else "with its head"
    notes = "".join(f"; {note}" for note in network.notes)
    described = f"network from {where}, {taken}{notes}"
    return WarmStart(params, network.fingerprint, where, described)


def _why_fresh(network: Network, head: Head, units: Units, trusted: bool) -> str:
    """Why a pre-training head cannot be kept, or "" if it can."""
    if network.head is None or "final_proj_0" not in network.params:
        return "it has no pre-training head"
    for field in dataclasses.fields(Head):
        found, expected = getattr(network.head, field.name), getattr(head, field.name)
        if found != expected:
            return f"its head has {field.name} {found}, config.head.{field.name} is {expected}"
    found = network.units or Units.numbered(head.codebook_sizes, known=False)
    if trusted and not (found.known or found.codebook_digests):
        return ""  # the file says nothing of its classes, so that the user's word decides
    for theirs, ours in zip(found.symbols, units.symbols, strict=True):
        if theirs != ours:
            place = [a == b for a, b in zip(theirs, ours, strict=True)].index(False)
            return f"class {place} of its head is {theirs[place]!r}, here it is {ours[place]!r}"
    if not found.codebook_digests:
        return "" if trusted else "it does not say which codebook its head predicts"
    if found.codebook_digests != units.codebook_digests:
        return "its head predicts another codebook"
    return ""
