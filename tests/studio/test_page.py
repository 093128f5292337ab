"""The studio's page in Chromium: painting, keys, files, two pages, a server that ends and starts again."""

from __future__ import annotations

import base64
import io
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import sync_playwright
from studios import Studio, colour_png, studio

import csg_edge
from csg_edge.conditions.files import read_context, read_mask
from csg_edge.datasets.phantom import make_phantom

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:  # CI has it: .ci/run installs tests/packages.txt and ends where that fails
    pytest.skip("chromium is not installed; apt install chromium", allow_module_level=True)

Image = NDArray[np.uint8]
SECONDS = 1000.0  # Playwright counts in milliseconds


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with studio("--out", tmp_path_factory.mktemp("studio")) as found:
        yield found


@pytest.fixture
def page(browser: Any, served: Studio) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    page = context.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    opened(page, served)
    yield page
    context.close()
    assert not troubles


def opened(page: Any, served: Studio) -> None:
    page.goto(served.address)
    page.wait_for_selector("html[data-ready=yes][data-frame]", timeout=60 * SECONDS)


def frames(page: Any) -> int:
    return int(page.evaluate("document.documentElement.dataset.frame"))


def after(page: Any, act: Any) -> None:
    """Do something and wait until the page has shown another image and rests."""
    before = frames(page)
    act()
    for _ in range(600):
        page.wait_for_timeout(50)
        if frames(page) > before and page.evaluate("document.documentElement.dataset.frame") == str(frames(page)):
            break
    assert frames(page) > before
    rest(page)


def rest(page: Any) -> None:
    """Wait until the strip of seeds is whole, which begins when nothing else is wanted."""
    last = -1
    while last != (now := frames(page)):
        last = now
        page.wait_for_timeout(600)


def pixels(page: Any, name: str) -> Image:
    text = page.evaluate(
        """name => { const canvas = document.getElementById(name);
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        let text = '';
        for (let i = 0; i < data.length; i += 4) text += String.fromCharCode(data[i]);
        return btoa(text); }""",
        name,
    )
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(256, 256)


def stroke(page: Any, start: tuple[float, float], end: tuple[float, float], canvas: str = "#painted") -> None:
    """A stroke between two points, as fractions of the canvas."""
    box = page.locator(canvas).bounding_box()
    spots = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.mouse.move(*spots[0])
    page.mouse.down()
    page.mouse.move(*spots[1], steps=6)
    page.mouse.up()


def message(page: Any) -> str:
    page.wait_for_selector("#message:not([hidden])", timeout=20 * SECONDS)
    return str(page.locator("#message").inner_text())


