"""Paths: `pathlib.Path` for what is on this host, `BucketPath` for what is in a bucket."""

import contextlib
import errno
import fnmatch
import hashlib
import io
import os
import pathlib
import posixpath
import re
import shutil
import stat
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn, TypeVar

from hubert_jax.errors import InputError
from hubert_jax.storage.stores import SCHEMES, Store

T = TypeVar("T")
_URL = re.compile(r"([A-Za-z][\w+.-]*)://")
_ROOTS = {f"{scheme}:" for scheme in SCHEMES}
AT_ONCE = 16  # requests for many objects
_UNSEEN = {"", ".", ".."}  # parts of names that would be another place, on this host or there
_ALMOST = re.compile(rf"({'|'.join(SCHEMES)}):(?!//)")


class Found(NamedTuple):
    """What a listing says of an object."""

    size: int
    version: str  # another one as soon as the content is another


class BucketPath(pathlib.PosixPath):
    """A path in a bucket, with what `pathlib.Path` has to read it; all else raises OSError.

    `os.fspath`, and so `open`, NumPy and every library that opens a file, has a local copy of the
    object as it is now. Objects are replaced whole: `hubert_jax.files` writes them. Folders are
    there as soon as something is in them. Objects whose names have empty parts, "." or ".." are
    not seen. What is missing or forbidden raises the OSError of a local file; InputError where the
    credentials or the package of the service are missing; Unavailable after errors that may pass
    have been waited out.
    """

    def __str__(self) -> str:
        text = super().__str__()
        root, _, rest = text.partition("/")
        return f"{root}//{rest}" if root in _ROOTS else text  # else of `relative_to`

    def as_posix(self) -> str:
        """The URL."""
        return str(self)

    as_uri = as_posix

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    def __reduce__(self) -> tuple:
        return BucketPath, (str(self),)

    def __fspath__(self) -> str:
        if not self.is_absolute():
            return str(self)
        from hubert_jax.storage import cache  # which is of paths

        return str(cache.local(self))

    def __truediv__(self, name: Any) -> Any:
        return self.joinpath(name)

    def joinpath(self, *names: Any) -> Any:
        """As of `pathlib.Path`: a name that is absolute, or a URL, counts alone."""
        for place in range(len(names) - 1, -1, -1):
            text = str(names[place])
            if text.startswith("/") or is_url(text):
                return path(*names[place:])
        return super().joinpath(*(str(name) for name in names))

    def is_absolute(self) -> bool:
        """Whether it says in which bucket it is; not of what `relative_to` returns."""
        return self.parts[:1] != () and self.parts[0] in _ROOTS

    def absolute(self) -> "BucketPath":
        """The same."""
        return self

    def resolve(self, strict: bool = False) -> "BucketPath":
        """The same: there are no links."""
        return self

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is such an object, or one below."""
        return self._info() is not None

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is such an object."""
        info = self._info()
        return info is not None and info["type"] == "file"

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is an object below."""
        info = self._info()
        return info is not None and info["type"] == "directory"

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Size and kind; the time of change is another one as soon as the content is another."""
        info = self._info()
        if info is None:
            raise self._missing()
        return _status(self._found(info))

    def found(self) -> Found:
        """Size and version of the object; raises FileNotFoundError, or IsADirectoryError."""
        info = self._info()
        if info is None:
            raise self._missing()
        if info["type"] == "directory":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self))
        return Found(info["size"], self._store.version(info))

    def _found(self, info: dict[str, Any]) -> Found | None:
        """What fsspec says of an object; None of a folder."""
        if info["type"] == "directory":
            return None
        return Found(info["size"], self._store.version(info))

    def find(self) -> dict[str, Found]:
        """All objects below, by their names from here, sorted; one request a thousand."""
        return {
            name: Found(info["size"], self._store.version(info))
            for name, info in sorted(self._below().items())
            if not _UNSEEN & {*name.split("/")}
        }

    def _below(self) -> dict[str, dict[str, Any]]:
        """Whatever is below, by names from here, with what fsspec says of it."""
        try:
            listed = self._ask(lambda files, key: files.find(key, detail=True))
        except FileNotFoundError:
            return {}
        begin = len(self._key) + 1
        return {name.lstrip("/")[begin:]: info for name, info in listed.items()}

    def scandir(self) -> Iterator["_Entry"]:
        """What `os.scandir` has of a folder, sorted; raises FileNotFoundError where it is empty."""
        listed = self._ask(lambda files, key: files.ls(key, detail=True))
        if [(each["name"].strip("/"), each["type"]) for each in listed] == [(self._key, "file")]:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self))
        names = {posixpath.basename(each["name"].rstrip("/")): each for each in listed}
        if not listed:
            raise self._missing()
        for name, info in sorted(names.items()):
            # An empty object stands for the folder.
            if info["name"].strip("/") != self._key and name not in _UNSEEN:
                yield _Entry(self / name, self._found(info))

    def folders(self) -> Iterator[tuple["BucketPath", list["_Entry"]]]:
        """This folder and those below that no dot hides, with what is in each, sorted by name.

        One request a thousand objects; raises FileNotFoundError where there are none.
        """
        tree: dict[str, dict[str, Found | None]] = {"": {}}

        def within(name: str) -> dict[str, Found | None]:
            if name not in tree:
                above, _, own = name.rpartition("/")
                tree[name] = {}
                within(above)[own] = None
            return tree[name]

        for name, found in self.find().items():
            above, _, own = name.rpartition("/")
            within(above)[own] = found
        if not tree[""]:
            raise self._missing()
        waiting = [""]
        while waiting:
            below = waiting.pop()
            place, names = self / below, sorted(tree[below])
            yield place, [_Entry(place / name, tree[below][name]) for name in names]
            folders = [name for name in names if tree[below][name] is None and name[0] != "."]
            waiting += [f"{below}/{name}".lstrip("/") for name in reversed(folders)]

    def iterdir(self) -> Generator["BucketPath", None, None]:
        """As of `pathlib.Path`; of a folder that is not there, nothing."""
        with contextlib.suppress(FileNotFoundError):
            for entry in self.scandir():
                yield self / entry.name

    def glob(self, pattern: str, **_: Any) -> Generator["BucketPath", None, None]:
        """Those that match; each part of the pattern is one request a folder."""
        first, _separator, rest = pattern.partition("/")
        found: list[BucketPath] = []
        if not set(first) & set("*?["):
            found = [self / first] if rest or (self / first).exists() else []
        else:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found = [each for each in self.iterdir() if fnmatch.fnmatchcase(each.name, first)]
        for each in found:
            if rest:
                yield from each.glob(rest)
            else:
                yield each

    def rglob(self, pattern: str, **_: Any) -> Generator["BucketPath", None, None]:
        """Objects below whose names match."""
        for name in self.find():
            if fnmatch.fnmatchcase(posixpath.basename(name), pattern):
                yield self / name

    def open(self, mode: str = "r", *arguments: Any, **named: Any) -> Any:  # type: ignore[override]
        """Opens a local copy to read it."""
        if set(mode) & set("wax+"):
            self._refuse()
        return open(self, mode, *arguments, **named)

    def read_bytes(self) -> bytes:
        """The content; one request."""
        return self._ask(lambda files, key: files.cat_file(key, **self._store.whole))

    def read_text(
        self, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> str:
        """The content as text, of UTF-8 unless said otherwise."""
        content = io.BytesIO(self.read_bytes())
        return io.TextIOWrapper(content, encoding or "utf-8", errors, newline).read()

    def read_range(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer at the end; one request."""
        if length <= 0:
            return b""
        end = offset + length
        return self._ask(lambda files, key: files.cat_file(key, start=offset, end=end))

    def write_bytes(self, content: Any) -> int:
        """Puts an object; another process sees all of it or nothing."""
        self._ask(lambda files, key: files.pipe_file(key, bytes(content)))
        return len(content)

    def write_text(
        self,
        data: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> int:
        """As `write_bytes`, in UTF-8 unless said otherwise."""
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def create(self, content: bytes) -> None:
        """Puts an object; raises FileExistsError where there is one already."""
        self._ask(lambda files, key: files.pipe_file(key, content, mode="create"))

    def replace_version(self, content: bytes, version: str) -> str:
        """Puts an object in place of `version` of it; returns its new one.

        Raises FileExistsError where another has put it since, FileNotFoundError where it is gone.
        """
        return self._store.replace(self._key, content, version, str(self))

    def send(self, file: str | os.PathLike) -> None:
        """Puts the content of a local file."""
        name = os.fspath(file)
        self._ask(lambda files, key: files.put_file(name, key))

    def fetch(self, file: str | os.PathLike) -> None:
        """Writes the object into a local file."""
        name = os.fspath(file)
        self._ask(lambda files, key: files.get_file(key, name))

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing; raises FileExistsError where an object is in the way."""
        if self.is_file() or (not exist_ok and self.exists()):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self))

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object."""
        if not missing_ok and not self.is_file():
            raise self._missing()
        with contextlib.suppress(FileNotFoundError):
            self._ask(lambda files, key: files.rm_file(key))

    def remove_tree(self, markers: tuple[str, ...] = ()) -> None:
        """Removes what is below: first objects named as one of `markers`, then all others."""
        found = list(self._below())

        def remove(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):  # by its key: parts may be empty
                self._ask(lambda files, key: files.rm_file(f"{key}/{name}"))

        for first in (True, False):
            in_parallel(
                remove, [name for name in found if (posixpath.basename(name) in markers) is first]
            )

    def copy_tree(self, target: "BucketPath", markers: tuple[str, ...] = ()) -> None:
        """Copies what is below within the service, objects named as one of `markers` last."""
        found = list(self.find())

        def copy(name: str) -> None:
            to = (target / name)._key
            (self / name)._ask(lambda files, key: files.cp_file(key, to))

        for last in (False, True):
            in_parallel(
                copy, [name for name in found if (posixpath.basename(name) in markers) is last]
            )

    def rename(self, target: Any) -> "BucketPath":
        """Copies an object, or what is below, within the bucket, then removes it; not atomic."""
        goal = path(target)
        if not isinstance(goal, BucketPath) or goal.parts[0] != self.parts[0]:
            self._refuse()
        if self.is_file():
            to = goal._key
            self._ask(lambda files, key: files.cp_file(key, to))
            self.unlink()
        else:
            markers = ("manifest.json", "result.json", "_CHECKPOINT_METADATA")
            self.copy_tree(goal, markers)
            self.remove_tree(markers)
        return goal

    replace = rename

    @property
    def _store(self) -> Store:
        if not self.is_absolute():
            raise OSError(errno.EINVAL, "not in a bucket", str(self))
        return Store.of(self.parts[0][:-1])

    @property
    def _key(self) -> str:
        return "/".join(self.parts[1:])

    def _ask(self, request: Callable[[Any, str], T]) -> T:
        key = self._key
        return self._store.ask(lambda files: request(files, key), str(self))

    def _info(self) -> dict[str, Any] | None:
        """Of an object or folder; None where there is none."""
        try:
            return self._ask(lambda files, key: files.info(key))
        except FileNotFoundError:
            return None

    def _missing(self) -> FileNotFoundError:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise OSError(errno.EROFS, "an object is not changed in place", str(self))


for _name in (
    *("touch", "chmod", "lchmod", "symlink_to", "hardlink_to", "link_to", "readlink", "rmdir"),
    *("owner", "group", "samefile", "expanduser", "walk", "lstat"),
):  # of `pathlib.Path`, they would do it to the local copy
    setattr(BucketPath, _name, BucketPath._refuse)


class _Entry:
    """What `os.DirEntry` has of a name in a bucket; `found` is None for a folder."""

    def __init__(self, place: BucketPath, found: Found | None) -> None:
        self.name, self.path, self.found = place.name, str(place), found

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a folder."""
        return self.found is None

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is an object."""
        return self.found is not None

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """As of `BucketPath`, without a request."""
        return _status(self.found)


def _status(found: Found | None) -> os.stat_result:
    mode = stat.S_IFDIR | 0o777 if found is None else stat.S_IFREG | 0o666
    size, version = found or (0, "")
    changed = int(hashlib.sha256(version.encode()).hexdigest()[:12], 16)
    numbers = (mode, 0, 0, 1, 0, 0, size, 0, changed // 10**9, 0)
    return os.stat_result(numbers, {"st_mtime_ns": changed})


def in_parallel(work: Callable[[T], Any], items: list[T]) -> None:
    """Does `work` with all items, some at once; raises what the first that fails does."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(work, items):
            pass


