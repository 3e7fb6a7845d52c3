"""Features of whole splits, whatever their kind."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hubert_jax.data import manifests, records
from hubert_jax.data.waveform import to_float
from hubert_jax.errors import InputError
from hubert_jax.units import kmeans, mfcc

LAYER = "layer"


def everything(utterance_id: str) -> bool:
    """Wants every utterance."""
    return True


@dataclasses.dataclass(frozen=True)
class Feature:
    """What units are made from.

    Attributes:
      kind: "mfcc" (Kaldi's), "mfcc_librosa", both at 100 Hz, or "layer", at 50 Hz.
      checkpoint: for "layer": the checkpoint directory of a run.
      layer: for "layer": 0 is the input of block 1, l the output of block l.

    Raises InputError for an unknown kind, or a checkpoint where none belongs or is missing.
    """

    kind: str
    checkpoint: str = ""
    layer: int = 0

    def __post_init__(self):
        kinds = (*mfcc.KINDS, LAYER)
        if self.kind not in kinds:
            raise InputError(f"feature={self.kind!r}: no such feature; known: {', '.join(kinds)}")
        if (self.kind == LAYER) != bool(self.checkpoint):
            raise InputError(
                f"feature={self.kind!r} with checkpoint={self.checkpoint!r}: expected a checkpoint "
                "directory for 'layer' and none for the others"
            )

    @property
    def rate(self) -> int:
        """Frames per second."""
        return 50 if self.kind == LAYER else mfcc.RATE

    def describe(self) -> dict[str, Any]:
        """What codebooks and labels of this feature are bound to; names a checkpoint by identity.

        Raises:
          InputError: there is no checkpoint.
        """
        if self.kind != LAYER:
            return {"kind": self.kind}
        from hubert_jax.training.checkpoint import identity, read_metadata

        named = identity(read_metadata(self.checkpoint))
        return {"kind": LAYER, "layer": self.layer, "checkpoint": named}

    def extract(
        self, split_dir: str | os.PathLike, wanted: Callable[[str], bool] = everything
    ) -> Iterator[tuple[str, np.ndarray]]:
        """The features of the wanted utterances of a split.

        Args:
          split_dir: an audio split.
          wanted: tells by its id whether an utterance takes part.

        Yields:
          (id, float32 of shape (T, D)); MFCC in the order of the split, layers nearly so.
        """
        if self.kind == LAYER:
            layers = (self.layer,)
            for utterance_id, features in extract_layers(
                self.checkpoint, split_dir, layers, wanted=wanted
            ):
                yield utterance_id, features[self.layer]
            return
        compute = mfcc.KINDS[self.kind]
        for utterance in records.read_audio(split_dir):
            if wanted(utterance.id):
                yield utterance.id, compute(to_float(utterance.audio))


def extract_layers(
    checkpoint: str,
    split_dir: str | os.PathLike,
    layers: tuple[int, ...],
    untrained: bool = False,
    wanted: Callable[[str], bool] = everything,
) -> Iterator[tuple[str, dict[int, np.ndarray]]]:
    """Hidden states of several layers in one pass: (id, {layer: float32 of shape (T, D)})."""
    from hubert_jax.units.features import layer_features

    yield from layer_features(checkpoint, split_dir, layers, untrained, wanted)


def sample_of(
    manifest: manifests.AudioManifest, rate: int, share: float, max_frames: int, seed: int
) -> Callable[[str], bool]:
    """Tells which utterances of a split are read to fit a codebook on `max_frames` frames.

    Args:
      manifest: the split.
      rate: frames per second.
      share: of the utterances, at most; in (0, 1].
      max_frames: frames wanted.
      seed: of the draw.

    Raises:
      InputError: `share` is out of range.
    """
    if not 0.0 < share <= 1.0:
        raise InputError(f"fit_share={share}: expected a share of the utterances, in (0, 1]")
    frames = int(manifest.seconds * rate)
    read = kmeans.sufficient_share(share, max_frames, frames, manifest.utterances)
    return lambda utterance_id: kmeans.is_sampled(utterance_id, read, seed)
