import os
import time
from pathlib import Path

import pytest

from backend.artifacts import Artifacts

HOUR = 3600.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"some weights")
    return path


def _age(artifacts: Artifacts, sha256: str, hours: float) -> None:
    then = time.time() - HOUR * hours
    os.utime(artifacts.local_path(sha256), (then, then))


def test_a_sweep_takes_only_what_is_old_and_needed_by_nobody(artifacts: Artifacts, tmp_path: Path) -> None:
    stored = {}
    for name, hours in (("needed", 48.0), ("old", 48.0), ("fresh", 1.0)):
        (tmp_path / name).write_text(name)
        stored[name] = artifacts.put(tmp_path / name).sha256
        _age(artifacts, stored[name], hours)
    assert artifacts.sweep({stored["needed"]}, older_than_seconds=24 * HOUR) == 1
    assert [name for name, sha256 in stored.items() if artifacts.has(sha256)] == ["needed", "fresh"]


def test_storing_again_makes_a_file_young_again(artifacts: Artifacts, file: Path) -> None:
    """The row that names it may not be committed yet."""
    sha256 = artifacts.put(file).sha256
    _age(artifacts, sha256, 48)
    artifacts.put(file)
    assert artifacts.sweep(set(), older_than_seconds=24 * HOUR) == 0
    assert artifacts.has(sha256)


def test_a_folder_comes_back_byte_for_byte_and_no_name_leaves_it(artifacts: Artifacts, tmp_path: Path) -> None:
    source = tmp_path / "model"
    (source / "deep").mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "deep" / "weights").write_bytes(bytes(range(256)))
    manifest = artifacts.put_folder(source)
    back = artifacts.checkout(manifest, tmp_path / "back")
    assert (back / "deep" / "weights").read_bytes() == bytes(range(256))
    with pytest.raises(ValueError, match="would leave"):
        artifacts.checkout([manifest[0]._replace(name="../evil")], tmp_path / "back")


def test_a_link_is_no_artifact(artifacts: Artifacts, tmp_path: Path, file: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (source / "link").symlink_to(file)
    with pytest.raises(ValueError, match="is a link"):
        artifacts.put_folder(source)


def test_a_store_that_is_not_local_is_cached_and_verified(tmp_path: Path, file: Path) -> None:
    remote = Artifacts("memory://studio-test", tmp_path / "cache")
    sha256 = remote.put(file).sha256
    assert remote.local_path(sha256).read_bytes() == b"some weights"
    with remote.open(sha256) as stream:
        assert stream.read() == b"some weights"
    assert remote.sweep(set(), older_than_seconds=24 * HOUR) == 0
    assert remote.sweep(set(), older_than_seconds=-1) == 1
