"""Masks and contexts: what is refused and with which words; resizing."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from csg_edge.conditions.arrays import check_mask, resize_image, resize_mask
from csg_edge.conditions.files import list_images, read_context, read_mask, write_png
from csg_edge.errors import InputError
from csg_edge.labels import MSK_SCHEMA, NO_MASK

MASK = np.random.default_rng(0).integers(0, len(MSK_SCHEMA), (64, 48), dtype=np.uint8)
PNG = cv2.imencode(".png", MASK)[1].tobytes()


def saved(path: Path, image: NDArray[np.generic]) -> Path:
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


def assert_mask_refused(path: Path, problem: str, remedy: str) -> None:
    """The message names the file first, then what is wrong and what to do."""
    with pytest.raises(InputError) as refusal:
        read_mask(path, MSK_SCHEMA)
    assert str(refusal.value).startswith(f"{path}: ")
    assert problem in str(refusal.value)
    assert remedy in str(refusal.value)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_a_mask_is_read_as_it_was_saved(tmp_path: Path, suffix: str) -> None:
    np.testing.assert_array_equal(read_mask(saved(tmp_path / f"m{suffix}", MASK), MSK_SCHEMA), MASK)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (np.eye(3, dtype=np.uint8)[None], "a colour mask"),
        (np.zeros((8, 8, 4), np.uint8), "a colour mask"),
        (np.full((8, 8), 256, np.uint16), "a uint16 mask with values up to 256"),
    ],
    ids=["colour", "alpha", "16 bits"],
)
def test_masks_that_are_no_class_indices(tmp_path: Path, image: NDArray[np.generic], problem: str) -> None:
    assert_mask_refused(saved(tmp_path / "m.png", image), problem, "save class indices as 8-bit single-channel PNG")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("kind", ["16 bits", "three channels"])
def test_indices_count_however_wide_they_are_stored(tmp_path: Path, suffix: str, kind: str) -> None:
    image = MASK.astype(np.uint16) if kind == "16 bits" else np.dstack([MASK] * 3)
    np.testing.assert_array_equal(read_mask(saved(tmp_path / f"m{suffix}", image), MSK_SCHEMA), MASK)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
@pytest.mark.parametrize("colours", ["colours", "greys"])
def test_indexed_colours_are_read_as_indices(tmp_path: Path, suffix: str, colours: str) -> None:
    random = np.random.default_rng(1)
    palette = random.integers(0, 256, 768) if colours == "colours" else np.arange(255, -1, -1).repeat(3)
    image = Image.fromarray(MASK)
    image.putpalette(palette.tolist())
    image.save(tmp_path / f"m{suffix}")
    np.testing.assert_array_equal(read_mask(tmp_path / f"m{suffix}", MSK_SCHEMA), MASK)


def test_a_palette_of_few_bits(tmp_path: Path) -> None:
    image = Image.fromarray(MASK % 4)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "m.png", bits=2)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", MSK_SCHEMA), MASK % 4)


def test_a_lossy_mask_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.jpg", np.zeros((8, 8), np.uint8))
    assert_mask_refused(path, "masks need a lossless format", "save it as PNG or TIFF")


@pytest.mark.parametrize("index", [10, 254])
def test_an_index_outside_the_schema_is_refused(tmp_path: Path, index: int) -> None:
    path = saved(tmp_path / "m.png", np.full((8, 8), index, np.uint8))
    assert_mask_refused(path, f"class index {index} is outside the schema 0..9 (background, aponeurosis", "map your")


def test_no_mask_is_an_array_of_255_but_never_a_file(tmp_path: Path) -> None:
    nothing = np.full((8, 8), NO_MASK, np.uint8)
    assert check_mask(nothing, MSK_SCHEMA, name="mask") is nothing
    # A binary mask that happens to be full would pass for none in silence.
    assert_mask_refused(saved(tmp_path / "m.png", nothing), "255 everywhere", "give --mask none")


def test_255_says_nothing_of_its_pixels_unless_it_is_white_on_black(tmp_path: Path) -> None:
    mask = np.full((8, 8), NO_MASK, np.uint8)
    mask[0, 0] = 8
    assert check_mask(mask, MSK_SCHEMA, name="mask") is mask
    assert np.array_equal(read_mask(saved(tmp_path / "partly.png", mask), MSK_SCHEMA), mask)
    mask[0, 0] = 0
    problem, remedy = "only 0 and 255, as a picture in black and white", "save class indices, 0..9"
    assert_mask_refused(saved(tmp_path / "binary.png", mask), problem, remedy)
    mask[0, 0] = 10
    with pytest.raises(InputError, match="class index 10 is outside the schema"):
        check_mask(mask, MSK_SCHEMA, name="mask")


@pytest.mark.parametrize("cut", [8, 20, 33, 60, len(PNG) // 2, len(PNG) - 12, len(PNG) - 1])
def test_a_truncated_png_is_refused_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str], cut: int) -> None:
    path = tmp_path / "m.png"
    path.write_bytes(PNG[:cut])
    assert_mask_refused(path, "truncated or damaged PNG", "copy or export the file again")
    assert capfd.readouterr().err == ""  # the decoder's own complaints would spoil the one line


@pytest.mark.parametrize("position", [20, len(PNG) // 2], ids=["header", "pixels"])
def test_a_flipped_bit_in_a_png_is_found(tmp_path: Path, capfd: pytest.CaptureFixture[str], position: int) -> None:
    path = tmp_path / "m.png"
    path.write_bytes(PNG[:position] + bytes([PNG[position] ^ 1]) + PNG[position + 1 :])
    assert_mask_refused(path, "truncated or damaged PNG", "copy or export the file again")
    assert capfd.readouterr().err == ""


def test_bytes_after_the_end_of_a_png_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    path.write_bytes(PNG + b"\0tail")
    np.testing.assert_array_equal(read_mask(path, MSK_SCHEMA), MASK)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def huge_png(side: int) -> bytes:
    """A whole, valid PNG of zeros: some thousandths of what its pixels take."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return PNG[:8] + header + png_chunk(b"IDAT", zlib.compress(bytes(side * (side + 1)), 9)) + png_chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str, orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif, **({"quality": 100} if kind == "JPEG" else {}))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_taken_upright_as_a_viewer_shows_them(tmp_path: Path, kind: str, orientation: int) -> None:
    steps = np.kron(np.arange(24).reshape(6, 4) * 10, np.ones((8, 8))).astype(np.uint8)
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(encoded(Image.fromarray(steps), kind, orientation))
    with Image.open(io.BytesIO(encoded(Image.fromarray(steps), "PNG", orientation))) as opened:
        shown = np.asarray(ImageOps.exif_transpose(opened))
    found = read_context(path)
    assert found.shape == shown.shape
    assert np.abs(found.astype(int) - shown).max() <= (3 if kind == "JPEG" else 0)


