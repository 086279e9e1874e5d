"""Picture files of every kind become 32x32 RGB images, or one line that names them."""

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from fcifar import data
from fcifar.data import image_files
from fcifar.errors import ExternalError, UsageError

RNG = np.random.default_rng(3)
NOISE = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tiff"])
def test_a_picture_of_32_by_32_is_taken_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    path = save(Image.fromarray(NOISE), tmp_path / f"a.{suffix}")
    found = image_files.read(path)
    assert torch.equal(found, torch.from_numpy(NOISE).permute(2, 0, 1))
    assert found.dtype == torch.uint8
    assert found.is_contiguous()


def test_an_opaque_alpha_changes_no_bit(tmp_path: Path) -> None:
    path = save(Image.fromarray(NOISE).convert("RGBA"), tmp_path / "a.png")
    assert torch.equal(image_files.read(path), torch.from_numpy(NOISE).permute(2, 0, 1))


def test_lossy_kinds_are_read_as_pillow_reads_them(tmp_path: Path) -> None:
    kinds = [k for k in ("jpg", "gif", "webp", "avif") if k in ("jpg", "gif") or features.check(k)]
    for kind in kinds:
        path = save(Image.fromarray(NOISE), tmp_path / f"a.{kind}")
        with Image.open(path) as image:
            assert torch.equal(image_files.read(path), as_tensor(image.convert("RGB"))), kind


def test_grey_palette_and_cmyk_become_rgb(tmp_path: Path) -> None:
    rgb = Image.fromarray(NOISE)
    for mode, kind in (("L", "png"), ("1", "png"), ("P", "png"), ("CMYK", "tiff")):
        image = rgb.convert(mode)
        path = save(image, tmp_path / f"{mode}.{kind}")
        assert torch.equal(image_files.read(path), as_tensor(image.convert("RGB"))), mode


@pytest.mark.parametrize("size", [(32, 32), (64, 64)])
def test_what_is_transparent_is_white(tmp_path: Path, size: tuple[int, int]) -> None:
    see_through = Image.new("RGBA", size, (200, 0, 0, 0))
    assert image_files.read(save(see_through, tmp_path / "a.png")).unique().tolist() == [255]
    half = Image.new("RGBA", size, (200, 0, 0, 128))
    found = image_files.read(save(half, tmp_path / "b.png"))
    assert found[:, 5, 5].tolist() == pytest.approx([227, 127, 127], abs=1)
    grey = Image.new("LA", size, (0, 0))
    assert image_files.read(save(grey, tmp_path / "c.png")).unique().tolist() == [255]
    palette = Image.new("P", size, 0)
    palette.putpalette([9, 9, 9])
    path = save(palette, tmp_path / "d.png", transparency=0)
    assert image_files.read(path).unique().tolist() == [255]


# One decoder --------------------------------------------------------------------------------------

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr", "LAB", "RGBX")
LOSSY = ("JPEG", "AVIF", "JPEG2000", "DDS")
# What is stored so that this orientation, as EXIF defines it, makes it upright again.
STORED = (
    *(None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180),
    *(Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90),
    *(Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_270),
)


def upright(mode: str) -> Image.Image:
    """Noise of every mode, with an alpha of every value where there is one."""
    rgb = Image.fromarray(NOISE)
    alpha = Image.fromarray(np.arange(1024, dtype=np.uint32).reshape(32, 32).astype(np.uint8))
    if mode in ("I;16", "I", "F"):
        deep = NOISE[..., 0].astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
        return Image.fromarray(deep * 200)
    if mode == "LAB":
        return Image.merge("LAB", rgb.split())
    image = rgb.convert("P" if mode == "PA" else mode.replace("A", "") if "LA" in mode else mode)
    if mode in ("LA", "PA"):
        image = image.convert(mode)
    if mode in ("LA", "PA", "RGBA"):
        image.putalpha(alpha)
    return image


def every_kind(folder: Path) -> dict[Path, tuple[Image.Image, int, bool]]:
    """Files of every format, mode and orientation that Pillow writes: what is in them, and how."""
    Image.init()
    files = {}
    for form, (ending, *_) in image_files.FORMATS.items():
        if form in ("ICNS", "HEIF"):  # of many sizes, read as the largest; an extra
            continue
        for mode in (*MODES, "P with transparency", "L with transparency", "RGB with transparency"):
            plain, _, see_through = mode.partition(" with ")
            value = (1, 2, 3) if plain == "RGB" else 3
            options = {"transparency": value} if see_through else {}
            for orientation, turn in enumerate(STORED, 1):
                image = upright(plain)
                stored = image if turn is None else image.transpose(turn)
                exif = Image.Exif()
                exif[0x0112] = orientation
                path = folder / f"{form}-{mode.replace(' ', '-')}-{orientation}{ending}"
                try:
                    stored.save(path, form, exif=exif, lossless=True, speed=10, **options)
                except (OSError, KeyError, ValueError, TypeError, AttributeError):
                    path.unlink(missing_ok=True)
                    break
                with Image.open(path) as again:
                    if again.getexif().get(0x0112, 1) != orientation:
                        path.unlink()  # this format has no EXIF
                        break
                    same = again.mode == plain and form not in LOSSY
                if see_through:
                    image.info["transparency"] = value
                files[path] = (image, orientation, same)
    return files


