"""Paths of this host and in buckets (gs://, s3://): one way to name, read and write both."""

from hubert_jax.storage.cache import local, scratch
from hubert_jax.storage.leases import leased
from hubert_jax.storage.paths import (
    BucketPath,
    Found,
    absolute,
    is_dir,
    is_file,
    is_url,
    names_in,
    path,
    remove_tree,
)
from hubert_jax.storage.publishing import WorkingCopy, sending_directory, sending_file

__all__ = [
    "BucketPath",
    "Found",
    "WorkingCopy",
    "absolute",
    "is_dir",
    "is_file",
    "is_url",
    "leased",
    "local",
    "names_in",
    "path",
    "remove_tree",
    "scratch",
    "sending_directory",
    "sending_file",
]