def test_a_mask_with_a_palette_is_turned_as_well(tmp_path: Path) -> None:
    indices = np.zeros((6, 4), np.uint8)
    indices[0, 0] = 3
    image = Image.fromarray(indices)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    path = tmp_path / "a.png"
    path.write_bytes(encoded(image, "PNG", 6))
    assert np.array_equal(read_mask(path, MSK_SCHEMA), np.rot90(indices, -1))


def test_a_small_file_of_many_pixels_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(huge_png(8000))
    assert path.stat().st_size < 100_000
    for read in (lambda: read_context(path), lambda: read_mask(path, MSK_SCHEMA)):
        with pytest.raises(InputError, match=r"8000 x 8000 pixels, more than 50,000,000; .* set CSG_EDGE_MAX_PIXELS"):
            read()
    monkeypatch.setenv("CSG_EDGE_MAX_PIXELS", "64000000")
    assert read_mask(path, MSK_SCHEMA).shape == (8000, 8000)
    monkeypatch.setenv("CSG_EDGE_MAX_PIXELS", "many")
    with pytest.raises(InputError, match="CSG_EDGE_MAX_PIXELS=many: give a number of pixels"):
        read_mask(path, MSK_SCHEMA)


@pytest.mark.parametrize("kind", ["TIFF", "BMP"])
def test_the_limit_holds_for_other_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(encoded(Image.fromarray(np.zeros((40, 50), np.uint8)), kind))
    monkeypatch.setenv("CSG_EDGE_MAX_PIXELS", "1999")
    with pytest.raises(InputError, match="50 x 40 pixels, more than 1,999"):
        read_context(path)


def test_companions_of_images_do_not_stop_a_folder(tmp_path: Path) -> None:
    for name in ("a.png", "b.PNG"):
        (tmp_path / name).write_bytes(PNG)
    for name in ("._a.png", ".hidden.png", ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt"):
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / ".thumbnails").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.PNG"]


