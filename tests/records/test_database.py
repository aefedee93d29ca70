"""Which databases are taken, and what is said of those that are not."""

from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from backend.api.catalogue import sentence
from backend.base.config import PROJECT_ROOT
from backend.base.errors import RecordsRefused
from backend.records.database import SHARES, Database, file_system
from tests.records.made import raises

Partition = namedtuple("Partition", "device mountpoint fstype opts")


def test_a_relative_file_is_relative_to_the_project() -> None:
    assert Database("sqlite:///data/x.db").path == PROJECT_ROOT / "data" / "x.db"


def test_the_folder_of_the_file_is_made(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'new' / 'folder' / 'x.db'}")
    with database.alone():
        assert (tmp_path / "new" / "folder").is_dir()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("inspections.db", "no URL"),
        ("mysql://server/name", "not mysql"),
        ("sqlite://", "name one"),
        ("sqlite:///:memory:", "name one"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_in_words(url: str, says: str) -> None:
    with raises(RecordsRefused, says) as refused:
        Database(url)
    assert "RESULTS_DB" in sentence(refused.value, "es")


def test_a_password_is_in_no_text() -> None:
    database = Database("postgresql://tests:secret@nowhere.invalid/name")
    assert "secret" not in database.name
    assert "nowhere.invalid" in database.name


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p"])
def test_a_file_on_a_network_share_is_refused_with_what_to_do(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = [Partition("/dev/sda1", "/", "ext4", "rw"), Partition("nas:/x", str(tmp_path), kind, "rw")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    with raises(RecordsRefused, "PostgreSQL server") as refused:
        Database(f"sqlite:///{tmp_path / 'deeper' / 'x.db'}")
    assert "carpeta de red" in sentence(refused.value, "es")
    assert Database("sqlite:////elsewhere/x.db").path == Path("/elsewhere/x.db")


def test_a_network_drive_of_windows_is_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = Partition("Z:\\", str(tmp_path), "NTFS", "rw,remote")
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: [drive])
    assert file_system(tmp_path / "x.db") in SHARES


def test_the_disks_of_this_machine_are_no_shares(tmp_path: Path) -> None:
    assert file_system(tmp_path) not in SHARES
