"""The page: self-contained, small, and in a browser it shows the numbers of the Python API."""

from __future__ import annotations

import os
import re
import shutil

import numpy as np
import pytest

from patchindex.errors import InputError
from patchindex.explain.page import page_of

NAMES = ["T-shirt", "Trouser", "</script><b>", "Dress", "Coat"]


@pytest.fixture(scope="module")
def text(explanation):
    return page_of(explanation, beside=explanation.nearest[:1], beside_name="a network", label_names=NAMES)


def test_the_page_names_nothing_outside(text):
    assert re.findall(r"(?:src|href)=\"(?!data:)[^\"]*", text) == []
    assert set(re.findall(r"https?://[^\"')\s]*", text)) == {"http://www.w3.org/2000/svg"}  # a namespace
    assert "@import" not in text
    assert "</script><b>" not in text
    assert len(text) < 400_000


def test_names_that_are_marks_of_the_template_stay_names(explanation):
    names = ["@SOURCES@", "@SCRIPT@", *NAMES[2:]]
    text = page_of(explanation, beside=explanation.nearest[:1], beside_name="@DATA@", label_names=names)
    assert text.count("@SOURCES@") == text.count("@SCRIPT@") == text.count("@DATA@") == 1


def test_a_smaller_page_leaves_out_the_lightest_images(explanation, text):
    small = page_of(explanation, largest=len(text) - 5_000)
    assert len(small) <= len(text) - 5_000
    shown = int(re.search(r'"shown":(\d+)', small)[1])
    assert 0 < shown < int(re.search(r'"shown":(\d+)', text)[1])
    with pytest.raises(InputError, match=r"html: the page takes .* bytes without training images"):
        page_of(explanation, largest=20_000)


def test_a_second_image_of_another_size_is_refused(explanation):
    with pytest.raises(InputError, match="beside: is of shape"):
        page_of(explanation, beside=explanation.nearest[:1, :, :5])


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=program, args=options)
        yield started
        started.close()


@pytest.fixture(params=["desktop", "phone"])
def page(browser, text, tmp_path, request):
    """The page in a browser; at the end nothing was requested and nothing was printed."""
    path = tmp_path / "page.html"
    path.write_text(text, encoding="utf-8")
    phone = request.param == "phone"
    size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 900}
    context = browser.new_context(
        viewport=size, has_touch=phone, is_mobile=phone, color_scheme="dark" if phone else "light"
    )
    if phone:  # an older browser, too
        context.add_init_script("delete Uint8Array.fromBase64")
    opened = context.new_page()
    said, asked = [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda each: asked.append(each.url))
    opened.goto(path.as_uri())
    opened.wait_for_selector("html[data-complete=true]", timeout=60_000)
    yield opened
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    context.close()


def rows(page):
    """Return image, y, x and weight of the patches in the table."""
    return page.eval_on_selector_all(
        "#patches tr", "rows => rows.map(r => ['image', 'y', 'x', 'weight'].map(n => Number(r.dataset[n])))"
    )


def place(page, y, x):
    """Return the position of a pixel on the canvas."""
    area = page.locator("#canvas").bounding_box()
    return {"x": (x + 0.5) * area["width"] / 10, "y": (y + 0.5) * area["height"] / 12}


def assert_shows(page, explanation, step, y, x):
    found = explanation.patches[step][y * 10 + x]
    shown = np.array(rows(page))
    assert page.locator("#pixel").inner_text().startswith(f"Pixel row {y}, column {x}")
    np.testing.assert_array_equal(shown[:, :3], np.stack([found.image, found.y, found.x], 1))
    np.testing.assert_allclose(shown[:, 3], found.weight, rtol=0, atol=1e-5)
    numbers = page.locator("#numbers").inner_text()
    assert f"{found.rest:.4f}" in numbers
    ess = float(re.search(r"effective sample size\s+([\d.,]+)", numbers)[1].replace(",", ""))
    assert ess == pytest.approx(found.ess, rel=0.01)


def test_hover_tap_and_keys_show_the_patches_of_the_api(page, explanation):
    canvas = page.locator("#canvas")
    assert_shows(page, explanation, 4, 6, 5)
    phone = page.evaluate("navigator.maxTouchPoints > 0")
    if phone:
        canvas.tap(position=place(page, 3, 2))
    else:
        canvas.hover(position=place(page, 3, 2))
        assert_shows(page, explanation, 4, 3, 2)
        canvas.hover(position=place(page, 9, 7))
        assert_shows(page, explanation, 4, 9, 7)
        canvas.click(position=place(page, 3, 2))
        canvas.hover(position=place(page, 9, 7))  # the pixel is held
    assert_shows(page, explanation, 4, 3, 2)
    canvas.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert_shows(page, explanation, 4, 4, 3)
    page.keyboard.press("PageUp")
    assert_shows(page, explanation, 3, 4, 3)
    assert "Heaviest patch" in page.locator("#says").inner_text()
    for _ in range(12):
        page.keyboard.press("ArrowUp")
    assert_shows(page, explanation, 3, 0, 3)


def test_patches_are_drawn_in_their_training_images(page, explanation):
    training = explanation.machine.training
    page.locator("#canvas").click(position=place(page, 9, 8))
    number, y, *_ = map(int, rows(page)[0])
    row = 0 if y > 6 else 11  # far from the frame around the patch
    shown = page.locator("#patches tr .image canvas").first.evaluate(
        "(c, row) => [...c.getContext('2d').getImageData(0, row * c.height / 12, 1, 1).data]", row
    )
    (pixels,) = training.read_some(training.numbers_of(np.array([number])))
    assert shown[:3] == pixels[row, 0].tolist()


def test_the_slider_changes_the_step(page, explanation):
    page.locator("#step").focus()
    page.keyboard.press("Home")
    assert_shows(page, explanation, 0, 6, 5)
    assert page.locator("#at").inner_text() == "step 1 of 5, t = 0.833, k = 7"
    assert page.locator("#step").get_attribute("aria-valuetext") == "step 1 of 5, t = 0.833, k = 7"


def test_overlays_change_the_picture_and_say_what_they_show(page):
    picture = "document.getElementById('canvas').toDataURL()"
    plain = page.evaluate(picture)
    for name in ("image", "segment", "ess", "stderr", "heaviest", "difference"):
        page.select_option("#overlay", name)
        assert page.evaluate(picture) != plain
        assert page.locator("#legend").inner_text()
    page.select_option("#overlay", "none")
    assert page.evaluate(picture) == plain


def test_the_page_fits_its_window_and_has_both_colour_schemes(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    back = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(back)
    page.locator("#theme").click()
    after = page.evaluate(back)
    assert {before, after} == {"rgb(255, 255, 255)", "rgb(20, 20, 23)"}
    assert page.locator("#beside").is_visible()
    assert page.locator("#beside-caption").inner_text() == "a network"


def test_everything_that_can_be_used_has_a_name(page):
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, canvas, svg')].filter(
             e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length)).length"""
    )
    assert unnamed == 0
    assert page.locator("#canvas").get_attribute("tabindex") == "0"
