"""Fetching, from a server on this machine."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fcifar import data
from fcifar.errors import ExternalError, UsageError
from tests.helpers import forms, sites


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server, and the folder that it serves."""
    folder = tmp_path / "site"
    folder.mkdir()
    with sites.serving(folder) as address:
        yield address, folder


def publish(folder: Path) -> str:
    """Write an archive there, and return its md5."""
    files = {f"cifar-10-batches-py/{name}": part for name, part in forms.official().items()}
    path = forms.write_tar(folder / "a.tar.gz", files)
    return hashlib.md5(path.read_bytes()).hexdigest()


def left(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_mirror_is_fetched_in_silence(
    site: tuple[str, Path], root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    address, folder = site
    md5 = publish(folder)
    calls = []
    dataset = data.fetch(
        root, url=f"{address}/a.tar.gz", md5=md5, progress=lambda *call: calls.append(call)
    )
    assert dataset.name == "cifar10"
    assert np.array_equal(dataset.train_images.numpy(), forms.TRAIN_IMAGES)
    assert left(root) == ["cifar10.safetensors"]
    assert capfd.readouterr() == ("", "")
    assert calls[-1] == ("storing cifar10", 0, 0)


def test_what_is_there_is_not_fetched_again(site: tuple[str, Path], root: Path) -> None:
    address, folder = site
    md5 = publish(folder)
    url = f"{address}/a.tar.gz"
    first = data.fetch(root, url=url, md5=md5)
    with pytest.raises(UsageError, match="--force"):
        data.fetch(root, url="http://127.0.0.1:1/never-asked")
    assert data.fetch(root, url=url, md5=md5, overwrite=True).digest == first.digest


def expect_world_error(root: Path, url: str, message: str, md5: str | None = None) -> None:
    with pytest.raises(ExternalError, match=message) as caught:
        data.fetch(root, url=url, md5=md5)
    for words in ("--dataset shapes10", "`fcifar data import`"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not root.exists(), "it was not there before"


def test_another_file_than_the_official_one_is_refused(site: tuple[str, Path], root: Path) -> None:
    address, folder = site
    publish(folder)
    expect_world_error(root, f"{address}/a.tar.gz", "corrupted")


def test_a_file_that_is_not_there(site: tuple[str, Path], root: Path) -> None:
    expect_world_error(root, f"{site[0]}/a.tar.gz", "HTTP Error 404")


def test_no_network(root: Path) -> None:
    expect_world_error(root, "http://127.0.0.1:1/a.tar.gz", "cannot download http://127.0.0.1:1/")


def test_no_url(root: Path) -> None:
    with pytest.raises(UsageError, match="must begin with http"):
        data.fetch(root, url="nonsense")
    assert not root.exists()


def test_an_interruption_leaves_nothing_behind(
    site: tuple[str, Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(url: str, folder: str, filename: str, md5: str) -> None:
        (Path(folder) / filename).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("torchvision.datasets.utils.download_url", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.fetch(root)
    assert not root.exists()
