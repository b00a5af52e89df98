"""What is written is whole, what is listed is there, and an output that cannot be written is refused before anything starts."""

import os
import sys
from pathlib import Path

import pytest

from pipeline.errors import JobError, StorageRefused
from pipeline.storage import Storage


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out") if request.param == "local" else f"memory://{tmp_path.name}-{request.node.name.translate({91: 45, 93: 45})}")


def test_bytes_come_back_and_are_listed(storage: Storage) -> None:
    storage.write_bytes("a/b.json", b"one")
    storage.write_bytes("a/b.json", b"two")
    storage.write_bytes("c.txt", b"")
    assert storage.read_bytes("a/b.json") == b"two"
    assert storage.find() == ["a/b.json", "c.txt"]
    assert storage.find("a") == ["a/b.json"]
    assert storage.find("nowhere") == []
    assert storage.size("a/b.json") == 3


def test_create_wins_once(storage: Storage) -> None:
    assert storage.create_bytes("lease", b"first")
    assert not storage.create_bytes("lease", b"second")
    assert storage.read_bytes("lease") == b"first"
    assert storage.find() == ["lease"]


def test_files_arrive_whole(storage: Storage, tmp_path: Path) -> None:
    local = tmp_path / "raster.tif"
    local.write_bytes(os.urandom(100_000))
    storage.put_file(local, "t/v1/raster.tif")
    assert storage.read_bytes("t/v1/raster.tif") == local.read_bytes()
    assert storage.find() == ["t/v1/raster.tif"]


def test_deleting_nothing_is_no_error(storage: Storage) -> None:
    storage.delete("nothing")
    storage.write_bytes("d/e", b"x")
    storage.delete("d")
    assert not storage.exists("d/e")


def test_deleting_the_last_file_of_a_folder_leaves_no_folder(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("work/a/1", b"x")
    storage.write_bytes("work/b", b"x")
    storage.delete("work/a/1")
    assert not (tmp_path / "work" / "a").exists()
    storage.delete("work/b")
    assert not (tmp_path / "work").exists()


def test_a_file_that_is_being_written_lies_apart_from_what_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Path, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        Storage(str(tmp_path)).write_bytes("maps/catalog.json", b"{}")
    assert [path.parent.name for path in tmp_path.rglob("*") if path.is_file()] == [".work"]


def test_check_writable_leaves_nothing(storage: Storage) -> None:
    storage.check_writable()
    assert storage.find() == []


def test_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(JobError, match="cannot be written"):
        Storage(str(tmp_path / "file" / "out")).check_writable()


def test_output_with_a_password_in_its_url_is_refused_without_saying_it() -> None:
    with pytest.raises(JobError, match="output ftp://host/maps carries a password") as caught:
        Storage("ftp://mapper:passw0rd@host/maps").check_writable()
    assert "passw0rd" not in str(caught.value)


@pytest.mark.parametrize("root", ["floppy://a", "zip://there-is-none.zip", "gs://maps/m", "abfs://maps/m"])
def test_what_no_file_system_opens_is_a_sentence(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(JobError, match=f"{root} cannot be opened .*; give a folder, or a URL"):
        Storage(root).exists("catalog.json")


def test_a_store_without_a_bucket_is_a_sentence() -> None:
    with pytest.raises(StorageRefused, match="name a bucket and a folder in it"):
        Storage("s3://").exists("catalog.json")


def test_below_a_file_nothing_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"-")
    assert Storage(str(tmp_path / "file")).read_if_there("catalog.json") is None
