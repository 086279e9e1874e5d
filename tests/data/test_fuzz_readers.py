"""Whatever a source holds, it is imported whole, or one line says why not and no trace is left."""

import io
import os
import pickle
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcifar import data
from fcifar.data import image_files
from fcifar.data.readers import cifar
from tests.helpers import forms
from tests.helpers.fuzzing import ends_well, everything, examples, mutated

CHANGES = st.sampled_from(
    [b"", b"\0", b"x" * 100, b"\xff" * 3072, b"\x80\x04}.", b"\x93NUMPY\1\0\2\0{}", b"PK\3\4"]
)


def import_bytes(folder: Path, source: Path) -> data.Dataset | None:
    """An import into a root that holds one data set already. Nothing else in ``folder`` changes."""
    root = folder / "root"
    root.mkdir(exist_ok=True)
    (root / "kept.safetensors").write_bytes(b"kept")
    before = everything(folder)
    found = ends_well(data.import_source, source, "set", root)
    after = everything(folder)
    if found is not None:
        assert data.verify("set", root) == found.digest
        del after[root / "set.safetensors"]
    assert after == before
    return found


# Folders on the disk ------------------------------------------------------------------------------

WHOLE = forms.png(forms.TEST_IMAGES[0])
JPEG = io.BytesIO()
Image.fromarray(forms.TEST_IMAGES[1].transpose(1, 2, 0).copy()).save(JPEG, "JPEG")