def saved(page: Any, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.click("#save")
    waiting.value.save_as(folder / "saved.zip")
    with zipfile.ZipFile(folder / "saved.zip") as archive:
        archive.extractall(folder)
    return folder


def test_a_stroke_makes_the_image_of_what_was_painted(page: Any, tmp_path: Path) -> None:
    before = pixels(page, "image")
    page.click("#classes button:has-text('vessel')")
    after(page, lambda: stroke(page, (0.3, 0.7), (0.6, 0.8)))
    shown = pixels(page, "image")
    assert not np.array_equal(before, shown)
    folder = saved(page, tmp_path)
    assert np.array_equal(read_context(folder / "image.png"), shown)
    with csg_edge.load() as generator:
        schema = generator.bundle.manifest.schema
        mask, context = read_mask(folder / "painted.png", schema), read_context(folder / "context.png")
        assert (mask == schema.index("vessel")).sum() > 300
        assert np.array_equal(generator.generate_one(mask, context, 0), shown)


def test_tools_undo_and_keys(page: Any, tmp_path: Path) -> None:
    start = pixels(page, "painted")
    page.keyboard.press("e")
    page.keyboard.press("5")
    after(page, lambda: stroke(page, (0.4, 0.7), (0.6, 0.85), "#image"))
    ellipse = pixels(page, "painted") != start
    assert 0.6 < ellipse.sum() / (0.2 * 0.15 * 256 * 256) < 0.95  # pi / 4, less what was that colour before
    page.keyboard.press("l")
    changed = pixels(page, "painted")
    after(page, lambda: stroke(page, (0.1, 0.5), (0.3, 0.45)))
    assert not np.array_equal(changed, pixels(page, "painted"))
    after(page, lambda: page.keyboard.press("Control+z"))
    assert np.array_equal(changed, pixels(page, "painted"))
    after(page, lambda: page.click("#undo"))
    assert np.array_equal(start, pixels(page, "painted"))
    after(page, lambda: page.keyboard.press("Control+Shift+Z"))
    assert np.array_equal(changed, pixels(page, "painted"))
    page.focus("#painted")
    page.keyboard.press("Shift+ArrowDown")
    after(page, lambda: page.keyboard.press("Space"))
    assert not np.array_equal(changed, pixels(page, "painted"))
    seed = int(page.input_value("#seed"))
    page.focus("#undo")
    after(page, lambda: page.keyboard.press("n"))
    assert int(page.input_value("#seed")) == seed + 1


def test_a_border_between_layers_goes_where_it_is_drawn(page: Any) -> None:
    rows = page.evaluate("""async () => {
        const {Painter} = await import('/painter.js');
        const painter = new Painter(6, 10);
        for (let i = 0; i < 60; i++) painter.mask[i] = i < 24 ? 2 : i < 48 ? 3 : 4;  // borders at rows 4 and 8
        const border = painter.border({x: 1, y: 5});
        painter.begin();
        painter.moveBorder(border, {x: 0, y: 2}, {x: 6, y: 5});
        const moved = [...painter.mask];
        painter.undo();
        for (let i = 0; i < 150; i++) painter.begin();
        return {border, moved, undone: [...painter.mask], past: painter.past.length};
    }""")
    assert rows["border"] == {"above": 2, "below": 3, "y": 4}
    moved, undone = (np.array(rows[name]).reshape(10, 6) for name in ("moved", "undone"))
    assert [int((column == 2).sum()) for column in moved.T] == [2, 2, 3, 3, 4, 4]
    assert (moved[8:] == 4).all() and (moved[5:8] == 3).all()  # the other border stays
    assert (undone[:4] == 2).all() and (undone[4:8] == 3).all()
    assert rows["past"] == 100


def test_seeds_variations_engines(page: Any) -> None:
    plain = pixels(page, "image")
    page.fill("#seed", str(2**64 - 3))
    after(page, lambda: page.locator("#seed").blur())
    assert page.input_value("#seed") == str(2**64 - 3)
    assert not np.array_equal(plain, pixels(page, "image"))
    page.fill("#seed", str(2**64))
    after(page, lambda: page.locator("#seed").blur())
    assert page.input_value("#seed") == str(2**64 - 1)
    page.fill("#seed", "0")
    after(page, lambda: page.locator("#seed").blur())
    assert np.array_equal(plain, pixels(page, "image"))
    slider = page.locator("[aria-label='tilt: amount']")
    after(page, lambda: slider.fill("8"))
    tilted = pixels(page, "image")
    assert not np.array_equal(plain, tilted)
    after(page, lambda: slider.fill("0"))
    assert np.array_equal(plain, pixels(page, "image"))
    after(page, lambda: page.select_option("#engine", "openvino:CPU:bf16"))
    after(page, lambda: page.select_option("#second-engine", "openvino:CPU:bf16"))
    assert "the same bytes" in page.locator("#second-shown").inner_text()
    assert np.array_equal(pixels(page, "image"), pixels(page, "second"))
    page.wait_for_selector("html[data-strip]", timeout=60 * SECONDS)
    page.click("#strip button:nth-child(3)")
    assert page.input_value("#seed") == "3"


@pytest.mark.parametrize(
    ("kind", "name", "data", "said"),
    [
        ("mask", "colours.png", colour_png(),
         "colours.png: a colour mask"),
        ("context", "large.png", bytes(30_000_000), "large.png: 30 MB; give at most 20 MB"),
        ("context", "notes.txt", b"Dear colleague,\n", "notes.txt"),
    ],
)  # fmt: skip
def test_wrong_files_change_nothing(page: Any, kind: str, name: str, data: bytes, said: str) -> None:
    mask, image = pixels(page, "painted"), pixels(page, "image")
    page.set_input_files(f"#{kind}-file", {"name": name, "mimeType": "application/octet-stream", "buffer": data})
    assert said in message(page)
    assert np.array_equal(mask, pixels(page, "painted")) and np.array_equal(image, pixels(page, "image"))
    after(page, lambda: stroke(page, (0.2, 0.2), (0.4, 0.2)))  # and it goes on
    assert page.locator("#message").is_hidden()


def test_right_files(page: Any) -> None:
    scene = make_phantom(3)
    for kind, array in (("mask", scene.mask), ("context", scene.image)):
        data = cv2.imencode(".png", array)[1].tobytes()
        upload = {"name": f"my {kind}.png", "mimeType": "image/png", "buffer": data}
        after(page, lambda kind=kind, upload=upload: page.set_input_files(f"#{kind}-file", upload))
    with csg_edge.load() as generator:
        assert np.array_equal(pixels(page, "image"), generator.generate_one(scene.mask, scene.image, 0))


def test_two_pages_do_not_disturb_each_other(page: Any, browser: Any, served: Studio) -> None:
    with browser.new_context() as other_context:
        other = other_context.new_page()
        opened(other, served)
        page.keyboard.press("9")
        after(page, lambda: stroke(page, (0.2, 0.3), (0.8, 0.3)))
        one = pixels(page, "image")
        other.keyboard.press("6")
        after(other, lambda: stroke(other, (0.2, 0.7), (0.8, 0.7)))
        assert np.array_equal(one, pixels(page, "image"))
        assert not np.array_equal(one, pixels(other, "image"))


def test_two_tabs_of_one_browser_each_keep_their_own(page: Any, served: Studio) -> None:
    page.keyboard.press("9")
    after(page, lambda: stroke(page, (0.2, 0.3), (0.8, 0.3)))
    one = pixels(page, "painted")
    other = page.context.new_page()
    opened(other, served)
    rest(other)
    assert np.array_equal(one, pixels(other, "painted"))  # a new tab goes on with the last
    after(other, lambda: stroke(other, (0.2, 0.7), (0.8, 0.7)))
    opened(page, served)
    rest(page)
    assert np.array_equal(one, pixels(page, "painted"))


def test_a_server_that_ends_and_starts_again_loses_nothing(browser: Any) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        with studio() as first:
            opened(page, first)
            page.keyboard.press("8")
            after(page, lambda: stroke(page, (0.2, 0.5), (0.8, 0.6)))
            painted, image = pixels(page, "painted"), pixels(page, "image")
            first.process.kill()
            first.process.wait(20)
        page.keyboard.press("n")
        page.keyboard.press("n")
        assert "does not answer. Start csg-edge studio again; what you painted is kept" in message(page)
        with studio(port=first.port) as second:
            page.wait_for_selector("#message:has-text('was started again. Open the address')", timeout=30 * SECONDS)
            opened(page, second)
            rest(page)
            assert np.array_equal(painted, pixels(page, "painted"))
            page.fill("#seed", "0")
            after(page, lambda: page.locator("#seed").blur())
            assert np.array_equal(image, pixels(page, "image"))


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (820, 1180), (1024, 768)])
def test_it_fits_the_screen(page: Any, width: int, height: int) -> None:
    page.set_viewport_size({"width": width, "height": height})
    page.wait_for_timeout(200)
    wide, tall = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert wide <= width
    assert tall <= (height if width == 1280 else 2 * height)
    for name in ("#painted", "#image"):
        assert page.locator(name).bounding_box()["width"] >= 240


def test_what_can_be_saved_and_copied(page: Any, served: Studio, tmp_path: Path) -> None:
    page.click("#save-folder")
    assert "saved into studio_" in message(page)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#copy-shell")
    page.wait_for_selector("#message:has-text('copied')")
    assert page.evaluate("navigator.clipboard.readText()").startswith("csg-edge generate --mask painted.png")
    assert {"image.png", "provenance.json", "command.txt"} <= {path.name for path in saved(page, tmp_path).iterdir()}
    assert io.BytesIO((tmp_path / "image.png").read_bytes()).read(8) == b"\x89PNG\r\n\x1a\n"


def test_everything_has_a_name(page: Any) -> None:
    assert "Not for diagnosis" in page.locator("#notice").inner_text()
    for control in page.locator("button, select, input").all():
        label = control.get_attribute("aria-label") or control.inner_text()
        assert label or control.evaluate("one => one.labels?.length") or not control.is_visible()
