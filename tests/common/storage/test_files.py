"""A file is complete under its final name, or not there."""

import hashlib
from pathlib import Path

import pytest

from common.errors import StoreError
from common.storage.files import publish, sha256_of, write_atomically


def test_content_arrives_in_folders_made_on_the_way(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, b"content")
    assert path.read_bytes() == b"content"


def test_a_new_version_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old and longer")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_target_as_it_was_and_no_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / "taken"
    (target / "inside").mkdir(parents=True)
    with pytest.raises(StoreError, match="taken"):
        write_atomically(target, b"content")
    assert list(tmp_path.iterdir()) == [target]
    assert (target / "inside").is_dir()


def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(StoreError, match=r"cannot write .*below"):
        write_atomically(tmp_path / "file" / "below", b"content")


def test_publishing_moves_the_file(tmp_path: Path) -> None:
    temporary, final = tmp_path / "part", tmp_path / "folder" / "final"
    temporary.write_bytes(b"content")
    publish(temporary, final)
    assert final.read_bytes() == b"content"
    assert not temporary.exists()


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (2 << 20) + 3])
def test_a_digest_does_not_depend_on_how_the_file_is_read(tmp_path: Path, size: int) -> None:
    content = bytes(i % 251 for i in range(size))
    path = tmp_path / "file"
    path.write_bytes(content)
    assert sha256_of(path) == hashlib.sha256(content).hexdigest()