def png_head(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def jpeg_head(width: int, height: int) -> bytes:
    return b"\xff\xd8\xff\xc0\x00\x11\x08" + struct.pack(">HH", height, width) + b"\3\1\x11\0" * 3


LENGTHS = [0, 1, 32, 33, 10**4, 2**16 - 1]
heads = st.builds(png_head, *[st.sampled_from([*LENGTHS, 2**31 - 1, 2**31, 2**32 - 1])] * 2)
heads |= st.builds(jpeg_head, *[st.sampled_from(LENGTHS)] * 2)
images = st.one_of(
    st.sampled_from([WHOLE, WHOLE, WHOLE, JPEG.getvalue()]),
    st.sampled_from([b"", b"\0", WHOLE[:40], WHOLE[:-1], JPEG.getvalue()[:200], b"hello"]),
    heads,
    st.tuples(heads, st.just(WHOLE[33:])).map(b"".join),
    mutated(st.sampled_from([WHOLE, JPEG.getvalue()])),
)
odd_names = st.one_of(
    st.sampled_from([b"\xff\xfe", b"a\nb", b"\x1b[31m", b"a\\b", b"C:", b"..a", b" ", b"-rf"]),
    st.sampled_from([b"CON", b".hidden", b"__MACOSX", b"train", b"x" * 240, b"\xe9", b"%s{}"]),
    st.binary(min_size=1, max_size=8).filter(lambda name: not set(name) & set(b"/\0")),
).filter(lambda name: name not in (b".", b".."))
kinds = st.sampled_from([b".png", b".png", b".PNG", b".jpg", b".webp", b".txt", b"", b".npy"])


@st.composite
def trees(draw: st.DrawFn) -> dict[bytes, bytes]:
    """Class folders as they should be, and now and then something else."""
    names = [draw(odd_names) if draw(st.integers(0, 5)) == 0 else b"ant", b"bee"]
    files = {}
    for split in (b"train", b"test"):
        for name in names:
            files[b"/".join((split, name, b"0.png"))] = WHOLE
    for _ in range(draw(st.integers(0, 3))):
        split = draw(st.sampled_from([b"train", b"test", b"other", b"train/ant", b"test/bee/deep"]))
        path = b"/".join((split, draw(odd_names), draw(odd_names) + draw(kinds)))
        files[path if draw(st.booleans()) else split + b"/ant/1.png"] = draw(images)
    return files


def write_tree(folder: Path, files: dict[bytes, bytes]) -> Path:
    for name, content in files.items():
        path = os.path.join(os.fsencode(folder), name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content)
        except OSError:  # a folder is there already, or a file where a folder should be
            continue
    return folder


@pytest.mark.skipif(os.name == "nt", reason="names are bytes on POSIX alone")
@examples(4)
@given(trees())
def test_folders(files: dict[bytes, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        import_bytes(Path(folder), write_tree(Path(folder) / "source", files))


# Archives of every form ---------------------------------------------------------------------------


def seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        few = {k: v for k, v in forms.class_folders().items() if k[-5] in "05" or "test" in k}
        return [
            forms.write_zip(folder / "a.zip", few).read_bytes(),
            forms.write_tar(folder / "a.tar", few).read_bytes(),
            forms.write_tar(folder / "b.tar", forms.binary()).read_bytes(),
            forms.write_tar(folder / "c.tar", forms.official(4)).read_bytes(),
            forms.write_tar(folder / "c.tar.gz", forms.official(2)).read_bytes(),
            forms.write_npz(folder / "a.npz").read_bytes(),
        ]


@examples(6)
@given(mutated(st.sampled_from(seeds())))
def test_mutated_sources(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.write_bytes(content)
        import_bytes(Path(folder), source)


@examples(3)
@given(st.sampled_from(["official", "binary"]), st.data())
def test_official_layouts(form: str, draw: st.DataObject) -> None:
    files = (forms.official if form == "official" else forms.binary)()
    reader = cifar.read if form == "official" else cifar.read_binary
    for _ in range(draw.draw(st.integers(1, 3))):
        name = draw.draw(st.sampled_from(sorted(files)))
        change = draw.draw(st.sampled_from(["drop", "cut", "grow", "replace", "mutate"]))
        if change == "drop" and len(files) > 1:
            del files[name]
        elif change == "cut":
            files[name] = files[name][: draw.draw(st.integers(0, len(files[name])))]
        elif change == "grow":
            files[name] += draw.draw(st.binary(max_size=3073))
        elif change == "replace":
            files[name] = draw.draw(CHANGES)
        else:
            files[name] = draw.draw(mutated(st.just(files[name])))
    content = ends_well(reader, files)
    if content is not None:
        ends_well(data.make_dataset, "set", content.train, content.test, content.classes, "")


values: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.integers(), st.floats(), st.text(), st.binary(), st.just(10**5000), st.just("\n")
)
labels = st.one_of(
    st.lists(values, max_size=6),
    st.lists(st.sampled_from([0, 1, 2, 3, -1, 10**9, 2**31, 2**63, True]), min_size=6, max_size=6),
    st.sampled_from([np.array(v) for v in ([0] * 6, [[0] * 6], 3, [2**64 - 1] * 6, [0.5] * 6)]),
)


@examples(2)
@given(st.fixed_dictionaries({}, optional={"labels": labels, "data": values, "more": values}))
def test_batches_of_odd_values(changes: dict[str, Any]) -> None:
    files = forms.official()
    batch = {"data": forms.TEST_IMAGES.reshape(6, 3072), "labels": [0] * 6} | changes
    files["test_batch"] = pickle.dumps(batch)
    content = ends_well(cifar.read, files)
    if content is not None:
        ends_well(data.make_dataset, "set", content.train, content.test, content.classes, "")


# Pictures -----------------------------------------------------------------------------------------


def pictures_of_all_kinds() -> list[bytes]:
    found = [WHOLE, JPEG.getvalue()]
    for kind in image_files.readable_formats():
        for mode, size in (("RGB", (40, 33)), ("P", (32, 32)), ("RGBA", (35, 50)), ("L", (1, 60))):
            stream = io.BytesIO()
            try:
                Image.new(mode, size, 1).save(stream, kind)
            except (OSError, KeyError, ValueError):  # no such mode in this kind; no kind to write
                continue
            found.append(stream.getvalue())
    return found


@examples(8)
@given(
    mutated(st.sampled_from(pictures_of_all_kinds())) | images,
    st.sampled_from([".png", *(endings[0] for endings in image_files.FORMATS.values())]),
)
def test_pictures(content: bytes, ending: str) -> None:
    ends_well(image_files.decode, io.BytesIO(content), "train/a.png", None, ending=ending)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a\nb{ending}"
        path.write_bytes(content)
        found = ends_well(image_files.read, path)
        assert found is None or tuple(found.shape) == (3, 32, 32)


def test_an_animation_that_is_none_is_no_warning() -> None:
    chunk = b"acTL" + bytes(8)
    frames = struct.pack(">I", 8) + chunk + struct.pack(">I", zlib.crc32(chunk))
    stream = io.BytesIO(WHOLE[:33] + frames + WHOLE[33:])
    assert len(ends_well(image_files.decode, stream, "a.png", None).pixels) == 3072


def test_a_source_of_an_odd_name_can_be_imported(tmp_path: Path) -> None:
    for name in ("a\nb.npz", "\udcff.npz", "é.npz"):
        source = forms.write_npz(tmp_path / "plain.npz").rename(tmp_path / name)
        dataset = data.import_source(source, "set", tmp_path / "root", overwrite=True)
        assert dataset.source.isprintable()
        source.write_bytes(b"PK")
        assert ends_well(data.import_source, source, "other", tmp_path / "root") is None
