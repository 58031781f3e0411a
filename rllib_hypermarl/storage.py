"""Where results go: a directory, or a URI of any file system that pyarrow opens (`s3://`, `gs://`, `hdfs://`, ...).

Training appends to files and renames directories, which object stores cannot do. So a URI has a working copy on the
machine that writes it: fetched when work begins, sent after each checkpoint. A checkpoint's manifest is sent last and
removed first, so that one that was cut short there is not mistaken for a whole one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, RunFailedError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_LAST = "manifest.json"
"""Files of this name are sent after all others: what they vouch for is there already."""


class Storage:
    """A directory to work in, and perhaps the URI that its files are kept at.

    Without a URI, `fetch`, `send` and `close` have nothing to do.

    Args:
        where: a path or a URI.
        below: a directory under it, its parts separated by `/`.
    """

    def __init__(self, where: str | Path, below: str = ""):
        self._where, self._below = str(where), below
        self.uri: str | None = None
        if is_uri(where):
            base, mark, options = self._where.partition("?")  # s3://bucket/run?endpoint_override=...
            self.uri = f"{base.rstrip('/')}/{below}".rstrip("/") + mark + options
        self._sent: dict[str, tuple[int, int]] = {}
        self._made: set[str] = set()  # directories at the URI
        self._failed = False
        self._sender: threading.Thread | None = None

    @functools.cached_property
    def path(self) -> Path:
        """Where to work: the directory itself, or a working copy of the URI that is this object's alone."""
        if self.uri is None:
            return Path(self._where) / self._below
        name = self.uri.partition("?")[0].rpartition("/")[2]
        path = Path(tempfile.mkdtemp(prefix="rllib_hypermarl-")) / name
        path.mkdir()
        return path

    def __str__(self) -> str:
        return self.uri or str(self.path)

    def below(self, *parts: str) -> Storage:
        """The storage of a directory under this one."""
        return Storage(self._where, "/".join([self._below, *parts]).strip("/"))

    def file_system(self) -> tuple[FileSystem, str] | tuple[None, str]:
        """As Tune takes it: pyarrow's file system and the path in it; None and the path where there is no URI.

        Raises:
            ConfigError: pyarrow does not know such a URI, or lacks what it needs to open it.
        """
        if self.uri is None:
            return None, str(self.path.absolute())
        return self._opened

    @functools.cached_property
    def _opened(self) -> tuple[FileSystem, str]:
        from pyarrow import ArrowException
        from pyarrow.fs import FileSystem

        try:
            system, base = FileSystem.from_uri(self._where)
        except (ArrowException, OSError, ValueError) as error:
            raise ConfigError(f"{self._where}: {_reason(error)}") from error
        return system, str(PurePosixPath(base) / self._below)

    def fetch(self, whole: bool = True) -> None:
        """Replaces the working copy by what is at the URI; a checkpoint without its manifest is left out.

        Args:
            whole: everything below it; else only the files in it.

        Raises:
            ConfigError: the URI cannot be read.
        """
        if self.uri is None:
            return
        from pyarrow.fs import FileSelector, LocalFileSystem, copy_files

        system, base = self.file_system()
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir()
        self._sent = {}
        try:
            found = system.get_file_info(FileSelector(base, allow_not_found=True, recursive=whole))
            names = [str(PurePosixPath(info.path).relative_to(base)) for info in found if info.is_file]
            for name in _whole_ones(names):
                target = self.path / name
                target.parent.mkdir(parents=True, exist_ok=True)
                copy_files(f"{base}/{name}", str(target), source_filesystem=system,
                           destination_filesystem=LocalFileSystem(), use_threads=False)  # fmt: skip
                self._sent[name] = _stamp(target)
        except OSError as error:
            raise ConfigError(f"{self.uri}: cannot be read ({_reason(error)})") from error

    def send(self, *names: str) -> None:
        """Brings the URI up to date: files that are new or have changed, and away with those that are gone.

        Args:
            names: only these files. None: all but hidden ones.

        Raises:
            ConfigError: the URI cannot be written.
        """
        if self.uri is None:
            return
        from pyarrow.fs import LocalFileSystem, copy_files

        self.wait()
        system, base = self.file_system()
        try:
            with self._still(names) as still:
                present = _files(still)
                for name in sorted(present, key=lambda name: (name.endswith(_LAST), name)):
                    stamp = _stamp(still / name)
                    if self._sent.get(name) == stamp:
                        continue
                    target = f"{base}/{name}"
                    self._make_directory(system, target.rpartition("/")[0])
                    copy_files(str(still / name), target, source_filesystem=LocalFileSystem(),
                               destination_filesystem=system, use_threads=False)  # fmt: skip
                    self._sent[name] = stamp
            gone = set() if names else self._sent.keys() - set(present)
            for name in sorted(gone, key=lambda name: not name.endswith(_LAST)):
                system.delete_file(f"{base}/{name}")
                del self._sent[name]
        except OSError as error:
            raise ConfigError(f"{self.uri}: cannot be written ({_reason(error)})") from error

    @contextlib.contextmanager
    def _still(self, names: Collection[str]) -> Iterator[Path]:
        """A directory of hard links to `names` (to all but hidden files where there are none).

        Sending may take longer than a checkpoint lives; what is linked stays until it is sent.
        """
        still = self.path.parent / "sending"
        shutil.rmtree(still, ignore_errors=True)
        still.mkdir()
        for name in names or _files(self.path):
            (still / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self.path / name, still / name)
            except FileNotFoundError:  # of an old checkpoint, removed meanwhile
                continue
        for manifest in list(still.rglob(_LAST)):
            if not (self.path / manifest.relative_to(still)).exists():  # more of it may be missing
                shutil.rmtree(manifest.parent)
        try:
            yield still
        finally:
            shutil.rmtree(still, ignore_errors=True)

    def send_or_say(self, *names: str) -> None:
        """As `send`; what cannot be sent is said, once until it can be again, and tried again the next time."""
        try:
            self.send(*names)
            self._failed = False
        except ConfigError as error:
            if not self._failed:
                print(f"{error}; results stay in {self.path}, and go there when it answers", file=sys.stderr)
            self._failed = True

    def send_soon(self) -> None:
        """As `send_or_say`, while work goes on."""
        if self.uri is None or (self._sender is not None and self._sender.is_alive()):
            return
        self._sender = threading.Thread(target=self.send_or_say, daemon=True)
        self._sender.start()

    def wait(self) -> None:
        """Until nothing is being sent."""
        if self._sender is not None and self._sender is not threading.current_thread():
            self._sender.join()

    def close(self) -> None:
        """Sends what is not there yet, and removes the working copy.

        Raises:
            RunFailedError: it cannot be sent; the working copy stays, and the message says where.
        """
        if self.uri is None:
            return
        try:
            self.send()
        except ConfigError as error:
            raise RunFailedError(f"{error}; the results are in {self.path}") from error
        self.discard()

    def discard(self) -> None:
        """Removes the working copy."""
        if self.uri is not None and "path" in vars(self):
            shutil.rmtree(self.path.parent, ignore_errors=True)

    def _make_directory(self, system: FileSystem, path: str) -> None:
        """At the URI, once: each time would be a request."""
        if path not in self._made:
            system.create_dir(path, recursive=True)
            self._made.add(path)


def is_uri(where: Any) -> bool:
    """Whether a path is none, but a URI."""
    return "://" in str(where)


def _files(path: Path) -> list[str]:
    """Names of all files below `path` but hidden ones, their parts separated by `/`."""
    found = []
    for directory, below, names in os.walk(path):  # which does not mind directories that vanish meanwhile
        below[:] = [name for name in below if not name.startswith(".")]
        relative = Path(directory).relative_to(path)
        found += [(relative / name).as_posix() for name in names if not name.startswith(".")]
    return found


def _whole_ones(names: list[str]) -> list[str]:
    """Without files of checkpoints whose manifest is missing."""
    vouched = {name.rpartition("/")[0] for name in names if name.endswith(_LAST)}
    kept = []
    for name in names:
        parts = name.split("/")
        depth = next((i for i, part in enumerate(parts) if part.startswith("checkpoint_")), None)
        if depth is None or "/".join(parts[: depth + 1]) in vouched:
            kept.append(name)
    return kept


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
