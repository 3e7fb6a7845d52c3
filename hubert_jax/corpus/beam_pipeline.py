"""Preparation on Apache Beam, for several machines: the bytes of the preparation by threads.

sources -> read -> (corpus, bucket): places and lengths -> plan of the shards
                -> (corpus, bucket, shard): records -> sorted, written -> descriptions
"""

import bisect
import dataclasses
import os
import pathlib
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from hubert_jax import files
from hubert_jax.corpus import assembly, parts, preparation
from hubert_jax.corpus.mixing import Mixture
from hubert_jax.corpus.parts import Notes
from hubert_jax.corpus.preparation import Conversion
from hubert_jax.corpus.sources.utterances import SourceUtterance
from hubert_jax.data import buckets
from hubert_jax.data.index import ShardIndex
from hubert_jax.data.manifests import ShardInfo
from hubert_jax.data.records import RecordWriter, index_row, serialize
from hubert_jax.errors import InputError

try:
    import apache_beam as beam
except ImportError:
    raise InputError(
        "config.beam_runner: Apache Beam is not installed; install hubert_jax[beam] or leave "
        "config.beam_runner empty"
    ) from None

_NOTES = "notes"  # of files in the output's directory, which its manifest then replaces
# What Beam calls DirectRunner tries another one first, which it downloads.
_DIRECT = "apache_beam.runners.portability.fn_api_runner.fn_runner.FnApiRunner"
# In Beam 2.77 workers in threads of their own lose a record now and then.
_DIRECT_OPTIONS = ("--direct_num_workers=1", "--direct_running_mode=in_memory")

_Key = tuple[int, int]  # number of the corpus, bucket


def pipeline_on(runner: str, options: Sequence[str] = ()) -> beam.Pipeline:
    """An empty pipeline on one of Beam's runners; raises InputError if that cannot be used."""
    from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions

    direct = runner == "DirectRunner"
    given = options or (_DIRECT_OPTIONS if direct else ())
    parsed = PipelineOptions([f"--runner={_DIRECT if direct else runner}", *given])
    parsed.view_as(SetupOptions).save_main_session = False
    try:
        return beam.Pipeline(options=parsed)
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"config.beam_runner={runner}: cannot be used ({reason[:200]})") from None


def write_shards(
    pipeline: beam.Pipeline,
    directory: pathlib.Path,
    sources: Sequence[SourceUtterance],
    conversion: Conversion,
    shard_megabytes: int,
    mixture: Mixture | None,
) -> tuple[tuple[ShardInfo, ...], list[ShardIndex], list[Notes]]:
    """Writes a split's shards; returns what `assembly.write_tables` takes of them.

    Workers share the file system of `directory` and sources; the other arguments are those of
    `preparation.write_parts` and `assembly.assemble`. Raises InputError for what a step refuses.
    """
    build(pipeline, directory, sources, conversion, shard_megabytes, mixture)
    try:
        pipeline.run().wait_until_finish()
    except RuntimeError as error:
        # What a step raises comes back as the end of a long report.
        reason = re.search(r"InputError: (.*?)( \[while running .*)?$", str(error).strip())
        if reason is None:
            raise
        raise InputError(reason[1]) from None
    found = [
        ShardInfo(**files.read_json(path, "a shard's description"))
        for path in sorted(directory.glob("*.tfrecord.json"))  # in the manifest's order
    ]
    indexed = []
    for info in found:
        with np.load(directory / f"{info.file}.npz") as stored:
            indexed.append(ShardIndex(**stored))
    notes = [parts.read_notes(path) for path in directory.glob(f"{_NOTES}-*.json")]
    read, written = sum(n.utterances for n in notes), sum(info.utterances for info in found)
    if read != written:
        raise InputError(
            f"config.beam_runner: read {read} utterances and wrote {written}; Apache Beam lost "
            "records: run it again, or prepare without it"
        )
    for path in [*directory.glob("*.json"), *directory.glob("*.npz")]:
        path.unlink()
    return tuple(found), indexed, notes