def on_white(image: Image.Image) -> Image.Image:
    """What a person sees, by another way than the decoder's."""
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def test_every_mode_format_and_orientation_is_the_same_by_every_way_in(
    tmp_path: Path, root: Path
) -> None:
    folder = tmp_path / "set/train/a"
    folder.mkdir(parents=True)
    files = every_kind(folder)
    assert len(files) > 250
    assert {orientation for _, orientation, _ in files.values()} == set(range(1, 9))
    seen, refused = {}, []
    for path, (image, _, same) in files.items():
        messages = set()
        for how in (None, "crop", "stretch"):
            with path.open("rb") as stream:
                try:
                    image_files.decode(stream, str(path), how, ending=path.suffix)
                except UsageError as error:
                    messages.add(str(error))
        if messages:
            refused.append(path)
            with pytest.raises(UsageError) as caught:
                image_files.read(path)
            assert messages == {str(caught.value)}
            path.unlink()
            continue
        seen[path] = image_files.read(path)
        if same:
            expected = as_tensor(on_white(image)).int()
            assert (seen[path].int() - expected).abs().max() <= 1, path.name
    assert {re.split("-", path.name)[1] for path in refused} <= {"I;16", "I", "F", "LAB"}
    Image.fromarray(NOISE).save(folder / "plain.png")
    (tmp_path / "set/test/a").mkdir(parents=True)
    Image.fromarray(NOISE).save(tmp_path / "set/test/a/plain.png")
    plain = data.import_source(tmp_path / "set", "plain", root)
    cropped = data.import_source(
        tmp_path / "set", "c", root, options=data.ImportOptions(resize="crop")
    )
    assert cropped.digest == plain.digest
    rows = torch.stack([seen[path] for path in sorted(seen)])
    assert torch.equal(plain.train_images[:-1], rows)
    turned = sum(files[path][1] != 1 for path in seen)
    for dataset in (plain, cropped):
        assert dataset.preparation["images"] == len(seen) + 2
        assert dataset.preparation["oriented"] == turned
        assert dataset.preparation["on_white"] > 20
        assert "resized" not in dataset.preparation
    assert data.info("plain", root).preparation == plain.preparation


def test_exif_that_cannot_be_read_turns_nothing(tmp_path: Path) -> None:
    path = save(Image.fromarray(NOISE), tmp_path / "a.jpg", exif=b"Exif\0\0MM nonsense" * 3)
    with Image.open(path) as image:
        assert torch.equal(image_files.read(path), as_tensor(image.convert("RGB")))


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    halves = Image.new("RGB", (64, 64), (200, 0, 0))
    halves.paste((0, 0, 200), (0, 32, 64, 64))
    for orientation, first in ((1, [200, 0, 0]), (3, [0, 0, 200])):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.heic"
        pillow_heif.from_pillow(halves).save(path, exif=exif.tobytes(), quality=90)
        assert image_files.find([path.parent]).paths[-1] == path
        assert image_files.read(path)[:, 9, 9].tolist() == pytest.approx(first, abs=12)


@given(st.integers(1, 90), st.integers(1, 90))
def test_resizing_is_of_the_whole_and_then_the_middle_is_cut_out(width: int, height: int) -> None:
    # Pillow chooses which side it resizes first, and rounds and clips in between. With pixels far
    # from black and white there is nothing to clip.
    pixels = np.random.default_rng(width).integers(96, 160, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    scale = 32 / min(width, height)
    whole = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - 32) // 2, (whole.height - 32) // 2
    expected = whole.crop((left, top, left + 32, top + 32))
    found = np.frombuffer(image_files.fit(image), np.uint8).reshape(32, 32, 3)
    apart = found.astype(int) - np.asarray(expected).astype(int)
    assert np.abs(apart).max() <= 2


