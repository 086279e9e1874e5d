"""Prepared files appear whole or not at all, and damage is noticed."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fcifar import data, tree
from fcifar.data import shapes10, store
from fcifar.data.dataset import EMPTY
from fcifar.errors import ExternalError, UsageError
from tests.helpers import forms


def small(name: str = "small", shift: int = 0) -> data.Dataset:
    return data.make_dataset(
        name,
        data.Split(torch.from_numpy(forms.TRAIN_IMAGES) ^ shift, torch.tensor(forms.TRAIN_LABELS)),
        data.Split(torch.from_numpy(forms.TEST_IMAGES), torch.tensor(forms.TEST_LABELS)),
        forms.CLASSES,
        "made up",
    )


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


def test_what_is_saved_is_loaded(root: Path) -> None:
    dataset = small()
    path = data.save(dataset, root)
    assert path == root / "small.safetensors"
    loaded = data.load("small", root)
    assert tree.equal(loaded[1:5], dataset[1:5])
    assert loaded[:1] + loaded[5:10] == (*dataset[:1], *dataset[5:8], str(path), {})
    assert tree.equal(loaded[10:], dataset[10:])
    assert data.verify("small", root) == dataset.digest


def test_writing_to_a_loaded_image_leaves_the_file_alone(root: Path) -> None:
    data.save(small(), root)
    data.load("small", root).train_images.zero_()
    assert data.verify("small", root) == small().digest


def test_the_digest_covers_tensors_and_class_names_in_order() -> None:
    first = small()
    parts = first[1:5]
    assert first.digest == data.content_digest(*parts, forms.CLASSES)
    assert first.digest == small("other").digest
    assert first.digest != small(shift=1).digest
    assert first.digest != data.content_digest(*parts, forms.CLASSES[::-1])
    assert first.digest != data.content_digest(*parts[2:], *parts[:2], forms.CLASSES)


def given(shift: int = 0) -> data.Dataset:
    """``small`` with a validation split of six images."""
    plain = small("given")
    valid = data.Split(plain.test_images.flip(0) ^ shift, plain.test_labels.flip(0))
    train, test = data.Split(*plain[1:3]), data.Split(*plain[3:5])
    return data.make_dataset("given", train, test, forms.CLASSES, "made up", valid)


def alone() -> data.Dataset:
    """The test split of ``small`` without training images."""
    test = data.Split(*small()[3:5])
    return data.make_dataset("alone", EMPTY, test, forms.CLASSES, "made up")


def test_a_given_validation_split_is_kept_and_counts(root: Path) -> None:
    dataset = given()
    data.save(dataset, root)
    loaded = data.load("given", root)
    assert tree.equal(loaded[10:], dataset[10:])
    assert tree.equal(loaded[1:5], small()[1:5])
    assert data.verify("given", root) == dataset.digest
    assert len({dataset.digest, given(shift=1).digest, small().digest}) == 3
    assert data.info("given", root).valid_counts == (2, 2, 2)
    assert data.list_prepared(root)[0].valid_size == 6


def test_the_digest_of_a_set_without_one_is_what_it_was(root: Path) -> None:
    assert small().digest == "0280410f31a1350bee96006c2b4e19ecd1a5805f5e80c45ac2750ea8f95cd93b"
    data.save(small(), root)
    assert data.info("small", root).valid_counts == ()
    with safe_open(root / "small.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(store._TENSORS)


@pytest.mark.parametrize("part", ["valid_images", "valid_labels"])
def test_half_of_a_validation_split_is_damage(root: Path, part: str) -> None:
    path = data.save(given(), root)
    with safe_open(path, framework="pt") as file:
        head, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys() if k != part}  # noqa: SIM118
    save_file(tensors, path, head)
    with pytest.raises(ExternalError, match=f"damaged or not a prepared data set .*{part}"):
        data.load("given", root)


def test_a_test_set_alone_is_a_data_set(root: Path) -> None:
    dataset = alone()
    data.save(dataset, root)
    loaded = data.load("alone", root)
    assert tree.equal(loaded[1:5], dataset[1:5])
    assert len(loaded.train_labels) == 0
    assert data.verify("alone", root) == dataset.digest
    entry, info = data.list_prepared(root)[0], data.info("alone", root)
    assert (entry.train_size, entry.test_size, entry.problem) == (0, 6, "")
    assert (info.train_counts, info.test_counts) == ((0, 0, 0), (2, 2, 2))
    pixels = dataset.test_images.double() / 255
    assert info.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist()), "of the test pixels"


def test_a_test_split_is_needed() -> None:
    train = data.Split(*small()[1:3])
    with pytest.raises(UsageError, match="test split is empty"):
        data.make_dataset("none", train, EMPTY, forms.CLASSES, "made up")


def test_others_may_read_what_the_umask_allows(root: Path) -> None:
    plain = root.parent / "plain"
    plain.touch()
    assert stat.S_IMODE(data.save(small(), root).stat().st_mode) == stat.S_IMODE(
        plain.stat().st_mode
    )


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["os.fsync", "pathlib.Path.replace", "save_file"])
@pytest.mark.parametrize("failure", [no_space, interrupted])
def test_a_failed_save_leaves_the_store_as_it_was(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    failure: Callable[..., None],
) -> None:
    data.save(small(), root)
    before = contents(root)
    source = forms.write_npz(tmp_path / "a.npz", train_images=255 - forms.TRAIN_IMAGES)

    def half_written(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        failure()

    if moment == "save_file":
        monkeypatch.setattr(store, "save_file", half_written)
    else:
        monkeypatch.setattr(moment, failure)
    expected = ExternalError if failure is no_space else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        data.import_source(source, "small", root, overwrite=True)
    if failure is no_space:
        assert "No space left on device" in str(caught.value)
        assert "choose another place" in str(caught.value)
    assert contents(root) == before


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX resource limits")
def test_the_disk_refuses_in_earnest(root: Path) -> None:
    import resource

    data.save(small(), root)
    before = contents(root)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(ExternalError, match="cannot write"):
            data.save(small(shift=1), root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(root) == before


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExternalError, match="choose another place"):
        data.save(small(), tmp_path / "file")


@pytest.mark.skipif(os.name == "nt", reason="needs a pipe in a folder")
def test_what_is_no_plain_file_is_not_replaced(root: Path) -> None:
    root.mkdir()
    os.mkfifo(root / "small.safetensors")
    with pytest.raises(ExternalError, match="it is not a plain file; choose another path"):
        data.save(small(), root)
    assert (root / "small.safetensors").is_fifo()
    assert len(list(root.iterdir())) == 1


def test_a_missing_data_set_says_what_there_is(root: Path) -> None:
    data.save(small("mine"), root)
    with pytest.raises(UsageError) as caught:
        data.load("cifar10", root)
    for words in ("mine, shapes10", "fcifar data import", "data fetch", "--dataset shapes10"):
        assert words in str(caught.value)
    with pytest.raises(UsageError) as caught:
        data.load("cifar11", root)
    assert "data fetch" not in str(caught.value)
    with pytest.raises(UsageError):
        data.load("../small", root)


def test_a_flipped_bit_is_found_by_verify(root: Path) -> None:
    path = data.save(small(), root)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ExternalError, match="is damaged"):
        data.verify("small", root)


def damage_nothing_left(path: Path) -> None:
    path.write_bytes(b"")


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_text(path: Path) -> None:
    path.write_text("hello")


def damage_foreign(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


def damage_later_format(path: Path) -> None:
    save_file(dict(zip("abcd", small()[1:5], strict=True)), path, {"format": "fcifar-dataset-2"})


def damage_shape(path: Path) -> None:
    images = {f"{s}_images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8) for s in ("train", "test")}
    labels = {f"{s}_labels": torch.zeros(2, dtype=torch.int64) for s in ("train", "test")}
    head = {"format": store.FORMAT, "classes": '["a"]', "source": "", "digest": ""}
    save_file(images | labels, path, head)


@pytest.mark.parametrize(
    "damage",
    [
        damage_nothing_left,
        damage_cut,
        damage_text,
        damage_foreign,
        damage_later_format,
        damage_shape,
    ],
)
def test_a_damaged_file_is_one_line_and_hides_no_other(
    root: Path, damage: Callable[[Path], None]
) -> None:
    data.save(small("good"), root)
    damage(data.save(small("bad"), root))
    with pytest.raises(ExternalError, match=r"bad.safetensors is damaged or not a") as caught:
        data.load("bad", root)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in data.list_prepared(root)] == ["bad", "good", "shapes10"]


def test_the_list_says_what_is_wrong(root: Path) -> None:
    damage_cut(data.save(small("bad"), root))
    data.save(small("good"), root)
    (root / "Not A Name.safetensors").touch()
    (root / ".good.safetensors.1.partial").touch()
    bad, good, built_in = data.list_prepared(root)
    assert bad.problem
    assert good[:5] == ("good", forms.CLASSES, 15, 6, "made up")
    assert good.bytes == good.path.stat().st_size
    assert not good.problem
    assert built_in.built_in
    assert len(built_in.classes) == 10


def test_info_counts_and_measures(root: Path) -> None:
    dataset = small()
    path = data.save(dataset, root)
    info = data.info("small", root)
    assert info.train_counts == (5, 5, 5)
    assert info.test_counts == (2, 2, 2)
    pixels = dataset.train_images.double() / 255
    assert info.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert info.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())
    assert (info.digest, info.path, info.source) == (dataset.digest, path, "made up")


def test_shapes10_is_drawn_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def generate() -> shapes10.Images:
        calls.append(1)
        return shapes10.Images(*small()[1:5])

    monkeypatch.setattr(shapes10, "generate", generate)
    assert [entry.name for entry in data.list_prepared(root)] == ["shapes10"]
    first = data.load("shapes10", root)
    second = data.load("shapes10", root)
    assert len(calls) == 1
    assert first.classes == tuple(shapes10.CLASSES)
    assert first.digest == second.digest == data.verify("shapes10", root)
    assert data.list_prepared(root)[0].train_size == 15


def test_where_the_root_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FCIFAR_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert data.data_root() == tmp_path / ".cache" / "fcifar"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert data.data_root() == tmp_path / ".cache" / "fcifar"
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert data.data_root() == Path("/cache/fcifar")
    monkeypatch.setattr("sys.platform", "darwin")
    assert data.data_root() == tmp_path / "Library" / "Caches" / "fcifar"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert data.data_root() == tmp_path / "local" / "fcifar"
    monkeypatch.setenv("FCIFAR_DATA", "/chosen")
    assert data.data_root() == Path("/chosen")
    assert data.data_root(Path("given")) == Path("given")


def test_what_a_killed_process_left_is_swept_after_a_while(root: Path) -> None:
    root.mkdir()
    old, new = root / ".a.1.partial.safetensors", root / ".b.2.partial.safetensors"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    store.save(small(), root)
    assert not old.exists()
    assert new.exists(), "another process may be writing it"
