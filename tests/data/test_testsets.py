"""CIFAR-10.1 and CIFAR-10-C: test sets without training images, as their authors publish them."""

from pathlib import Path

import numpy as np
import pytest

from fcifar import data
from fcifar.data import ImportOptions
from fcifar.data.readers import archive, corrupted
from fcifar.data.readers.cifar import CLASSES, CLASSES_100
from fcifar.errors import UsageError
from tests.helpers import forms

TEN = np.arange(20) % 10
IMAGES = np.random.default_rng(3).integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)


def save(folder: Path, **arrays: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


@pytest.fixture
def cifar101(tmp_path: Path) -> Path:
    """The folder of CIFAR-10.1, whose labels are int32, with version 6 alone."""
    arrays = {"cifar10.1_v6_data": IMAGES[:20], "cifar10.1_v6_labels": TEN.astype(np.int32)}
    return save(tmp_path / "datasets", **arrays)


@pytest.fixture
def cifar10c(tmp_path: Path) -> Path:
    """CIFAR-10-C with 20 test images: 100 of each corruption, whose labels come five times."""
    corruptions = {"fog": IMAGES, "gaussian_noise": IMAGES[::-1]}
    return save(tmp_path / "CIFAR-10-C", **corruptions, labels=np.tile(TEN, 5))


def pixels(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2)


# CIFAR-10.1 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["file", "folder", "tar"])
def test_cifar101(cifar101: Path, tmp_path: Path, root: Path, form: str) -> None:
    files = {path.name: path.read_bytes() for path in cifar101.iterdir()}
    source = {
        "file": cifar101 / "cifar10.1_v6_data.npy",
        "folder": cifar101,
        "tar": forms.write_tar(tmp_path / "a.tar.gz", {f"d/{k}": v for k, v in files.items()}),
    }[form]
    dataset = data.import_source(source, None, root)
    assert dataset.name == "cifar10-1-v6"
    assert dataset.classes == CLASSES
    assert np.array_equal(dataset.test_images.numpy(), pixels(IMAGES[:20]))
    assert dataset.test_labels.tolist() == TEN.tolist()
    assert len(dataset.train_labels) == len(dataset.valid_labels) == 0
    assert dataset.source == f"test set alone {source.name}"


def test_of_two_versions_one_is_given(cifar101: Path, root: Path) -> None:
    save(cifar101, **{"cifar10.1_v4_data": IMAGES[:20], "cifar10.1_v4_labels": TEN})
    with pytest.raises(
        UsageError, match=r"several test sets: cifar10\.1_v4_data\.npy, cifar10\.1_v6"
    ):
        data.import_source(cifar101, None, root)
    dataset = data.import_source(cifar101 / "cifar10.1_v4_data.npy", None, root)
    assert dataset.name == "cifar10-1-v4"


# CIFAR-10-C ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_a_severity_of_a_corruption(cifar10c: Path, root: Path, severity: int) -> None:
    dataset = data.import_source(
        cifar10c / "fog.npy", None, root, options=ImportOptions(severity=severity)
    )
    assert dataset.name == f"cifar10-c-fog-{severity}"
    assert dataset.classes == CLASSES
    rows = slice(20 * (severity - 1), 20 * severity)
    assert np.array_equal(dataset.test_images.numpy(), pixels(IMAGES[rows]))
    assert dataset.test_labels.tolist() == TEN.tolist()
    assert dataset.source == f"test set alone fog.npy, severity {severity}"


@pytest.fixture(params=["folder", "tar", "tar.gz", "zip"])
def whole(cifar10c: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The folder or an archive of it, with the files in another order than by name."""
    files = {f"CIFAR-10-C/{path.name}": path.read_bytes() for path in sorted(cifar10c.iterdir())}
    files = dict(reversed(files.items()))
    return {
        "folder": lambda: cifar10c,
        "tar": lambda: forms.write_tar(tmp_path / "CIFAR-10-C.tar", files),
        "tar.gz": lambda: forms.write_tar(tmp_path / "CIFAR-10-C.tar.gz", files),
        "zip": lambda: forms.write_zip(tmp_path / "a.zip", files),
    }[request.param]()


def test_a_corruption_of_the_whole(whole: Path, root: Path) -> None:
    options = ImportOptions(corruption="gaussian_noise", severity=1)
    dataset = data.import_source(whole, None, root, options=options)
    assert dataset.name == "cifar10-c-gaussian_noise-1"
    assert np.array_equal(dataset.test_images.numpy(), pixels(IMAGES[::-1][:20]))
    assert dataset.source == f"test set alone {whole.name}, gaussian_noise, severity 1"
    assert dataset.preparation["corruptions"] == ["gaussian_noise"]
    assert dataset.preparation["severities"] == [1]


@pytest.mark.parametrize("severity", [None, 4])
def test_the_whole(
    whole: Path, root: Path, severity: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All 19 files have 2.9 GB, more than is read of another source. Rows are in a known order."""
    monkeypatch.setattr(archive, "TOTAL_LIMIT", 400_000)
    monkeypatch.setattr(corrupted, "_CHUNK", 7)
    dataset = data.import_source(whole, None, root, options=ImportOptions(severity=severity))
    rows = slice(None) if severity is None else slice(20 * (severity - 1), 20 * severity)
    noise, fog = IMAGES[::-1][rows], IMAGES[rows]
    assert dataset.name == ("cifar10-c" if severity is None else f"cifar10-c-{severity}")
    assert dataset.classes == CLASSES
    assert np.array_equal(dataset.test_images.numpy(), pixels(np.concatenate([noise, fog])))
    assert dataset.test_labels.tolist() == np.tile(TEN, 2 * len(fog) // 20).tolist()
    assert dataset.preparation == {
        "images": 2 * len(fog),
        "corruptions": ["gaussian_noise", "fog"],
        "severities": [1, 2, 3, 4, 5] if severity is None else [severity],
        "others": [],
    }
    assert data.verify(dataset.name, root) == dataset.digest
    assert [path.name for path in root.iterdir()] == [f"{dataset.name}.safetensors"]


def test_what_of_the_whole_cannot_be(cifar10c: Path, root: Path) -> None:
    def refused() -> str:
        with pytest.raises(UsageError) as caught:
            data.import_source(cifar10c, None, root)
        assert not root.exists()
        return str(caught.value)

    save(cifar10c, frost=IMAGES[:50])
    assert "frost.npy has not as many images as the other corruptions" in refused()
    save(cifar10c, frost=IMAGES[:7])
    assert "frost.npy has 7 images, which are not 5 severities of as many images" in refused()
    save(cifar10c, frost=IMAGES / 255)
    assert "frost.npy is float64 [100, 32, 32, 3]; a corruption is uint8" in refused()
    save(cifar10c, frost=IMAGES, labels=TEN)
    assert "labels.npy is int64 [20]; it must be one whole number for each image" in refused()
    (cifar10c / "labels.npy").unlink()
    assert "fog.npy has no labels beside it: labels.npy is missing" in refused()


def test_all_severities(cifar10c: Path, root: Path) -> None:
    dataset = data.import_source(cifar10c / "fog.npy", None, root)
    assert (dataset.name, len(dataset.test_labels)) == ("cifar10-c-fog", 100)


def test_a_corruption_of_ones_own(tmp_path: Path, root: Path) -> None:
    folder = save(tmp_path / "mine", smoke=IMAGES, labels=np.tile(TEN % 3, 5))
    dataset = data.import_source(folder, None, root, options=ImportOptions(severity=2))
    assert (dataset.name, dataset.classes) == ("corrupted-c-smoke-2", ("0", "1", "2"))
    save(folder, haze=IMAGES, classes=np.array(forms.CLASSES))
    with pytest.raises(UsageError, match="several corruptions: haze, smoke"):
        data.import_source(folder, None, root)
    dataset = data.import_source(folder, None, root, options=ImportOptions(corruption="haze"))
    assert dataset.classes == forms.CLASSES


def test_cifar100c_has_the_classes_of_cifar100(tmp_path: Path, root: Path) -> None:
    folder = save(tmp_path / "CIFAR-100-C", snow=IMAGES, labels=np.arange(100))
    dataset = data.import_source(folder / "snow.npy", None, root)
    assert (dataset.name, dataset.classes) == ("cifar100-c-snow", CLASSES_100)
    assert list(CLASSES_100) == sorted(set(CLASSES_100))


# What goes wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        (
            "fog.npy",
            ImportOptions(severity=6),
            "--severity is 6; it must be a whole number from 1 to 5",
        ),
        ("fog.npy", ImportOptions(corruption="frost"), "--corruption is 'frost'; there is fog"),
        ("", ImportOptions(corruption="gausian_noise"), "did you mean 'gaussian_noise'"),
        ("", ImportOptions(corruption="frost"), "there is fog, gaussian_noise"),
        ("fog.npy", ImportOptions(resize="crop"), "--resize does not go with a test set alone"),
        ("labels.npy", ImportOptions(), "labels.npy has no labels beside it"),
        ("short.npy", ImportOptions(severity=1), "--severity does not go with short.npy"),
        ("short.npy", ImportOptions(), "7 images and 100 labels"),
        (
            "../alone.npy",
            ImportOptions(),
            "alone.npy has no labels beside it: labels.npy is missing",
        ),
        ("../a_data.npy", ImportOptions(), "beside it: a_labels.npy is missing"),
        ("floats.npy", ImportOptions(), "they must be uint8"),
        ("objects.npy", ImportOptions(), "could run code"),
        ("cut.npy", ImportOptions(), "its size is not what its header says"),
    ],
)
def test_what_cannot_be_is_one_line(
    cifar10c: Path, root: Path, file: str, options: ImportOptions, message: str
) -> None:
    if file:
        save(cifar10c, short=IMAGES[:7], floats=IMAGES / 255)
        save(cifar10c.parent, alone=IMAGES, a_data=IMAGES)
        np.save(cifar10c / "objects.npy", np.array([{}], dtype=object))
        (cifar10c / "cut.npy").write_bytes((cifar10c / "fog.npy").read_bytes()[:-1])
    with pytest.raises(UsageError, match=message) as caught:
        data.import_source(cifar10c / file, None, root, options=options)
    assert "\n" not in str(caught.value)
    assert not root.exists()


def test_other_forms_have_neither_corruption_nor_severity(tmp_path: Path, root: Path) -> None:
    source = forms.write_npz(tmp_path / "a.npz")
    for options in (ImportOptions(corruption="fog"), ImportOptions(severity=1)):
        with pytest.raises(UsageError, match=r"does not go with an \.npz"):
            data.import_source(source, None, root, options=options)