def is_url(name: str | os.PathLike) -> bool:
    """Whether a path is in a bucket; raises InputError for a URL of any other kind.

    A local path may hold "://" further in, as hf:gs://... does not: of such take the rest.
    """
    if isinstance(name, BucketPath):
        return name.is_absolute()
    if not isinstance(name, str):
        return False
    if almost := _ALMOST.match(name):  # or it would be a local folder called s3:
        raise InputError(f"{name}: expected {almost[1]}://BUCKET/NAME, with two slashes")
    if "://" not in name:
        return False
    found = _URL.match(name)
    if found is None:
        return False
    if found[1] not in SCHEMES:
        raise InputError(
            f"{name}: a URL of kind {found[1]}://; expected a local path or one of "
            + ", ".join(f"{scheme}://BUCKET/NAME" for scheme in SCHEMES[:2])
        )
    return True


def path(first: str | os.PathLike = ".", *names: str | os.PathLike) -> pathlib.Path:
    """`pathlib.Path(first, *names)`, which is a `BucketPath` where it is in a bucket.

    Raises InputError for a URL of an unknown kind or without a bucket.
    """
    for place in range(len(names) - 1, -1, -1):  # as in pathlib, the last absolute one counts
        if is_url(names[place]) or str(names[place]).startswith("/"):
            return path(*names[place:])
    if not is_url(first):
        return pathlib.Path(first, *names)
    found = BucketPath(str(first), *(str(name) for name in names))
    if len(found.parts) < 2:
        raise InputError(f"{first}: names no bucket; expected {found.parts[0]}//BUCKET/NAME")
    return found


