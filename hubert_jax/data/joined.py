"""Several prepared splits as one, for a training that draws from all of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from hubert_jax import storage
from hubert_jax.data.manifests import AudioManifest, GroupInfo, read_manifest, shards_digest

_ADDED = ("utterances", "seconds", "speakers", "transcribed", "rejected", "flagged")
_ENCODINGS = ("pcm16", "flac")  # the second one's reader takes both


@dataclasses.dataclass(frozen=True)
class JoinedManifest(AudioManifest):
    """Splits whose corpora are mixed; shards stay where they are, named by their whole paths."""

    parts: tuple[tuple[str, AudioManifest], ...] = ()  # directories and what they hold
    shares: tuple[float, ...] = ()  # of the audio that is drawn; they sum to 1

    @classmethod
    def read(cls, directories: Sequence[str], weights: Sequence[float] = ()) -> AudioManifest:
        """That of all of them; of one directory simply its own.

        A split's weight multiplies how often its audio is drawn; without `weights` all are 1.
        """
        parts = tuple((directory, read_manifest(directory)) for directory in directories)
        if len(parts) == 1:
            return parts[0][1]
        drawn = [
            manifest.seconds * weight
            for (_, manifest), weight in zip(parts, weights or [1.0] * len(parts), strict=True)
        ]
        shares = tuple(seconds / sum(drawn) for seconds in drawn)
        groups, shards = [], []
        for (directory, manifest), share in zip(parts, shares, strict=True):
            whole = GroupInfo("", manifest.utterances, manifest.seconds, 1.0)
            for group in manifest.groups or (whole,):
                name = f"{directory}:{group.name}"
                groups.append(dataclasses.replace(group, name=name, share=group.share * share))
            for shard in manifest.shards:
                place = str(storage.path(directory, shard.file).absolute())
                name = f"{directory}:{shard.group}"
                shards.append(dataclasses.replace(shard, file=place, group=name))
        manifests = [manifest for _, manifest in parts]
        return cls(
            split=manifests[0].split,
            sample_rate=manifests[0].sample_rate,
            **{name: sum(getattr(each, name) for each in manifests) for name in _ADDED},
            digest=shards_digest(tuple(shards)),
            shards=tuple(shards),
            encoding=max((each.encoding for each in manifests), key=_ENCODINGS.index),
            groups=tuple(groups),
            parts=parts,
            shares=shares,
        )

    def described(self) -> list[dict[str, Any]]:
        """As of an AudioManifest, of each part."""
        return [
            manifest.described()[0] | {"share": share}
            for (_, manifest), share in zip(self.parts, self.shares, strict=True)
        ]
