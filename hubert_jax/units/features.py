"""What units are made from: features of every utterance of a split."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hubert_jax.data.records import Utterance
from hubert_jax.data.waveform import to_float
from hubert_jax.errors import InputError
from hubert_jax.model.hubert import Hubert
from hubert_jax.model.transformer import first_layers
from hubert_jax.networks import forward
from hubert_jax.networks.trained import Trained
from hubert_jax.units import mfcc, steps


@dataclasses.dataclass(frozen=True, eq=False)
class Feature:
    """A kind of `mfcc` at 100 Hz, or a "layer" of a network at 50 Hz, and steps from there.

    Layer 0 is the input of block 1.
    Raises InputError for a layer that the network does not have, and as `steps.dimensions`.
    """

    kind: str
    trained: Trained | None = None
    layer: int = 0
    steps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.trained is not None:
            require_layers(self.trained, (self.layer,))
        steps.dimensions(self.steps, self._raw_dim)

    @property
    def rate(self) -> int:
        """Frames per second."""
        return 50 if self.kind == "layer" else mfcc.RATE

    @property
    def own_steps(self) -> tuple[str, ...]:
        """Those that are taken utterance by utterance: all before `whiten`, which is fitted."""
        return steps.before_whitening(self.steps)

    @property
    def dim(self) -> int:
        """Numbers a frame after `own_steps`."""
        return steps.dimensions(self.own_steps, self._raw_dim) or 0

    @property
    def _raw_dim(self) -> int:
        return self.trained.architecture.dim if self.trained else mfcc.DIMS[self.kind]

    def describe(self) -> dict[str, Any]:
        """What codebooks and labels of this feature are bound to.

        A layer is what its block gives after the residual is added, and before a final LayerNorm.
        """
        described: dict[str, Any] = {"kind": self.kind}
        if self.trained is not None:
            described |= {"layer": self.layer, "residual": "added"}
            described |= {"checkpoint": self.trained.fingerprint}
        return described | ({"steps": list(self.steps)} if self.steps else {})


def extract(
    features: Sequence[Feature],
    split_dir: str | os.PathLike,
    wanted: Callable[[str], bool] = lambda utterance_id: True,
    shards: Callable[[int], bool] = lambda number: True,
) -> Iterator[tuple[int, str, list[np.ndarray]]]:
    """Yields (number of the audio shard, utterance id, float32 (T, D) of each), shard by shard.

    As `of_utterances`, of a split's, which `wanted` chooses by id, `shards` by audio shard.
    """
    of_all = of_utterances(features, forward.utterances(split_dir, wanted, shards))
    return ((number, utterance.id, frames) for number, utterance, frames in of_all)


def of_utterances(
    features: Sequence[Feature], groups: forward.Groups
) -> Iterator[tuple[int, Utterance, list[np.ndarray]]]:
    """Yields (number of the group, utterance, float32 (T, D) of each), group after group.

    The features differ in their steps alone, so that the audio is read once; `whiten` is not taken
    here. Within a group the order is free.
    """
    wanted_steps = {feature.own_steps for feature in features}
    for number, utterance, frames in _raw(features[0], groups):
        found = {own: steps.apply(own, frames) for own in wanted_steps}
        yield number, utterance, [found[feature.own_steps] for feature in features]


def _raw(feature: Feature, groups: forward.Groups) -> Iterator[tuple[int, Utterance, np.ndarray]]:
    """As `of_utterances`, of one feature before its steps."""
    if feature.trained is not None:
        applied = forward.Applied(*states_of(feature.trained, (feature.layer,)))
        for outputs in applied(groups):
            yield outputs.group, outputs.utterance, outputs.values[:, 0]
        return
    waveforms = (
        ((number, utterance), to_float(utterance.audio))
        for number, group in groups
        for utterance in group
    )
    for (number, utterance), frames in mfcc.mfcc(waveforms, feature.kind):
        yield number, utterance, frames


def require_layers(trained: Trained, layers: tuple[int, ...]) -> None:
    """Raises InputError where the network lacks one of these layers, or none is asked for."""
    most = trained.architecture.num_layers
    wrong = [layer for layer in layers if not 0 <= layer <= most]
    if wrong or not layers:
        raise InputError(
            f"layer {wrong or layers}: {trained.where} has layers 0 (input of block 1) to {most}"
        )


def hidden_states(
    trained: Trained,
    split_dir: str | os.PathLike,
    layers: tuple[int, ...],
    wanted: Callable[[str], bool] = lambda utterance_id: True,
    shards: Callable[[int], bool] = lambda number: True,
) -> Iterator[tuple[int, str, dict[int, np.ndarray]]]:
    """Yields {layer: float32 (T, dim)} of 50 Hz as `extract`, all layers in one pass.

    Neither dropout nor masks are applied; nothing above the topmost layer is computed. Raises
    InputError for a layer that the network does not have, or a damaged shard.
    """
    applied = forward.Applied(*states_of(trained, layers))
    for outputs in applied(forward.utterances(split_dir, wanted, shards)):
        states = {layer: outputs.values[:, i] for i, layer in enumerate(layers)}
        yield outputs.group, outputs.utterance.id, states


def states_of(
    trained: Trained, layers: tuple[int, ...]
) -> tuple[Callable[[dict, jax.Array, jax.Array], jax.Array], Trained]:
    """The function that gives float32 (B, T, layers, dim), and what it needs of the network.

    Raises InputError for a layer that the network does not have.
    """
    require_layers(trained, layers)
    top = max(max(layers), 1)
    params = first_layers(trained.params, top)["hubert"]
    architecture = dataclasses.replace(trained.architecture, num_layers=top)
    trained = dataclasses.replace(trained, params=params, architecture=architecture)
    model = Hubert(architecture, trained.kernels)

    def states(params: dict, waveform: jax.Array, num_samples: jax.Array) -> jax.Array:
        outputs: Any = model.apply({"params": params}, waveform, num_samples, collect=True)
        chosen = outputs["layers"][jnp.array(layers)]
        return jnp.moveaxis(chosen, 0, 2).astype(jnp.float32)

    return states, trained
