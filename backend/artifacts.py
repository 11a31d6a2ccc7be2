"""Content-addressed files: weights, rows, checkpoints. A file's name is the SHA-256 of its bytes, so nothing is ever overwritten.

The store is a folder or any fsspec URL (``s3://…``); a machine that needs a local path gets one (the file itself when the
store is a local folder, else a cached copy that is verified when it arrives).
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

CHUNK = 1 << 20


class FileEntry(NamedTuple):
    """One file of a folder: relative *name*, *size* in bytes, hex *sha256*."""

    name: str
    size: int
    sha256: str


Manifest = list[FileEntry]


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of the file at *path*, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def manifest_of(folder: Path) -> Manifest:
    """Every regular file below *folder*, sorted by name; links are refused."""
    entries: Manifest = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ValueError(f"{path} is a link; artifacts hold only regular files")
        if path.is_file():
            entries.append(FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_of(path)))
    return entries


class Artifacts:
    """The store at *url*; *cache* is a local folder for copies when the store itself is not local."""

    def __init__(self, url: str, cache: Path) -> None:
        self._fs, root = fsspec.core.url_to_fs(url)
        self._root = str(root).rstrip("/")
        self._cache = cache
        self._local = isinstance(self._fs, LocalFileSystem)
        if self._local:
            Path(self._root).mkdir(parents=True, exist_ok=True)

    def _key(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256}"

    def put(self, path: Path) -> FileEntry:
        """Store the file at *path*; storing the same bytes twice is one file, whose age starts anew (see :meth:`sweep`)."""
        sha256, size = sha256_of(path), path.stat().st_size
        key = self._key(sha256)
        if not self._local:
            self._fs.put_file(str(path), key)
        elif self.has(sha256):
            os.utime(key)
        else:
            temporary = f"{key}.{uuid.uuid4().hex}.tmp"
            self._fs.makedirs(os.path.dirname(key), exist_ok=True)
            shutil.copyfile(path, temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o444)
            os.replace(temporary, key)
        return FileEntry(path.name, size, sha256)

    def sweep(self, needed: Collection[str], *, older_than_seconds: float) -> int:
        """Remove files that nobody needs; returns how many.

        *needed* are the hashes that rows name. A file may be stored before the row that names it is committed, so only files
        that were stored long ago, and not again since, go.
        """
        before = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
        removed = 0
        for key in self._fs.find(self._root):
            if key.rsplit("/", 1)[-1] in needed:
                continue
            stored = self._fs.modified(key)
            if stored.replace(tzinfo=stored.tzinfo or UTC) < before:
                self._fs.rm_file(key)
                removed += 1
        return removed

    def put_folder(self, folder: Path) -> Manifest:
        """Store every file of *folder*; returns the manifest by which :meth:`checkout` rebuilds it."""
        manifest = manifest_of(folder)
        for entry in manifest:
            self.put(folder / entry.name)
        return manifest

    def has(self, sha256: str) -> bool:
        """Whether the file is in the store."""
        return bool(self._fs.exists(self._key(sha256)))

    def open(self, sha256: str) -> BinaryIO:
        """The stored bytes, as a stream."""
        return self._fs.open(self._key(sha256), "rb")  # type: ignore[no-any-return]

    def local_path(self, sha256: str) -> Path:
        """A local file with these bytes (read-only; do not write to it). Raises ``FileNotFoundError``."""
        if self._local:
            path = Path(self._key(sha256))
            if not path.exists():
                raise FileNotFoundError(path)
            return path
        path = self._cache / sha256[:2] / sha256
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
            self._fs.get_file(self._key(sha256), str(temporary))
            if sha256_of(temporary) != sha256:
                temporary.unlink()
                raise OSError(f"artifact {sha256} arrived damaged")
            os.replace(temporary, path)
        return path

    def checkout(self, manifest: Manifest, folder: Path) -> Path:
        """Rebuild a stored folder at *folder* (copies, so that a recipe may write beside them)."""
        for name, _, sha256 in manifest:
            target = folder / name
            if not target.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{name} would leave the folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.local_path(sha256), target)
        return folder
