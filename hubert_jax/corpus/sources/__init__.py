"""What a corpus is: folders of audio, manifests, tables of rows, TensorFlow Datasets builders.

`discover` lists the utterances of any of them; `hubert_jax.corpus.audio_files` reads their audio. A
further kind of corpus is another module with a function that returns `SourceUtterance`s: nothing
downstream knows where they came from.
"""

import operator
import os
import pathlib

from hubert_jax.corpus.sources import fairseq, folders, parquet, tfds
from hubert_jax.corpus.sources.utterances import SourceUtterance, refuse_duplicates
from hubert_jax.errors import InputError

__all__ = ["SourceUtterance", "discover", "refuse_duplicates"]


def discover(location: str | os.PathLike, data_dir: str = "") -> list[SourceUtterance]:
    """Lists a corpus's utterances, sorted by id.

    Args:
      location: one of
        `tfds:NAME/SPLIT`, a data set that TensorFlow Datasets has prepared (`sources.tfds`);
        a `.tsv` file, a manifest as fairseq writes it (`sources.fairseq`);
        a `.parquet` file, or a folder of them (`sources.parquet`);
        any other folder: audio files with or without transcripts (`sources.folders`).
      data_dir: where TensorFlow Datasets keeps what it prepared; "": where it does by default.

    Raises:
      InputError: there is no such corpus, it is empty, it cannot be listed, or two of its
        utterances have the same id; the message names the file and line where there is one.
    """
    name = os.fspath(location)
    if name.startswith(tfds.PREFIX):
        utterances = tfds.discover(name, data_dir)
    else:
        path = pathlib.Path(location)
        suffix = path.suffix.lower()
        if suffix == ".tsv" and path.is_file():
            utterances = fairseq.discover(path)
        elif suffix == ".parquet" and path.is_file():
            utterances = parquet.discover([path])
        elif path.is_dir():
            found = folders.walk(path)
            # Some corpora keep single files beside their tables, as samples.
            if found.parquet and not found.audio:
                utterances = parquet.discover(found.parquet)
            else:
                utterances = folders.discover(path, found)
        else:
            what = "a file" if path.exists() else "nothing"
            raise InputError(
                f"{path}: expected a folder of audio files, a .tsv or a .parquet file, "
                f"found {what} there"
            )
    utterances.sort(key=operator.attrgetter("id"))
    refuse_duplicates(utterances)
    return utterances