def build(
    pipeline: beam.Pipeline,
    directory: pathlib.Path,
    sources: Sequence[SourceUtterance],
    conversion: Conversion,
    shard_megabytes: int,
    mixture: Mixture | None,
) -> None:
    """Adds the steps to a pipeline; what they write is described in `write_shards`."""
    groups = tuple(mixture.weights) if mixture else ("",)
    divided = list(enumerate(preparation.divided(sources, conversion).values()))
    records = (
        pipeline
        | "Parts" >> beam.Create(divided)
        | "Spread" >> beam.Reshuffle()
        | "Read" >> beam.FlatMap(_read, directory, conversion)
    )
    plan = (
        records
        | "Lengths" >> beam.MapTuple(lambda key, record: (key, (record.place, record.samples)))
        | "LengthsByBucket" >> beam.GroupByKey()
        | "Plan" >> beam.Map(_plan, shard_megabytes)
    )
    _ = (
        records
        | "Assign" >> beam.Map(_assign, beam.pvalue.AsDict(plan))
        | "RecordsByShard" >> beam.GroupByKey()
        | "Write" >> beam.Map(_write, beam.pvalue.AsDict(plan), directory, groups)
    )


@dataclasses.dataclass(frozen=True)
class _Record:
    place: bytes  # the utterance's order; Beam has no numbers that large
    samples: int
    content: bytes


def _read(
    numbered: tuple[int, list[SourceUtterance]], directory: pathlib.Path, conversion: Conversion
) -> Iterator[tuple[_Key, _Record]]:
    """The records of a part; its notes go to a file."""
    number, sources = numbered
    noted: list[Notes] = []
    for source in sources:
        # All of a file or nothing, so it is held until its end is seen to be sound.
        kept = []
        remarks: list[str] = []
        try:
            for utterance in preparation.utterances_of(source, conversion, remarks):
                place = b"".join(half.to_bytes(8) for half in assembly.shuffle_order(utterance.id))
                content = serialize(utterance, conversion.encoding)
                record = _Record(place, len(utterance.audio), content)
                kept.append((Notes.of(utterance), record))
        except InputError as error:
            noted.append(Notes.of_refused(source.name, str(error)))
            continue
        noted.append(Notes.of_odd(source.name, remarks))
        for notes, record in kept:
            noted.append(notes)
            yield (source.corpus, buckets.bucket_of(record.samples)), record
    path = directory / f"{_NOTES}-{number:06d}.json"
    files.write_json(path, dataclasses.asdict(Notes.joined(noted)))


def _plan(
    keyed: tuple[_Key, Iterable[tuple[bytes, int]]], shard_megabytes: int
) -> tuple[_Key, list[bytes]]:
    """Places and samples of a corpus's bucket to the places with which its shards begin."""
    key, utterances = keyed
    ordered = sorted(utterances)
    samples = np.array([samples for _, samples in ordered])
    ranges = assembly.plan_shards(samples, shard_megabytes)
    return key, [ordered[first][0] for first, _ in ranges]


def _assign(
    keyed: tuple[_Key, _Record], plan: dict[_Key, list[bytes]]
) -> tuple[tuple[int, int, int], _Record]:
    key, record = keyed
    return (*key, bisect.bisect_right(plan[key], record.place) - 1), record


def _write(
    shard: tuple[tuple[int, int, int], Iterable[_Record]],
    plan: dict[_Key, list[bytes]],
    directory: pathlib.Path,
    groups: tuple[str, ...],
) -> None:
    """Writes a shard and its description."""
    (group, frames, number), records = shard
    counts = [len(plan.get((i, frames), ())) for i in range(len(groups))]
    name = assembly.shard_name(frames, sum(counts[:group]) + number, sum(counts))
    ordered = sorted(records, key=lambda record: record.place)
    places = [record.place for record in ordered]
    if len(set(places)) < len(places):
        raise InputError(f"{name}: two utterances have the same id; expected every id once")
    # A bundle may be tried twice, at the same time even.
    aside = directory / f"{name}.tmp-{uuid.uuid4().hex}"
    with RecordWriter(aside) as writer:
        for record in ordered:
            writer.write(record.content)
    os.replace(aside, directory / name)
    indexed = ShardIndex.of(index_row(record.content) for record in ordered)
    with files.writing_file(directory / f"{name}.npz") as table, open(table, "wb") as file:
        np.savez(file, **vars(indexed))
    samples = sum(record.samples for record in ordered)
    digest = files.sha256_file(directory / name)
    info = ShardInfo(name, frames, len(ordered), samples, digest, groups[group])
    files.write_json(directory / f"{name}.json", dataclasses.asdict(info))
