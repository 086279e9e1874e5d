"""CIFAR-100, and the sets that torchvision knows: read, fetched from a server here, refused."""

import gzip
import hashlib
import io
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from fcifar import data
from fcifar.data import ImportOptions
from fcifar.data.catalog import KNOWN
from fcifar.errors import ExternalError, UsageError
from tests.helpers import forms, sites

FINE, COARSE = ("ant", "bee", "cow", "dog"), ("insect", "mammal")


def part(images: np.ndarray, labels: np.ndarray, protocol: int) -> bytes:
    values = {
        b"filenames": [f"{i:05}.png" for i in range(len(images))],
        b"batch_label": b"x",
        b"fine_labels": labels.tolist(),
        b"coarse_labels": (labels // 2).tolist(),
        b"data": images.reshape(len(images), 3072),
    }
    return pickle.dumps(values, protocol)


def cifar100(protocol: int = 2) -> forms.Files:
    meta = {b"fine_label_names": list(FINE), b"coarse_label_names": list(COARSE)}
    return {
        "train": part(forms.TRAIN_IMAGES, forms.TRAIN_LABELS, protocol),
        "test": part(forms.TEST_IMAGES, forms.TEST_LABELS, protocol),
        "meta": pickle.dumps(meta, protocol),
        "file.txt~": b"",
    }


def write_cifar100(path: Path) -> Path:
    return forms.write_tar(path, {f"cifar-100-python/{k}": v for k, v in cifar100().items()})


# CIFAR-100 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
def test_fine_and_coarse_labels(tmp_path: Path, root: Path, protocol: int) -> None:
    folder = forms.write_folder(tmp_path / "cifar-100-python", cifar100(protocol))
    fine = data.import_source(folder, None, root)
    assert (fine.name, fine.classes) == ("cifar100", FINE)
    assert np.array_equal(fine.train_images.numpy(), forms.TRAIN_IMAGES)
    assert np.array_equal(fine.test_labels.numpy(), forms.TEST_LABELS)
    coarse = data.import_source(folder, None, root, options=ImportOptions(labels="coarse"))
    assert (coarse.name, coarse.classes) == ("cifar100-coarse", COARSE)
    assert np.array_equal(coarse.train_labels.numpy(), forms.TRAIN_LABELS // 2)
    assert torch.equal(coarse.train_images, fine.train_images)


def test_its_archive_is_its_folder(tmp_path: Path, root: Path) -> None:
    folder = forms.write_folder(tmp_path / "cifar-100-python", cifar100())
    archive = write_cifar100(tmp_path / "cifar-100-python.tar.gz")
    digests = {
        data.import_source(s, f"set{i}", root).digest for i, s in enumerate((folder, archive))
    }
    assert len(digests) == 1


class Evil:
    def __reduce__(self) -> Any:
        return print, ("run",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": pickle.dumps({b"data": Evil()})}, "train tries to load 'builtins.print'"),
        ({"train": pickle.dumps({b"data": 3})}, "train has no array as its data"),
        ({"test": None}, "test missing beside"),
        ({"meta": pickle.dumps({})}, "meta has no list of fine_label_names"),
        ({"test": part(forms.TEST_IMAGES, forms.TEST_LABELS + 3, 2)}, "run from 3 to 5"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, root: Path, changes: dict[str, bytes | None], message: str, capfd
) -> None:
    files = {k: v for k, v in (cifar100() | changes).items() if v is not None}
    with pytest.raises(UsageError, match=message) as caught:
        data.import_source(forms.write_tar(tmp_path / "a.tar", files), None, root)
    assert "\n" not in str(caught.value)
    assert not root.exists()
    assert capfd.readouterr().out == ""


def test_labels_are_fine_or_coarse(tmp_path: Path, root: Path) -> None:
    source = write_cifar100(tmp_path / "a.tar.gz")
    with pytest.raises(UsageError, match=r"--labels is 'corse'.*did you mean 'coarse'"):
        data.import_source(source, None, root, options=ImportOptions(labels="corse"))


def test_a_batch_of_the_official_size_may_be_read(tmp_path: Path, root: Path) -> None:
    """50,000 rows, each with a name and two labels, and 154 MB in one member; by Python 2."""
    count = 50_000

    def memo(index: int) -> bytes:
        return b"r" + index.to_bytes(4, "little")

    def numbers(name: bytes, size: int) -> bytes:
        values = b"".join(b"K%c" % (i % size) for i in range(count))
        return b"U%c" % len(name) + name + memo(3) + b"](" + values + b"e"

    plain = forms.python2_batch(np.zeros((count, 3, 32, 32), np.uint8), np.zeros(0, np.int64))
    names = b"".join(b"U\x09%05d.png" % i + memo(10 + i) for i in range(count))
    content = plain.removesuffix(b"u.") + b"".join(
        (
            *(b"U\x09filenames", memo(2), b"](", names, b"e"),
            *(numbers(b"fine_labels", 4), numbers(b"coarse_labels", 2), b"u."),
        )
    )
    folder = forms.write_folder(tmp_path / "py", cifar100() | {"train": content})
    dataset = data.import_source(folder, None, root)
    assert dataset.train_labels.tolist() == [i % 4 for i in range(count)]


@pytest.mark.parametrize("name", ["cifar100", "cifar100-coarse"])
def test_cifar100_is_fetched_and_its_md5_checked(tmp_path: Path, root: Path, name: str) -> None:
    site = tmp_path / "site"
    site.mkdir()
    archive = write_cifar100(site / "a.tar.gz")
    with sites.serving(site) as address:
        with pytest.raises(ExternalError, match="corrupted") as caught:
            data.fetch(root, name, url=f"{address}/a.tar.gz")
        assert "`fcifar data import` with a copy" in str(caught.value)
        assert not root.exists()
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        dataset = data.fetch(root, name, url=f"{address}/a.tar.gz", md5=md5)
    assert dataset.name == name
    assert dataset.classes == (COARSE if "coarse" in name else FINE)
    assert [path.name for path in root.iterdir()] == [f"{name}.safetensors"]


def test_the_official_md5_is_torchvisions() -> None:
    assert datasets.CIFAR100.tgz_md5 == "eb9058c3a382ffc7106e4002c42a8d85"


def test_an_archive_that_torchvision_has_downloaded(tmp_path: Path, root: Path) -> None:
    folder = tmp_path / "torchvision"
    with pytest.raises(
        UsageError, match=r"neither cifar-100-python\.tar\.gz nor cifar-100-python/"
    ):
        data.fetch(root, "cifar100", downloaded=folder)
    forms.write_folder(folder / "cifar-100-python", cifar100())
    unpacked = data.fetch(root, "cifar100", downloaded=folder)
    write_cifar100(folder / "cifar-100-python.tar.gz")
    packed = data.fetch(root, "cifar100", downloaded=folder, overwrite=True)
    assert packed.digest == unpacked.digest


# Others -------------------------------------------------------------------------------------------

GREY = np.random.default_rng(1).integers(0, 256, (30, 28, 28), dtype=np.uint8)
GREY[3] = 90
TEN = np.arange(30) % 10


def idx(array: np.ndarray) -> bytes:
    """The format of MNIST: magic number, sizes, bytes."""
    head = [0x800 + array.ndim, *array.shape]
    content = b"".join(n.to_bytes(4, "big") for n in head) + array.astype(np.uint8).tobytes()
    return gzip.compress(content, mtime=0)


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small Fashion-MNIST, whose checksums torchvision then expects."""
    site = tmp_path / "site"
    files = {
        "train-images-idx3-ubyte.gz": idx(GREY),
        "train-labels-idx1-ubyte.gz": idx(TEN),
        "t10k-images-idx3-ubyte.gz": idx(GREY[:10]),
        "t10k-labels-idx1-ubyte.gz": idx(TEN[:10]),
    }
    forms.write_folder(site, files)
    sums = [(name, hashlib.md5(content).hexdigest()) for name, content in files.items()]
    monkeypatch.setattr(datasets.FashionMNIST, "resources", sums)
    return site


def test_grey_images_become_rgb_of_32_pixels(mnist: Path, root: Path, capfd) -> None:
    calls = []
    with sites.serving(mnist) as address:
        dataset = data.fetch(
            root, "fashion-mnist", url=address, progress=lambda *call: calls.append(call)
        )
    assert capfd.readouterr() == ("", "")
    assert dataset.train_images.shape == (30, 3, 32, 32)
    assert (dataset.train_images == dataset.train_images[:, :1]).all()
    assert dataset.train_images[3].unique().tolist() == [90]
    assert dataset.train_labels.tolist() == TEN.tolist()
    assert dataset.classes[:2] == ("T-shirt/top", "Trouser")
    assert [path.name for path in root.iterdir()] == ["fashion-mnist.safetensors"]
    assert ("resizing images", 40, 40) in calls
    done = {"images": 40, "resize": "crop", "resized": 40, "converted": {"L": 40}}
    assert dataset.preparation == done
    # As a picture of the same pixels is read.
    from PIL import Image

    from fcifar.data import image_files

    stream = io.BytesIO()
    Image.fromarray(GREY[5]).save(stream, "PNG")
    stream.seek(0)
    expected = np.frombuffer(image_files.decode(stream, "x").pixels, np.uint8).reshape(32, 32, 3)
    assert np.array_equal(dataset.train_images[5].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (1, 28, 28)])
def test_the_same_images_in_an_npz_are_the_same_set(
    mnist: Path, root: Path, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    """As Keras has them, say."""
    with sites.serving(mnist) as address:
        fetched = data.fetch(root, "fashion-mnist", url=address)
    images = GREY.reshape(30, *shape)
    values = {"x_train": images, "y_train": TEN, "x_test": images[:10], "y_test": TEN[:10]}
    np.savez(tmp_path / "a.npz", **values, classes=np.array(fetched.classes))
    found = data.import_source(tmp_path / "a.npz", None, root, options=ImportOptions(resize="crop"))
    assert found.digest == fetched.digest


def test_files_of_another_md5_are_refused(mnist: Path, root: Path) -> None:
    (mnist / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(TEN[::-1][:10]))
    with sites.serving(mnist) as address, pytest.raises(ExternalError, match="corrupted") as caught:
        data.fetch(root, "fashion-mnist", url=address)
    assert "\n" not in str(caught.value)
    assert "fcifar data fetch fashion-mnist --root DIR" in str(caught.value)
    assert not root.exists()


def test_what_torchvision_has_downloaded_is_read(mnist: Path, root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "torchvision"
    with pytest.raises(UsageError, match="has no fashion-mnist as torchvision puts it there"):
        data.fetch(root, "fashion-mnist", downloaded=folder)
    raw = folder / "FashionMNIST" / "raw"
    forms.write_folder(raw, {p.stem: gzip.decompress(p.read_bytes()) for p in mnist.iterdir()})
    dataset = data.fetch(root, "fashion-mnist", downloaded=folder)
    assert len(dataset.train_labels) == 30
    assert sorted(path.name for path in folder.iterdir()) == ["FashionMNIST"], "nothing is added"


def test_svhn_says_what_reads_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"svhn needs scipy .* pip install 'fcifar\[svhn\]'"):
        data.fetch(root, "svhn", url="http://127.0.0.1:1/")


def test_svhn_is_read_through_scipys_reader(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its digit 0 is called 10, and its images have their number last."""
    images = np.zeros((32, 32, 3, 10), np.uint8) + np.arange(10, dtype=np.uint8)
    values = {"X": images, "y": np.arange(1, 11)[:, None]}
    reader = types.ModuleType("scipy.io")
    reader.loadmat = lambda path: values  # type: ignore[attr-defined]
    package = types.ModuleType("scipy")
    package.io = reader  # type: ignore[attr-defined]
    package.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "scipy", package)
    monkeypatch.setitem(sys.modules, "scipy.io", reader)
    site = forms.write_folder(
        tmp_path / "site", {f"{s}_32x32.mat": b"x" for s in ("train", "test")}
    )
    md5 = hashlib.md5(b"x").hexdigest()
    monkeypatch.setattr(
        datasets.SVHN,
        "split_list",
        {s: ["", f"{s}_32x32.mat", md5] for s in ("train", "test")},
    )
    with sites.serving(site) as address:
        dataset = data.fetch(root, "svhn", url=address)
    assert dataset.classes == tuple("0123456789")
    assert dataset.train_labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert dataset.train_images[:, 0, 0, 0].tolist() == list(range(10))


@pytest.mark.parametrize("name", KNOWN)
def test_torchvision_has_every_set_that_can_be_fetched(name: str) -> None:
    known = KNOWN[name]
    source = getattr(datasets, known.torchvision)
    if known.torchvision.startswith("CIFAR"):
        assert source.tgz_md5
        assert source.filename
    else:
        assert any(hasattr(source, a) for a in ("mirrors", "split_list", "tgz_md5"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar-100", {}, "can be fetched; there is cifar10, .*did you mean 'cifar100'"),
        ("mnist", {"md5": "0"}, "--md5 is for one archive, of CIFAR; mnist has several files"),
        ("mnist", {"url": "ftp://x"}, "must begin with http"),
        (
            "mnist",
            {"url": "http://x", "downloaded": Path()},
            "--root reads local files; leave out --url",
        ),
    ],
)
def test_what_cannot_be_fetched(
    root: Path, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        data.fetch(root, name, **options)
    assert not root.exists()
