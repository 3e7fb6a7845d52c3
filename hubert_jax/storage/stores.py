"""What serves a scheme's buckets: fsspec's file systems, their conditions and their errors."""

import contextlib
import errno
import functools
import importlib
import json
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from hubert_jax.errors import InputError, Unavailable

T = TypeVar("T")
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
# Of this host, which no other try mends.
_OF_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_CHANGED = ("PreconditionFailed", "pre-condition")
_LONGEST_SECONDS = 16.0  # between two tries


class Store:
    """One kind of service; as it is, that of fsspec's memory, which is this process's own."""

    scheme = "memory"
    package = "fsspec"
    tries = 5  # of a request that fails with an error that may pass
    whole: dict[str, Any] = {}  # options of `cat_file` for one request
    _options: dict[str, Any] = {}
    _writing = threading.Lock()

    @staticmethod
    def of(scheme: str) -> "Store":
        """The service of a scheme of `SCHEMES`."""
        return _store(scheme, os.getpid())  # a process that was forked has no threads of fsspec

    @functools.cached_property
    def files(self) -> Any:
        """The service's file system of fsspec. Raises InputError where its package is missing."""
        try:
            importlib.import_module(self.package)
        except ImportError:
            raise InputError(
                f"{self.scheme}://: needs the package {self.package}, which is not installed; "
                f"pip install {self.package}"
            ) from None
        return self._made()

    def _made(self) -> Any:
        import fsspec

        # Another process writes as well, and what it writes is to be seen.
        return fsspec.filesystem(self.scheme, use_listings_cache=False, **self._options)

    def ask(self, request: Callable[[Any], T], url: str) -> T:
        """What `request` returns of `files`, asked again after errors that may pass.

        Raises FileNotFoundError, FileExistsError, IsADirectoryError or PermissionError, with `url`
        as its file name; an OSError of this host's disk; InputError where there are no
        credentials; and Unavailable for what stays, whatever was tried.
        """
        for left in reversed(range(self.tries)):
            try:
                return request(self.files)
            except (InputError, TypeError, AttributeError, MemoryError):
                raise
            except _FINAL as error:
                raise _named(error, url) from None
            except Exception as error:  # each service has its own types
                if isinstance(error, OSError) and error.errno in _OF_DISK:
                    raise
                if type(error).__name__ in _NO_CREDENTIALS:
                    raise InputError(
                        f"{url}: no credentials found ({_reason(error)}); expected those that "
                        f"{self.package} looks for, in the environment or in files of the user"
                    ) from None
                if str(error).startswith("Forbidden"):
                    raise _named(PermissionError(), url) from None
                if any(sign in f"{error!r}" for sign in _CHANGED):
                    raise FileExistsError(errno.EEXIST, "changed by another", url) from None
                if not left:
                    raise Unavailable(
                        f"{url}: {_reason(error)}; the service did not do what it was asked, in "
                        "any of several tries: look at its state, and give the same command again"
                    ) from None
            waited = 2.0 ** (self.tries - 1 - left) / 4
            time.sleep(min(waited, _LONGEST_SECONDS) * random.uniform(0.5, 1))
        raise AssertionError

    def version(self, info: dict[str, Any]) -> str:
        """What differs between one content of an object and the next, of fsspec's `info`."""
        return f"{info.get('created', '')}-{info.get('size', 0)}"

    def replace(self, key: str, content: bytes, version: str, url: str) -> str:
        """Puts an object in place of `version` of it; its new one.

        Raises FileExistsError where another has put it since, FileNotFoundError where it is gone.
        """
        with self._writing:
            if self.version(self.ask(lambda files: files.info(key), url)) != version:
                raise FileExistsError(errno.EEXIST, "changed by another", url)
            self.ask(lambda files: files.pipe_file(key, content), url)
            return self.version(self.ask(lambda files: files.info(key), url))


class _Amazon(Store):
    scheme = "s3"
    package = "s3fs"
    # One loop asks again, that of `ask`; loops in each other would multiply.
    whole = {"max_concurrency": 1}  # else the size is asked first
    _options = {"config_kwargs": {"retries": {"total_max_attempts": 1}}}

    def _made(self) -> Any:
        found = super()._made()
        found.retries = 1
        return found

    def version(self, info: dict[str, Any]) -> str:
        return str(info.get("ETag", ""))

    def replace(self, key: str, content: bytes, version: str, url: str) -> str:
        bucket, _, name = key.partition("/")

        def put(files: Any) -> str:
            named = {"Bucket": bucket, "Key": name, "Body": content, "IfMatch": version}
            return files.call_s3("put_object", **named)["ETag"]

        return self.ask(put, url)


class _Google(Store):
    scheme = "gs"
    package = "gcsfs"
    tries = 1  # gcsfs asks six times by itself

    def _made(self) -> Any:
        from gcsfs.core import GCSFileSystem

        # gcsfs's own choice asks of every request what kind of bucket it is.
        return GCSFileSystem(use_listings_cache=False)

    def version(self, info: dict[str, Any]) -> str:
        return str(info.get("generation", ""))

    def replace(self, key: str, content: bytes, version: str, url: str) -> str:
        bucket, _, name = key.partition("/")

        described = json.dumps({"name": name}).encode()
        parts = ((b"application/json", described), (b"application/octet-stream", content))
        body = b"".join(b"--==\nContent-Type: %b\n\n%b\n" % part for part in parts) + b"--==--"

        def put(files: Any) -> str:
            place = f"{files.base.replace('/storage/', '/upload/storage/')}b/{bucket}/o"
            asked = {"uploadType": "multipart", "ifGenerationMatch": version, "json_out": True}
            headers = {"Content-Type": 'multipart/related; boundary="=="'}
            return str(files.call("POST", place, headers=headers, data=body, **asked)["generation"])

        return self.ask(put, url)


_KINDS: dict[str, type[Store]] = {kind.scheme: kind for kind in (_Google, _Amazon, Store)}
SCHEMES = tuple(_KINDS)


@functools.cache
def _store(scheme: str, process: int) -> Store:
    return _KINDS[scheme]()


def _named(error: OSError, url: str) -> OSError:
    """The error as the local file system would have it, with a file name and a reason."""
    numbers = {
        FileNotFoundError: errno.ENOENT,
        FileExistsError: errno.EEXIST,
        PermissionError: errno.EACCES,
        IsADirectoryError: errno.EISDIR,
    }
    kind = next(kind for kind in numbers if isinstance(error, kind))
    return kind(numbers[kind], os.strerror(numbers[kind]), url)


def _reason(error: Exception) -> str:
    with contextlib.suppress(AttributeError):
        if text := getattr(error, "strerror", None):
            return " ".join(str(text).split())[:200]
    return " ".join((str(error) or type(error).__name__).split())[:200]