def test_the_middle_of_the_longer_side_is_kept(tmp_path: Path) -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("lime", (100, 0, 200, 100))
    found = image_files.read(save(wide, tmp_path / "a.png"))
    assert found[:, :, 3:-3].unique(dim=2).squeeze(2)[:, 0].tolist() == [0, 255, 0]
    tall = wide.rotate(90, expand=True)
    found = image_files.read(save(tall, tmp_path / "b.png"))
    assert found[:, 3:-3, :].unique(dim=1).squeeze(1)[:, 0].tolist() == [0, 255, 0]


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    board = np.indices((320, 320)).sum(0) % 2 * 255
    found = image_files.read(save(Image.fromarray(board.astype(np.uint8)), tmp_path / "a.png"))
    assert ((found.int() - 128).abs() <= 2).all(), "a fine chessboard looks grey"


def test_the_orientation_of_the_camera_is_respected(tmp_path: Path) -> None:
    upright = Image.fromarray(NOISE)
    turns = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: None}
    turns[8] = Image.Transpose.ROTATE_270
    for orientation, turn in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save(upright.transpose(turn), tmp_path / f"{orientation}.png", exif=exif)
        assert torch.equal(image_files.read(path), as_tensor(upright)), orientation


def test_the_first_picture_of_an_animation_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    path = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert image_files.read(path)[:, 0, 0].tolist() == [255, 0, 0]


def test_a_line_of_one_pixel_stays_small(tmp_path: Path) -> None:
    # Resized as a whole it would be 32 by 1.6 million pixels.
    path = save(Image.new("RGB", (50_000, 1), "blue"), tmp_path / "a.png")
    assert image_files.read(path)[:, 9, 9].tolist() == [0, 0, 255]


def png_head(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


@pytest.mark.parametrize("size", [(10_000, 10_000), (100_000, 100_000)])
def test_absurd_sizes_are_refused_before_decoding(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_head(*size) + struct.pack(">I", 9) + b"IDAT")
    with pytest.raises(UsageError, match=r"bomb\.png has more than 89,478,485 pixels; make it"):
        image_files.read(path)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(NOISE).save(whole, "PNG")
    deep = Image.fromarray(np.zeros((32, 32), dtype=np.uint16))
    deep.save(tmp_path / "deep.png")
    for name, content, message in (
        ("text.png", b"hello", "is not an image file; give one of PNG, JPEG"),
        ("empty.png", b"", "is not an image"),
        ("short.png", whole.getvalue()[:1000], "cannot be read as an image"),
        ("program.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        ("deep.png", None, "more than 8 bits"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UsageError, match=message) as caught:
            image_files.read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ExternalError, match=r"cannot read .*gone\.png: No such file"):
        image_files.read(tmp_path / "gone.png")


def test_folders_are_searched_in_sorted_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = tuple(name for name in image_files.readable_formats() if name != "HEIF")
    monkeypatch.setattr(image_files, "readable_formats", lambda: kinds)
    names = ("b/2.PNG", "b/10.jpg", "a.webp", "b/c/1.gif", "notes.txt", ".x/1.png", ".y.png")
    more = ("b/1.heic", "b/2.HEIC", "c.cr2", "Thumbs.db", "__MACOSX/._a.png", "b/1.jfif")
    for name in (*names, *more):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b/circle").symlink_to(tmp_path, target_is_directory=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "b/without", "PNG")
    Image.new("RGB", (9, 9)).save(tmp_path / "b/photo.jpg_large", "JPEG")
    (tmp_path / "b/README").write_text("P6 is how a PPM begins, and so does this")
    found, left_out, others = image_files.find([tmp_path])
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    last = ["b/c/1.gif", "b/photo.jpg_large", "b/without"]
    assert names == ["a.webp", "b/1.jfif", "b/10.jpg", "b/2.PNG", *last]
    assert left_out == {".cr2": 1, ".heic": 2}
    assert others == 3
    assert image_files.in_words(left_out).startswith("1 .cr2, 2 .heic (`pip install pillow-heif`")
    given = [tmp_path / "notes.txt", tmp_path / "b/c", tmp_path / "a.webp"]
    assert image_files.find(given).paths == [given[0], tmp_path / "b/c/1.gif", given[2]]


def test_paths_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match="there is no image in"):
        image_files.find([tmp_path])
    with pytest.raises(UsageError, match=r"nope\.png does not exist; give image files"):
        image_files.find([tmp_path / "nope.png"])
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        image_files.find([Path("/dev/null")])


def test_many_are_read_in_order_and_counted(tmp_path: Path) -> None:
    paths = [save(Image.new("RGB", (9, 9), (i, 0, 0)), tmp_path / f"{i}.png") for i in (3, 1, 2)]
    calls: list[tuple[str, int, int]] = []
    found, failures = image_files.read_those_that_can_be(paths, lambda *call: calls.append(call))
    assert not failures
    assert [image.shape for image in found] == [(3, 32, 32)] * 3
    assert [int(image[0, 0, 0]) for image in found] == [3, 1, 2]
    assert calls[-1] == ("reading images", 3, 3)
