"""Where a run starts that continues from a network: what it takes over, and what is fresh."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from hubert_jax import config as config_lib
from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.model.architecture import HubertConfig
from hubert_jax.training.checkpoint import require_architecture
from hubert_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run takes over.

    Attributes:
      params: `hubert`, and the head where it is kept.
      identity: of the network, for the run's inputs.
      description: which network, what became of its head and why, one line.
    """

    params: dict[str, Any]
    identity: str
    description: str


def for_pretraining(where: str, config: HubertConfig, codebook_digests: Sequence[str]) -> Start:
    """The start of a pre-training run.

    The head is kept where it predicts the same codebooks in the same way, and their digests show
    it. A head of released weights does not say which codebook it predicts: it is never kept.

    Args:
      where: `SCHEME:PATH`, the value of config.init_from.
      config: the run's architecture.
      codebook_digests: of its label sets, in the order of `config.codebooks`.

    Raises:
      InputError: what `formats.read` raises, or a network of another architecture.
    """
    network = _read(where, config)
    reason = _why_fresh(network, config, codebook_digests)
    return _start(where, network, "projection_", "codes_", reason=reason)


def for_finetuning(where: str, config: HubertConfig, vocabulary: Vocabulary) -> Start:
    """The start of a fine-tuning run; a CTC head of the same vocabulary is kept.

    Raises:
      InputError: what `formats.read` raises, or a network of another architecture.
    """
    network = _read(where, config)
    reason = ""
    if network.kind != "ctc":
        reason = "it has no CTC head"
    elif network.vocabulary != vocabulary:
        reason = (
            f"its CTC head has {network.vocabulary.size} classes, the run's {vocabulary.size}"
            if network.vocabulary.size != vocabulary.size
            else "its CTC head spells other characters"
        )
    return _start(where, network, "characters", reason=reason)


def _read(where: str, config: HubertConfig) -> Network:
    network = formats.read(where, "config.init_from")
    require_architecture(config_lib.to_dict(network.config), config, where)
    return network


def _start(where: str, network: Network, *head: str, reason: str) -> Start:
    names = ("hubert",) if reason else ("hubert", *head)
    params = {name: leaf for name, leaf in network.params.items() if name.startswith(names)}
    taken = f"with a fresh head: {reason}" if reason else "with its head"
    notes = "".join(f"; {note}" for note in network.notes)
    return Start(params, network.identity, f"network from {where}, {taken}{notes}")


def _why_fresh(network: Network, config: HubertConfig, codebook_digests: Sequence[str]) -> str:
    """Why a pre-training head cannot be kept; empty: it can."""
    if network.kind != "pretraining":
        return "it has no pre-training head"
    for field in ("codebooks", "projection_dim", "temperature"):
        found, expected = getattr(network.config, field), getattr(config, field)
        if found != expected:
            return f"its head has {field} {found}, config.model.{field} is {expected}"
    digests = network.units.codebook_digests
    if not digests:
        return "it does not say which codebook its head predicts"
    if digests != tuple(codebook_digests):
        return "its head predicts another codebook"
    return ""