def test_three_equal_channels_with_full_alpha_are_a_mask_and_with_real_alpha_are_none(tmp_path: Path) -> None:
    mask = np.array([[0, 1], [2, 3]], np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    whole = np.dstack([mask, mask, mask, np.full_like(mask, 255)])
    path = saved(tmp_path / "a.png", whole)
    assert np.array_equal(read_mask(path, MSK_SCHEMA), mask)
    whole[0, 0, 3] = 254
    assert_mask_refused(saved(tmp_path / "b.png", whole), "a colour mask", "single-channel PNG")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.png", b""),
        ("signature.png", PNG[:5]),
        ("text.png", b"class indices\n"),
        ("cut.tif", cv2.imencode(".tif", MASK)[1].tobytes()[:900]),
        ("cut.bmp", cv2.imencode(".bmp", MASK)[1].tobytes()[:900]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_is_refused_in_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, data: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert_mask_refused(path, "not a readable image", "export it again as PNG or TIFF")
    with pytest.raises(InputError, match="not a readable image"):
        read_context(path)
    assert capfd.readouterr().err == ""


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert_mask_refused(tmp_path / "m.png", "cannot read", "check the path")


def test_a_context_is_grey_even_in_three_channels(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for name, image in (("1", grey), ("3", np.dstack([grey] * 3)), ("4", np.dstack([grey] * 3 + [grey[::-1]]))):
        np.testing.assert_array_equal(read_context(saved(tmp_path / f"{name}.png", image)), grey)


def test_a_coloured_context_is_refused(tmp_path: Path) -> None:
    image = np.full((16, 16, 3), 90, np.uint8)
    image[3, 4, 2] = 91  # one pixel is enough
    path = saved(tmp_path / "c.png", image)
    with pytest.raises(InputError, match=r"c\.png: a colour image .*; give plain greyscale B-mode"):
        read_context(path)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_by_their_full_range(tmp_path: Path, suffix: str, channels: int) -> None:
    levels = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    image = levels if channels == 1 else np.dstack([levels] * 3)
    found = read_context(saved(tmp_path / f"c{suffix}", image))
    np.testing.assert_allclose(found, levels / 257.0, atol=0.5)
    assert (found.min(), found.max()) == (0, 255)


def test_12_bit_levels_in_16_bits_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.tif", np.full((8, 8), 4095, np.uint16))  # would be 15 of 255: black
    with pytest.raises(InputError, match=r"c\.tif: a 16-bit image with levels up to 4095 only; save it with 8 bits"):
        read_context(path)
    assert read_context(saved(path, np.zeros((8, 8), np.uint16))).max() == 0


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_other_numbers_are_refused(tmp_path: Path, dtype: type) -> None:
    path = saved(tmp_path / "c.tif", np.full((8, 8), 100, dtype))
    with pytest.raises(InputError, match=rf"c\.tif: a {np.dtype(dtype)} image; convert it to 8-bit grey levels"):
        read_context(path)


def test_several_images_in_one_tiff_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    path.write_bytes(cv2.imencodemulti(".tif", [MASK, MASK])[1].tobytes())
    for read in (read_context, lambda path: read_mask(path, MSK_SCHEMA)):
        with pytest.raises(InputError, match=r"stack\.tif: a TIFF of 2 images; name one, stack.tif#0 to #1"):
            read(path)


def test_images_of_a_folder_come_sorted_and_alone(tmp_path: Path) -> None:
    for name in ("b.png", "a.TIF", "labels.json", "c.jpeg"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in list_images(tmp_path)] == ["a.TIF", "b.png", "c.jpeg"]
    assert list_images(tmp_path / "b.png") == [tmp_path / "b.png"]


def test_empty_folder_and_missing_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no images in this folder; put .png"):
        list_images(tmp_path)
    with pytest.raises(InputError, match=r"gone: no such file or folder; check the path"):
        list_images(tmp_path / "gone")


def test_write_png_says_where_it_cannot_write(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "x.png"
    with pytest.raises(InputError, match=r"gone/x\.png: cannot write \(.*\); choose a writable folder"):
        write_png(path, MASK)


def test_shrinking_a_mask_is_a_vote() -> None:
    small = resize_mask(MASK, 16, 12)
    for row in range(16):
        for column in range(12):
            block = MASK[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert small[row, column] == np.bincount(block.ravel()).argmax()  # the lower class wins a tie


@pytest.mark.parametrize("size", [(32, 24), (30, 31), (17, 96), (200, 99), (64, 48)], ids=str)
def test_resizing_a_mask_never_invents_a_class(size: tuple[int, int]) -> None:
    mask = np.where(MASK > 4, 9, 0).astype(np.uint8)  # interpolated labels would lie between 0 and 9
    resized = resize_mask(mask, *size)
    assert resized.shape == size
    assert resized.dtype == np.uint8
    assert set(np.unique(resized)) == {0, 9}


@pytest.mark.parametrize("top", range(4))
def test_a_line_of_three_pixels_survives_halving(top: int) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[20 + top : 23 + top] = 1
    assert (resize_mask(mask, 32, 32) == 1).any(axis=0).all()


def test_enlarging_an_image_stays_in_range() -> None:
    step = np.zeros((16, 16), np.uint8)
    step[:, 8:] = 255
    large = resize_image(step, 48, 48).astype(int)
    assert (np.diff(large, axis=1) >= 0).all()  # an overshoot that wrapped around would be a dip
    assert (large[:, 0].max(), large[:, -1].min()) == (0, 255)


def test_shrinking_an_image_averages_areas() -> None:
    image = np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)
    blocks = image.reshape(16, 4, 16, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(resize_image(image, 16, 16), blocks, atol=0.51)


LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nmuscle:255,0,0::\nnerve:0,0,250::\n"


def coloured(*colours: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Columns of some (red, green, blue) colours, as OpenCV writes them."""
    return np.array([[colour[::-1] for colour in colours]] * 4, np.uint8).repeat(2, axis=1)


def test_colours_are_read_by_a_labelmap_beside_the_mask_or_one_up(tmp_path: Path) -> None:
    folder = tmp_path / "SegmentationClass"
    folder.mkdir()
    path = saved(folder / "a.png", coloured((0, 0, 0), (255, 0, 0), (0, 0, 250)))
    assert_mask_refused(path, "a colour mask", "labelmap.txt")
    (tmp_path / "labelmap.txt").write_text(LABELMAP)
    assert read_mask(path, MSK_SCHEMA)[0].tolist() == [0, 0, 3, 3, 5, 5]
    (folder / "labelmap.txt").write_text(LABELMAP.replace("muscle", "bone"))
    assert read_mask(path, MSK_SCHEMA)[0].tolist() == [0, 0, 8, 8, 5, 5]
    (tmp_path / "mine.txt").write_text(LABELMAP.replace("muscle", "tendon"))
    assert read_mask(path, MSK_SCHEMA, colours=tmp_path / "mine.txt")[0].tolist() == [0, 0, 7, 7, 5, 5]
    assert np.array_equal(read_mask(saved(folder / "b.png", MASK), MSK_SCHEMA), MASK)  # indices stay indices


def test_an_unknown_colour_names_its_pixel(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", coloured((0, 0, 0), (254, 0, 0)))
    (tmp_path / "labelmap.txt").write_text(LABELMAP)
    assert_mask_refused(path, "colour 254,0,0 at row 0, column 2 is not in", "add a line name:red,green,blue")
    (tmp_path / "labelmap.txt").write_text(LABELMAP + "liver:254,0,0::\n")
    with pytest.raises(InputError, match=r"labelmap\.txt: label schema: no class 'liver'"):
        read_mask(path, MSK_SCHEMA)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("muscle 255,0,0", "line 1: write name:red,green,blue"),
        ("a:1,2,3\nmuscle:1,2", "line 2: write name"),
        ("muscle:256,0,0", "line 1: 256,0,0; give levels from 0 to 255"),
        ("a:1,2,3\nb:1,2,3", "line 2: colour 1,2,3 stands for two classes"),
        ("# nothing", "no colours"),
    ],
)
def test_a_bad_labelmap_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = saved(tmp_path / "a.png", coloured((0, 0, 0), (255, 0, 0)))
    (tmp_path / "labelmap.txt").write_text(text)
    with pytest.raises(InputError, match=said):
        read_mask(path, MSK_SCHEMA)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_stored_with_few_bits_keep_their_indices(tmp_path: Path, bits: int) -> None:
    """As optipng, ImageMagick and Pillow with bits=4 write them; decoders stretch the levels to 0..255."""
    mask = np.arange(64, dtype=np.uint8).reshape(8, 8) % min(2**bits, 10)
    rows = [
        b"\0" + bytes(
            sum(int(level) << (8 - bits - at * bits) for at, level in enumerate(row[start : start + 8 // bits]))
            for start in range(0, 8, 8 // bits)
        )
        for row in mask
    ]  # fmt: skip
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0))
    path = tmp_path / "m.png"
    path.write_bytes(PNG[:8] + header + png_chunk(b"IDAT", zlib.compress(b"".join(rows))) + png_chunk(b"IEND", b""))
    assert np.array_equal(read_mask(path, MSK_SCHEMA), mask)
    assert read_context(path).max() == (255 if bits < 4 else 17 * 9)  # an image is as bright as viewers show it


@pytest.mark.parametrize("name", ["a.png", "a.dcm", "a.nii.gz", "a"])
def test_what_is_no_file_does_not_stop_the_work_for_ever(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    for read in (read_context, lambda path: read_mask(path, MSK_SCHEMA)):
        with pytest.raises(InputError, match="not a file; give an image file"):
            read(tmp_path / name)
