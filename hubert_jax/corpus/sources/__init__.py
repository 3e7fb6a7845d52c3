"""What a corpus is: each module here gives the `SourceUtterance`s of one kind."""

import operator
import os

from hubert_jax import storage
from hubert_jax.corpus.sources import common_voice, fairseq, folders, parquet, splits, tfds
from hubert_jax.corpus.sources.utterances import SourceUtterance, refuse_duplicates
from hubert_jax.errors import InputError


def discover(location: str | os.PathLike, data_dir: str = "") -> list[SourceUtterance]:
    """A corpus's utterances, sorted by id.

    `location` is `tfds:NAME/SPLIT` (with `data_dir` as in `tfds.discover`), a `.tsv` of fairseq or
    Common Voice, a `.parquet` file or a folder of them, or a folder of audio files. FOLDER/SPLIT,
    where no such folder is, takes one of the splits of the tables in FOLDER.

    Raises InputError for a missing or empty corpus, one that cannot be listed, an id twice,
    tables of several splits, or Parquet tables and audio files in one folder.
    """
    name, path = str(location), storage.path(location)
    suffix = path.suffix.lower()
    if name.startswith(tfds.PREFIX):
        utterances = tfds.discover(name, data_dir)
    elif suffix == ".tsv" and path.is_file():
        of_table = common_voice if common_voice.is_table(path) else fairseq
        utterances = of_table.discover(path)
    elif suffix == ".parquet" and path.is_file():
        utterances = parquet.discover([path], path.parent)
    elif common_voice.tables([path.with_name(f"{path.name}.tsv")]) and not path.exists():
        utterances = common_voice.discover(path.with_name(f"{path.name}.tsv"))
    elif path.is_dir() or (splits.split_of(path.name) and path.parent.is_dir()):
        folder, chosen = (path, "") if path.is_dir() else (path.parent, path.name)
        found = folders.walk(folder)
        tables = [table for listed in found for table in listed.parquet]
        unread = [table for listed in found for table in listed.unread]
        of_splits = common_voice.tables(unread)
        if of_splits and not any(listed.tables for listed in found):
            raise InputError(
                f"{folder}: tables of Common Voice, {', '.join(map(str, of_splits))}; take one by "
                f"its name, such as NAME={folder.name}/{of_splits[-1].relative_to(folder)}, or the "
                "folder clips for all recordings without transcripts"
            )
        if folder.name == "clips":
            for table in common_voice.tables(sorted(folder.parent.glob("*.tsv")))[:1]:
                print(
                    f"{folder}: warning: these are the recordings of {table} and of every table "
                    "beside it, without what the tables say",
                    flush=True,
                )
        if tables and (audio := [listed for listed in found if listed.audio]):
            raise InputError(
                f"{folder}: holds {tables[0].relative_to(folder)} and audio files, such as "
                f"{(audio[0].path / audio[0].audio[0]).relative_to(folder)}; expected tables or "
                "files: name a table or a folder below, or move the others away"
            )
        if tables:
            utterances = parquet.discover(tables, folder, chosen)
        else:
            utterances = folders.discover(folder, found, chosen)
    else:
        what = "a file" if path.exists() else "nothing"
        raise InputError(
            f"{path}: expected a folder of audio files, a .tsv or a .parquet file, "
            f"found {what} there"
        )
    utterances.sort(key=operator.attrgetter("id"))
    refuse_duplicates(utterances)
    return utterances
