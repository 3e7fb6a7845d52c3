"""Several prepared splits as one, for a training that draws from all of them."""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from typing import Any

from hubert_jax.data.index import read_index
from hubert_jax.data.manifests import (
    AudioManifest,
    GroupInfo,
    JoinedManifest,
    read_manifest,
    shards_digest,
)
from hubert_jax.errors import InputError

_DESCRIBED = ("split", "utterances", "seconds", "digest", "provenance")


def described(manifest: AudioManifest) -> list[dict[str, Any]]:
    """What a run's metadata say of each split that it draws from, JSON-able."""
    joined = isinstance(manifest, JoinedManifest)
    parts = manifest.parts if joined else [("", manifest)]
    found = []
    for directory, part in parts:
        shares = [g.share for g in manifest.groups if g.name.startswith(f"{directory}:")]
        found.append(
            {name: getattr(part, name) for name in _DESCRIBED}
            | {"share": sum(shares) if joined else 1.0}
        )
    return found


def read_joined(directories: Sequence[str], weights: Sequence[float] = ()) -> AudioManifest:
    """The manifest of all splits together, of one directory simply its own; no audio is copied.

    A split's weight says how often its audio is drawn, beside the others', in the time in which all
    would be drawn once; without `weights` all are 1. Raises InputError where two splits have an
    utterance in common.
    """
    parts = [(directory, read_manifest(directory)) for directory in directories]
    if len(parts) == 1:
        return parts[0][1]
    for one, other in itertools.combinations(parts, 2):
        if shared := read_index(*one).shared(read_index(*other)):
            raise InputError(
                f"{other[0]}: {len(shared)} of its {other[1].utterances} utterances are in "
                f"{one[0]} too, {shared[0]} for one; expected splits that have none in common"
            )
    sizes = [m.seconds * w for (_, m), w in zip(parts, weights or [1.0] * len(parts), strict=True)]
    groups, shards = [], []
    for (directory, manifest), size in zip(parts, sizes, strict=True):
        whole = GroupInfo("", manifest.utterances, manifest.seconds, 1.0)
        for group in manifest.groups or (whole,):
            named = {"name": f"{directory}:{group.name}", "share": group.share * size / sum(sizes)}
            groups.append(dataclasses.replace(group, **named))
        for shard in manifest.shards:
            place = os.path.abspath(os.path.join(directory, shard.file))
            named = {"file": place, "group": f"{directory}:{shard.group}"}
            shards.append(dataclasses.replace(shard, **named))
    manifests = [manifest for _, manifest in parts]
    encodings = {manifest.encoding for manifest in manifests}
    return JoinedManifest(
        split=manifests[0].split,
        sample_rate=manifests[0].sample_rate,
        **{
            name: sum(getattr(manifest, name) for manifest in manifests)
            for name in ("utterances", "seconds", "speakers", "transcribed", "rejected", "flagged")
        },
        digest=shards_digest(tuple(shards)),
        shards=tuple(shards),
        encoding=max(encodings, key=("pcm16", "flac").index),  # FLAC's reader takes either
        groups=tuple(groups),
        parts=tuple(parts),
    )
