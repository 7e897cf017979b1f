"""The HTML report in Chromium: it opens fast and quietly, sorts, switches, and fits a phone in the dark.

Where no Chromium is installed these tests are not run, and pytest's summary says so.
"""

import io
import shutil

import matplotlib
import numpy as np
import pytest
from made_evaluation import evaluation_of, page, small

playwright = pytest.importorskip("playwright.sync_api")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason=f"BROWSER TESTS NOT RUN: none of {', '.join(NAMES)} is installed"
)
HOSTILE = "<img src='http://evil.example/x' onerror='document.title=1'>"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root has no sandbox
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of two settings, one of whose tasks has a hostile name."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(evaluation_of(small() + small(task=HOSTILE))), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, report):
    """Open the report with settings of a browser; what it complains about or asks for fails the test."""
    contexts, problems, requests = [], [], []

    def open_page(**settings):
        context = browser.new_context(**settings)
        contexts.append(context)
        shown = context.new_page()
        shown.on("console", lambda message: problems.append(message.text))
        shown.on("pageerror", lambda error: problems.append(str(error)))
        shown.on("request", lambda request: requests.append(request.url))
        shown.goto(report.as_uri())
        return shown

    yield open_page
    for context in contexts:
        context.close()
    assert problems == [] and set(requests) == {report.as_uri()}


def column(table, place: int) -> list[str]:
    return table.locator(f"tbody tr > :nth-child({place})").all_inner_texts()


def test_it_opens_in_less_than_two_seconds_and_is_small(opened, report):
    shown = opened()
    timings = []
    for _ in range(3):  # a machine that is busy with other tests may be slow once
        timings.append(shown.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
        shown.reload()
    assert 0 < min(timings) < 2000 and report.stat().st_size < 5_000_000
    assert shown.title() == "Evaluation made" and HOSTILE in shown.inner_text("main")


def test_what_is_not_its_own_script_is_not_run(browser, tmp_path, report):
    text = report.read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(
        text.replace("<main", "<script>document.title='run'</script><img src='http://evil.example/x'><main")
    )
    shown = browser.new_context().new_page()
    refused = []
    shown.on("requestfailed", lambda request: refused.append(request.failure))
    shown.goto(broken.as_uri())
    assert shown.title() == "Evaluation made" and refused == ["csp"]
    shown.context.close()


def test_tables_sort_by_click_and_by_key(opened):
    shown = opened()
    table = shown.locator("[data-setting='0'] > .scroll table")
    heading = table.locator("thead th").nth(2)
    assert heading.inner_text().startswith("test loss") and heading.get_attribute("aria-sort") is None
    heading.get_by_role("button").click()
    losses = column(table, 3)
    assert losses == sorted(losses, key=float) and heading.get_attribute("aria-sort") == "ascending"
    heading.get_by_role("button").press("Enter")
    assert column(table, 3) == losses[::-1] and heading.get_attribute("aria-sort") == "descending"
    assert shown.locator("#announcement").inner_text() == "Sorted by test loss, descending."
    rate = table.locator("thead th").nth(1)
    for _ in range(2):  # what is not a number stands last either way
        rate.get_by_role("button").press("Space")
        assert column(table, 2)[-1] == "all"
    assert heading.get_attribute("aria-sort") is None and float(column(table, 2)[0]) == 1.0


def test_controllers_are_switched_off_and_on_in_all_plots(opened):
    shown = opened()
    series = shown.locator("[data-setting='0'] .series[data-controller='2']")
    box = shown.get_by_label("policy", exact=True)
    assert series.count() == 4 and all(series.nth(k).is_visible() for k in range(4))
    box.press("Space")
    assert not box.is_checked() and not any(series.nth(k).is_visible() for k in range(4))
    assert shown.locator("[data-setting='0'] .series[data-controller='0']").first.is_visible()
    shown.get_by_role("button", name="None").click()
    assert shown.locator(".series:not(.off)").count() == 0
    shown.get_by_role("button", name="All").click()
    assert box.is_checked() and shown.locator(".series.off").count() == 0


def test_one_setting_is_shown_at_a_time(opened):
    shown = opened()
    first, second = (shown.locator(f"[data-setting='{place}']") for place in range(2))
    assert first.is_visible() and not second.is_visible()
    shown.get_by_label("Setting", exact=True).select_option("1")
    assert second.is_visible() and not first.is_visible()
    shown.get_by_label("Setting", exact=True).select_option("All settings")
    assert first.is_visible() and second.is_visible()


def test_a_point_says_what_it_is_and_its_figures_are_a_table(opened):
    shown = opened()
    plot = shown.locator("[data-setting='0'] .plot").first
    plot.locator(".mark").last.hover()
    assert plot.locator(".readout").inner_text().startswith("rex from 0.3: diverged")
    plot.get_by_text("Figures of this plot").press("Enter")
    assert plot.locator("table").is_visible() and plot.locator("tbody tr").count() == 7


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(opened, scheme):
    shown = opened(viewport={"width": 360, "height": 740}, color_scheme=scheme, is_mobile=True, has_touch=True)
    assert shown.evaluate("document.documentElement.scrollWidth") <= 360
    image = matplotlib.image.imread(io.BytesIO(shown.screenshot()))
    ground = np.median(image[..., :3])
    assert image.shape[:2] == (740, 360) and (ground > 0.9 if scheme == "light" else ground < 0.2)
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 20


def test_without_its_script_everything_is_there_to_read(opened):
    shown = opened(java_script_enabled=False)
    assert shown.locator("[data-setting='1'] .plot").first.is_visible() and not shown.locator(".choose").is_visible()


def test_the_keyboard_reaches_the_skip_link_first_and_then_the_report(opened):
    shown = opened()
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.textContent") == "Skip to the report"
    shown.keyboard.press("Enter")
    assert shown.url.endswith("#main")
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.querySelector('main').contains(document.activeElement)")
