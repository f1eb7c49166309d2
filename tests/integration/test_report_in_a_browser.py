"""The pages of runs in a real browser: drawn, quiet, reached by keyboard, accessible, and inert to what they show."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from candy_monai.columns import LEARNING_RATE, SCORE
from candy_monai.report.comparison import write_comparison
from candy_monai.report.evaluation import write_cross_validation, write_evaluation
from tests import pages
from tests.browser import Browser
from tests.pages import box_case, made_up_run, validated

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
PHONE, DESK = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("selenium", reason="selenium is not installed")
    found = Browser()
    yield found
    found.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "plain"
    made_up_run(folder, num_epochs=40, total=60)
    return folder / "report.html"


@pytest.fixture(scope="module")
def many_classes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "many"
    names = ("background", *[f"structure {i}" for i in range(1, 118)])
    made_up_run(folder, num_epochs=1000, class_names=names, event=validated(50, num_classes=118))
    return folder / "report.html"


def opened(browser, page, *, size=DESK, dark=False):
    browser.resize(*size, dark=dark)
    browser.console(), browser.requests()
    browser.open(page)
    browser.wait("return !!document.querySelector('[data-ready]')")
    return browser


def colors_in(browser, selector="canvas"):
    return browser.run(
        "const c = document.querySelector(arguments[0]); const d = c.getContext('2d').getImageData(0, 0, c.width, "
        "c.height).data; const found = new Set(); for (let i = 0; i < d.length; i += 4) found.add(d.slice(i, i + 3)"
        ".join()); return [...found];",
        selector,
    )


def pixels(browser):
    return browser.run("return [...document.querySelectorAll('canvas')].map((c) => c.toDataURL()).join()")


def toggle(browser, text):
    browser.run(
        "[...document.querySelectorAll('label')].find((l) => l.textContent.includes(arguments[0])).click()", text
    )


def column(browser, title, index):
    return browser.run(
        "const t = [...document.querySelectorAll('section.card')].find((s) => s.querySelector('h3').textContent === "
        "arguments[0]); return [...t.querySelectorAll('tbody tr')].map((r) => r.children[arguments[1]].textContent)",
        title,
        index,
    )


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [PHONE, DESK])
def test_a_page_says_nothing_on_the_console_requests_nothing_and_fits_the_screen(browser, page, size, dark):
    opened(browser, page, size=size, dark=dark)
    assert browser.console() == []
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")


def test_curves_are_drawn_with_a_line_for_each_series(browser, page):
    opened(browser, page)
    assert browser.run("return document.querySelectorAll('[data-key=\"combined loss\"] polyline').length") == 2
    assert browser.run("return document.querySelector('[data-key=\"val score\"] polyline').getTotalLength()") > 200


def test_the_numbers_of_an_axis_are_told_apart_however_small_they_are(browser, tmp_path, monkeypatch):
    one_rate = {**pages.made_up_metrics(4, ["a", "b", "c"]), LEARNING_RATE: [1e-3] * 4}
    monkeypatch.setattr(pages, "made_up_metrics", lambda *_, **__: one_rate)
    made_up_run(tmp_path / "run", num_epochs=4)
    opened(browser, tmp_path / "run" / "report.html")
    texts = browser.run(
        "return [...document.querySelectorAll('[data-key=\"learning rate\"] text.tick[text-anchor=end]')]"
        ".map((text) => text.textContent)"
    )
    assert len(texts) > 2
    assert len({*texts}) == len(texts)
    assert all(float(text) == pytest.approx(1e-3, rel=0.3) for text in texts)


def test_all_curves_go_over_the_same_epochs_and_a_short_run_has_ticks(browser, tmp_path, monkeypatch):
    scored = {**pages.made_up_metrics(8, ["a", "b", "c"]), SCORE: [math.nan, 0.5, math.nan, 0.6] * 2}
    monkeypatch.setattr(pages, "made_up_metrics", lambda *_, **__: scored)
    made_up_run(tmp_path / "run", num_epochs=8)
    opened(browser, tmp_path / "run" / "report.html", size=PHONE)
    areas = "return [...document.querySelectorAll('.plot-area')].map((area) => area.getAttribute('aria-valuemin'))"
    assert {*browser.run(areas)} == {"1"}
    ticks = "return [...document.querySelectorAll('[data-key=\"val score\"] text.tick[text-anchor=middle]')].length"
    assert browser.run(ticks) > 1


def test_only_lines_of_the_log_that_tell_of_errors_are_red(browser, tmp_path):
    folder = tmp_path / "run"
    made_up_run(folder, num_epochs=2, note="Epoch 1: val area error 3\n[2026-01-01 10:00:02] Interrupted: KeyError")
    opened(browser, folder / "report.html")
    red = browser.run("return [...document.querySelectorAll('.log-line.bad span')].map((line) => line.textContent)")
    assert red == ["Interrupted: KeyError"]


def test_the_mouse_shows_the_values_of_an_epoch_and_dragging_zooms_all_curves(browser, page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    opened(browser, page)
    area = browser.driver.find_element(By.CSS_SELECTOR, '[data-key="combined loss"] .plot-area')
    browser.run("arguments[0].scrollIntoView({block: 'center'})", area)
    ActionChains(browser.driver).move_to_element(area).perform()
    tip = browser.wait("return document.querySelector('[data-key=\"combined loss\"] .tip:not([hidden])')").text
    assert tip.startswith("epoch ")
    assert "training" in tip
    last = "return [...document.querySelectorAll('[data-key=\"val score\"] .tick')].pop().textContent"
    assert browser.run(last) == "40"
    ActionChains(browser.driver).click_and_hold(area).move_by_offset(-120, 0).release().perform()
    assert float(browser.run(last)) < 40
    ActionChains(browser.driver).double_click(area).perform()
    assert browser.run(last) == "40"


def test_curves_are_read_zoomed_and_left_by_keyboard(browser, page):
    opened(browser, page)
    area = '[data-key="val score"] .plot-area'
    said = f"return document.querySelector('{area}').getAttribute('aria-valuetext')"
    browser.press("END", on=area)
    assert browser.run(said).startswith("epoch 40: score 0.")
    browser.press("ARROW_LEFT", "ARROW_LEFT")
    assert browser.run(said).startswith("epoch 38: ")
    browser.press("+")
    assert browser.run(f"return document.querySelector('{area}').getAttribute('aria-valuemin')") != "1"
    browser.press("0")
    assert browser.run(f"return document.querySelector('{area}').getAttribute('aria-valuemin')") == "1"


def test_a_logarithmic_axis_and_time_redraw_the_curves(browser, page):
    opened(browser, page)
    line = "return document.querySelector('[data-key=\"combined loss\"] polyline').getAttribute('points')"
    before = browser.run(line)
    browser.run("document.querySelector('[data-key=\"combined loss\"] input').click()")
    assert browser.run(line) != before
    toggle(browser, "time")
    assert "min" in browser.run("return [...document.querySelectorAll('.tick')].map((t) => t.textContent).join()")


def test_many_classes_are_folded_and_the_worst_five_named(browser, many_classes):
    opened(browser, many_classes)
    classes = '[data-key="classes:val dice"]'
    assert browser.run(f"return document.querySelectorAll('{classes} polyline').length") == 6
    assert browser.run(f"return document.querySelectorAll('{classes} polygon.band').length") == 2
    assert "117 classes" in browser.run(f"return document.querySelector('{classes}').textContent")


@pytest.mark.alone
def test_a_thousand_epochs_and_fifty_cases_are_small_and_painted_at_once(browser, many_classes):
    assert many_classes.stat().st_size < 5_000_000
    painted = []
    for _ in range(3):  # the first time the browser itself is slow, and the machine may have other work
        opened(browser, many_classes)
        first = "return (performance.getEntriesByName('first-contentful-paint')[0] || {}).startTime"
        painted.append(browser.wait(first))
    assert min(painted) < 300


def test_a_table_sorts_by_its_headings_and_filters_by_words_and_conditions(browser, page):
    opened(browser, page)
    scores = [float(text) for text in column(browser, "Cases", 1)]
    assert scores == sorted(scores)
    heading = "const b = [...document.querySelectorAll('section.card th button')][1]; b.click(); return b.parentElement"
    assert browser.run(heading + ".getAttribute('aria-sort')") == "descending"
    assert [float(text) for text in column(browser, "Cases", 1)] == sorted(scores, reverse=True)


def test_a_filter_takes_words_and_conditions(browser, many_classes):
    opened(browser, many_classes)
    box = "section.card input[type=search]"
    browser.press("case_00", on=box)
    assert len(column(browser, "Cases", 0)) == 10
    browser.run("document.querySelector(arguments[0]).value = ''", box)
    browser.press("dice<0.75", on=box)
    found = [float(text) for text in column(browser, "Cases", 1)]
    assert found
    assert max(found) < 0.75


def test_an_infinite_distance_is_the_largest_for_sorting_and_for_conditions(browser, tmp_path):
    cases = [
        {"case": case_id, "metrics": {"1": {"HD95": distance}}}
        for case_id, distance in zip("abcdef", (3.5, "inf", 20.0, None, 7.25, 1.0), strict=True)
    ]
    write_evaluation({"metric_per_case": cases}, tmp_path / "page.html", title="HD95", names={})
    browser.resize(*DESK)
    browser.open(tmp_path / "page.html")
    assert column(browser, "Cases", 1) == ["∞", "20.00", "7.25", "3.50", "1.00", "–"]
    browser.press("hd95>10", on="section.card input[type=search]")
    assert column(browser, "Cases", 1) == ["∞", "20.00"]


def test_the_viewer_draws_three_planes_and_each_overlay_changes_them(browser, page):
    opened(browser, page)
    assert browser.run("return document.querySelectorAll('canvas').length") == 3
    assert len(colors_in(browser)) > 20
    seen = [pixels(browser)]
    for text in ("Reference, as", "Prediction, filled", "Disagreement"):
        toggle(browser, text)
        seen.append(pixels(browser))
    assert len(set(seen)) == 4
    assert any(color.startswith("255,") for color in colors_in(browser))


def test_without_overlays_the_viewer_is_grey_and_opacity_and_window_change_it(browser, page):
    opened(browser, page)
    filled = pixels(browser)
    browser.run(
        "const i = document.querySelector('.controls input[type=range]'); i.value = 1; "
        "i.dispatchEvent(new Event('input'))"
    )
    assert pixels(browser) != filled
    toggle(browser, "Reference, as")
    toggle(browser, "Prediction, filled")
    grey = pixels(browser)
    assert all(len(set(color.split(","))) == 1 for color in colors_in(browser))
    browser.press("w", "w", on=".plane")
    assert pixels(browser) != grey


def test_slices_are_reached_by_keyboard_and_the_page_says_which(browser, page):
    opened(browser, page)
    said = "return document.querySelector('.plane').getAttribute('aria-valuetext')"
    browser.press("HOME", on=".plane")
    assert browser.run(said) == "slice 1 of 16"
    browser.press("PAGE_UP", "ARROW_UP")
    assert browser.run(said).startswith("slice 12 of 16")


def test_a_class_that_was_missed_says_so(browser, page):
    opened(browser, page)
    assert "tumour" in browser.run("return document.querySelector('.class-line em').parentElement.textContent")
    assert browser.run("return document.querySelector('.class-line em').textContent") == "missed"


def test_pictures_show_their_colours_and_one_plane(browser, tmp_path):
    cases = []
    for seed in range(3):
        _, label, prediction = box_case((40, 60), seed=seed)
        image = (label * 0).float().repeat(3, 1, 1)
        image[0], image[1], image[2] = 200, 100, 50
        image[:, :5] = 10.5
        cases.append((image, label, prediction))
    made_up_run(tmp_path / "run", event=validated(cases=cases))
    opened(browser, tmp_path / "run" / "report.html")
    assert browser.run("return document.querySelectorAll('canvas').length") == 1
    toggle(browser, "Reference, as")
    toggle(browser, "Prediction, filled")
    assert "200,100,50" in colors_in(browser)


def test_markup_in_ids_notes_names_and_log_stays_text(browser, tmp_path):
    ids = [f"{HOSTILE}{i}" for i in range(4)]
    names = ("background", f"kidney {HOSTILE}", "tumour")
    made_up_run(tmp_path / "run", class_names=names, note=HOSTILE, event=validated(case_ids=ids))
    made_up_run(tmp_path / "other", class_names=names, note=HOSTILE, event=validated(case_ids=ids), seed=2)
    for page in (
        tmp_path / "run" / "report.html",
        write_comparison([tmp_path / "run", tmp_path / "other"], tmp_path / "c.html"),
    ):
        opened(browser, page)
        assert "taken" not in browser.run("return document.title")
        assert browser.run("return document.querySelectorAll('img').length") == 0
        assert browser.run("return document.querySelectorAll('script').length") == 4
        assert HOSTILE in browser.run("return document.body.textContent")
        assert browser.console() == []
        assert browser.requests() == [page.resolve().as_uri()]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [PHONE, DESK])
def test_axe_finds_no_fault(browser, page, many_classes, tmp_path, size, dark):
    axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    comparison = write_comparison([page.parent, many_classes.parent], tmp_path / "c.html")
    for fold in (0, 1):
        made_up_run(tmp_path / "crossval-x" / f"fold_{fold}" / "UNetTrainer" / "20261101-10-aaaa", seed=fold)
    crossval = write_cross_validation(tmp_path / "crossval-x")
    dice = {"metric_per_case": [{"case": f"case {i}", "metrics": {"1": {"Dice": i / 9}}} for i in range(9)]}
    evaluation = write_evaluation(dice, tmp_path / "e.html", title="one against another", names={1: "kidney"})
    for file in (page, comparison, crossval, evaluation):
        browser.resize(*size, dark=dark)
        browser.open(file)
        browser.run(script)
        found = browser.driver.execute_async_script(
            "axe.run().then((r) => arguments[0](r.violations.map((v) => [v.impact, v.id, v.help, "
            "v.nodes.map((n) => n.html.slice(0, 200))])))"
        )
        assert found == []


def test_runs_side_by_side_show_one_case_in_the_same_slices(browser, page, tmp_path):
    made_up_run(tmp_path / "better", num_epochs=50, best=0.95, event=validated(score=0.9), seed=5)
    opened(browser, write_comparison([page.parent, tmp_path / "better"], tmp_path / "c.html"))
    assert browser.run("return document.querySelectorAll('.viewer canvas').length") == 6
    browser.press("HOME", "ARROW_UP", on=".plane")
    said = browser.run("return [...document.querySelectorAll('.plane')].map((p) => p.getAttribute('aria-valuenow'))")
    assert said[0] == said[3] == "2"
    lines = browser.run("return document.querySelectorAll('[data-key=\"val score/\"] polyline').length")
    assert lines == 2
    assert browser.console() == []


@pytest.mark.parametrize("size", [PHONE, DESK])
def test_a_comparison_fits_the_screen_whatever_the_length_of_ids_and_names(browser, tmp_path, size):
    made_up_run(tmp_path / "run", event=validated(case_ids=[f"{i}{'x' * 300}" for i in range(4)]))
    made_up_run(tmp_path / "other", class_names=("background", "kidney " + "y" * 300, "tumour"), seed=2)
    opened(browser, write_comparison([tmp_path / "run", tmp_path / "other"], tmp_path / "c.html"), size=size)
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")


def test_the_page_of_a_cross_validation_is_drawn_and_quiet(browser, tmp_path):
    for fold in (0, 1):
        made_up_run(tmp_path / "crossval-x" / f"fold_{fold}" / "UNetTrainer" / "20261101-10-aaaa", seed=fold)
    page = write_cross_validation(tmp_path / "crossval-x")
    browser.resize(*PHONE)
    browser.console(), browser.requests()
    browser.open(page)
    assert browser.run("return document.querySelectorAll('[data-key=\"val score/\"] polyline').length") == 2
    assert len(column(browser, "Cases", 1)) == 8
    assert browser.console() == []
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")


def test_an_old_page_of_a_run_that_goes_on_says_that_it_may_be_over(browser, page, tmp_path):
    opened(browser, page)
    assert browser.run("return document.querySelector('#status').textContent") == "This run is being trained"
    old = tmp_path / "old.html"
    old.write_text(re.sub(r'"written":\d+', '"written":1700000000', page.read_text()))
    opened(browser, old)
    assert "was being trained when" in browser.run("return document.querySelector('#status').textContent")
    assert "may have been killed" in browser.run("return document.querySelector('#overview').textContent")


def test_commands_are_copied(browser, page):
    opened(browser, page)
    command = browser.run("return document.querySelector('.command-line code').textContent")
    assert command.startswith("candy-monai resume ")
    browser.run("document.querySelector('.command-line button').focus()")
    browser.press("ENTER")
    browser.wait("return document.querySelector('.command-line button').textContent !== 'Copy'")