def absolute(name: str | os.PathLike) -> pathlib.Path:
    """The path from the root or bucket, without `.` and `..`."""
    found = path(name)
    if not isinstance(found, BucketPath):
        return pathlib.Path(os.path.abspath(found))
    scheme, bucket, *below = found.parts
    tail = posixpath.normpath("/".join(["", *below])) if below else ""
    return BucketPath(f"{scheme}//{bucket}{tail}")


def is_file(name: str | os.PathLike) -> bool:
    """Whether there is such a file; not for a name that is too long, where pathlib raises."""
    return path(name).is_file() if is_url(name) else os.path.isfile(name)


def is_dir(name: str | os.PathLike) -> bool:
    """Whether there is such a folder, as `is_file`."""
    return path(name).is_dir() if is_url(name) else os.path.isdir(name)


def names_in(folder: str | os.PathLike) -> list[str]:
    """What `os.listdir` returns of a folder."""
    found = path(folder)
    if isinstance(found, BucketPath):
        return [entry.name for entry in found.scandir()]
    return os.listdir(found)


def remove_tree(
    folder: str | os.PathLike, ignore_errors: bool = False, markers: tuple[str, ...] = ()
) -> None:
    """What `shutil.rmtree` does; in a bucket, files named as one of `markers` go first."""
    found = path(folder)
    if not isinstance(found, BucketPath):
        shutil.rmtree(found, ignore_errors=ignore_errors)
        return
    with contextlib.suppress(OSError) if ignore_errors else contextlib.nullcontext():
        found.remove_tree(markers)
