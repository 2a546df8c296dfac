"""The page of a run as its reader meets it, in a real browser, from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import runs

Page = Any  # playwright's; it is imported only where there is a browser

# A function, not an expression: the page's policy lets nobody evaluate text again and again.
DRAWN = """(wanted) => {
    const drawn = document.querySelector('#plot').dataset.drawn;
    return wanted ? drawn === wanted : drawn;
}"""
RESET = """() => new Promise((done) => {
    if (!location.hash) return done();
    addEventListener('hashchange', () => setTimeout(done), { once: true });
    location.hash = '';
})"""
PANEL = "lenet-300-100/cpu-onnxruntime-t1-b1"


@dataclass
class Visit:
    """An open page, and all that went on in it."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def variants(self, body: int = 0) -> list[str]:
        """Names of the shown rows of a group, from top to bottom."""
        rows = self.page.locator(f"#cells tbody >> nth={body}").locator("tr.cell:visible .more")
        return rows.all_inner_texts()

    def shown(self) -> list[str]:
        return self.page.locator("#cells tr.cell:visible .more").all_inner_texts()

    def wait_drawn(self, panel: str = PANEL, x: str = "latency", y: str = "score") -> None:
        self.page.wait_for_function(DRAWN, arg=f"{panel}|{x}|{y}")


def go(page: Page, address: str) -> Visit:
    """Open an address, and write down everything that the page says or asks for."""
    seen = Visit(page)
    page.set_default_timeout(10_000)
    page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("dialog", lambda dialog: (seen.complaints.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(address)
    return seen


Opener = Callable[..., Visit]


@pytest.fixture
def visit(browser: Any, pages: dict[str, Path]) -> Iterator[Opener]:
    """Opens a page in a window of its own."""
    with ExitStack() as stack:

        def open_page(name: str = "realistic", address: str = "", **context: Any) -> Visit:
            window = browser.new_context(**({"viewport": {"width": 1400, "height": 900}} | context))
            stack.callback(window.close)
            return go(window.new_page(), pages[name].as_uri() + address)

        yield open_page


@pytest.fixture(scope="module")
def opened(browser: Any, pages: dict[str, Path]) -> Iterator[Visit]:
    """The realistic page, opened once: opening is what takes long."""
    window = browser.new_context(viewport={"width": 1400, "height": 900})
    yield go(window.new_page(), pages["realistic"].as_uri())
    window.close()


@pytest.fixture
def seen(opened: Visit) -> Visit:
    """The realistic page with every filter, column and axis as at first."""
    opened.page.evaluate(RESET)
    opened.wait_drawn()
    return opened


@pytest.mark.parametrize("name", ["realistic", "hostile", "empty"])
def test_the_page_is_quiet_and_loads_nothing(visit: Opener, pages: dict[str, Path], name: str):
    seen = visit(name)
    if name != "empty":
        seen.page.wait_for_function(DRAWN)
    assert seen.complaints == []
    assert seen.requests == [pages[name].as_uri()]


def test_sorting_goes_down_up_and_back_within_each_group(seen: Visit):
    original = seen.variants(), seen.variants(1)
    sizes = {}
    for result in runs.realistic_run().results:
        sizes[result.cell.workload, result.cell.recipe] = result.footprint.size_bytes if result.footprint else None

    def expect(direction: str) -> None:
        for body, workload in enumerate(("lenet-300-100", "lenet-5")):
            found = [sizes[workload, name] for name in seen.variants(body)]
            known = [size for size in found if size is not None]
            assert known == sorted(known, reverse=direction == "descending")
            assert found == known + [None] * (len(found) - len(known))  # what was not measured comes last
        header = seen.page.locator("th", has=seen.page.locator("[data-sort=size]"))
        assert header.get_attribute("aria-sort") == direction

    seen.page.click("[data-sort=size]")
    expect("ascending")
    seen.page.click("[data-sort=size]")
    expect("descending")
    seen.page.click("[data-sort=size]")
    assert (seen.variants(), seen.variants(1)) == original
    assert seen.page.locator("[aria-sort=ascending], [aria-sort=descending]").count() == 0


def test_sorting_by_keyboard_starts_with_the_better_end(seen: Visit):
    seen.page.focus("[data-sort=quality]")
    seen.page.keyboard.press("Enter")
    assert seen.page.locator("[aria-sort=descending]").count() == 1
    assert seen.variants()[0] == "pruned-0.5"


def test_a_row_keeps_its_reason_and_details_when_sorted(seen: Visit):
    seen.page.click("[data-sort=status]")
    below = "row => [row.nextElementSibling.className, row.nextElementSibling.innerText]"
    row = seen.page.locator("tr.cell", has_text="fake-int8").first
    kind, text = row.evaluate(below)
    assert "why" in kind
    assert "the weights are float32" in text


def test_filters_narrow_and_reset(seen: Visit):
    everything = len(seen.shown())
    seen.page.fill("#filter-q", "INT8 quantize.static")
    assert set(seen.shown()) == {"int8-static", "channels-int8"}
    assert seen.text("#shown") == f"4 of {everything} cells"
    seen.page.select_option("#filter-family", "pruning")
    assert set(seen.shown()) == {"channels-int8"}
    seen.page.select_option("#filter-workload", "lenet-5")
    assert len(seen.shown()) == 1
    assert seen.page.locator("#cells tbody:visible").count() == 1
    seen.page.select_option("#filter-status", "failed")
    assert seen.shown() == []
    assert seen.page.is_visible("#nothing")
    seen.page.click("button[type=reset]")
    seen.page.wait_for_selector("#nothing", state="hidden")
    assert len(seen.shown()) == everything


def test_every_status_can_be_filtered_and_shows_its_reason(seen: Visit):
    for recipe, (status, reason, _) in runs.BROKEN.items():
        seen.page.select_option("#filter-status", status.value)
        assert set(seen.shown()) == {recipe}
        assert reason in seen.text("#cells")


def test_details_open_by_keyboard(seen: Visit):
    button = seen.page.locator("button.more", has_text="int8-static").first
    details = seen.page.locator(f"#{button.get_attribute('aria-controls')}")
    assert not details.is_visible()
    button.focus()
    seen.page.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    text = details.inner_text()
    assert "took effect" in text
    assert "quantize.static(method=minmax" in text
    assert "leanmark run quick --only lenet-300-100/int8-static/cpu-onnxruntime-t1-b1" in text
    seen.page.keyboard.press("Enter")
    assert not details.is_visible()


def test_the_plot_follows_its_selectors(seen: Visit):
    assert "latency vs fp32, same runtime" in seen.text("#plot")
    assert "channels-int8" in seen.text("#plot")  # on the front, so named
    seen.page.select_option("#plot-x", "size")
    seen.page.select_option("#plot-y", "difference")
    seen.page.select_option("#plot-panel", "lenet-5/cpu-onnxruntime-t1-b1")
    seen.wait_drawn("lenet-5/cpu-onnxruntime-t1-b1", "size", "difference")
    text = seen.text("#plot")
    assert "size (lower is better)" in text
    assert "accuracy minus fp32's, paired (pp)" in text
    assert "kB" in text
    assert "clustered" in text  # on this front, not on latency's
    assert seen.complaints == []


def test_a_point_tells_its_numbers_and_leads_to_its_row(seen: Visit):
    point = seen.page.locator("#plot path[aria-roledescription=point][aria-label*='label: channels-int8']")
    point.hover()
    seen.page.wait_for_selector("#tip:visible")
    assert "channels-int8" in seen.text("#tip")
    assert "0.310x [" in seen.text("#tip")
    seen.page.fill("#filter-q", "svd")
    point.click()
    seen.page.wait_for_selector("tr.cell.found")
    assert "channels-int8" in seen.text("tr.cell.found")


def test_the_address_holds_the_view(seen: Visit, visit: Opener):
    seen.page.fill("#filter-q", "int8")
    seen.page.select_option("#filter-workload", "lenet-5")
    seen.page.click("[data-sort=size]")
    seen.page.select_option("#plot-x", "macs")
    address = seen.page.evaluate("location.hash")
    again = visit(address=address)
    again.wait_drawn(x="macs")
    assert again.shown() == seen.shown()
    assert again.page.input_value("#filter-workload") == "lenet-5"
    assert again.page.locator("[aria-sort=ascending] [data-sort=size]").count() == 1


def test_a_verdict_links_to_its_cell(visit: Opener):
    """As the gate's comment does, by the whole name of a cell."""
    seen = visit(address="#q=lenet-5%2Fpruned-0.5%2Fcpu-onnxruntime-t1-b1")
    seen.wait_drawn()
    assert len(seen.shown()) == 1


@pytest.mark.parametrize(
    "address", ["#sort=nothing.asc&workload=none&x=none&panel=none", '#sort="].desc&q=%22%3E%3Cimg src=x>', "#%E0%A4%A"]
)
def test_a_broken_address_shows_the_page_as_it_is(visit: Opener, address: str):
    seen = visit(address=address)
    seen.wait_drawn()
    assert seen.page.locator("[aria-sort=ascending], [aria-sort=descending]").count() == 0
    assert seen.page.locator("img").count() == 0
    assert seen.complaints == []


def test_hostile_texts_do_nothing(visit: Opener):
    seen = visit("hostile")
    seen.page.wait_for_function(DRAWN)
    for button in seen.page.locator("button.more").all()[:4]:
        button.click()
    seen.page.click("[data-sort=variant]")
    seen.page.select_option("#filter-family", index=1)
    seen.page.select_option("#plot-y", "difference")
    seen.page.locator("#plot path[aria-roledescription=point]").first.hover(force=True)
    assert seen.page.evaluate("window.pwned") is None
    assert seen.page.locator("img").count() == 0
    assert seen.page.locator("script").count() == 3
    body = seen.text("body")
    assert "{{ 7*7 }}" in body
    assert "</script><script>" in body
    assert "\u202e" not in body
    assert seen.complaints == []
    assert len(seen.requests) == 1


def test_the_content_policy_is_in_force(visit: Opener, tmp_path: Path):
    seen = visit()
    blocked = """async () => {
        const script = document.createElement('script');
        script.textContent = 'window.pwned = 1';
        document.body.append(script);
        document.body.insertAdjacentHTML('beforeend', '<p id="styled" style="color: rgb(1, 2, 3)">x</p>');
        let fetched = true;
        try { await fetch('https://example.invalid/'); } catch { fetched = false; }
        return [window.pwned, fetched, getComputedStyle(document.getElementById('styled')).color];
    }"""
    pwned, fetched, colour = seen.page.evaluate(blocked)
    assert pwned is None
    assert not fetched
    assert colour != "rgb(1, 2, 3)"


def test_a_narrow_screen_scrolls_the_table_and_not_the_page(visit: Opener):
    for name in ("realistic", "hostile"):
        seen = visit(name, viewport={"width": 360, "height": 740})
        seen.page.wait_for_function(DRAWN)
        assert seen.page.evaluate("document.documentElement.scrollWidth") == 360
        outer, inner = seen.page.eval_on_selector("#cells", "t => [t.parentElement.clientWidth, t.scrollWidth]")
        assert inner > outer


def test_dark_is_dark_and_follows_the_system(visit: Opener):
    def brightness(colour: str) -> float:
        red, green, blue = (int(part) for part in colour.strip("rgba()").split(",")[:3])
        return (red + green + blue) / 3

    seen = visit(color_scheme="light")
    seen.wait_drawn()
    paper = "getComputedStyle(document.body).backgroundColor"
    title = "getComputedStyle(document.querySelector('#plot .role-axis-title text')).fill"
    changed = f"before => {title} !== before"
    assert brightness(seen.page.evaluate(paper)) > 200 > 100 > brightness(seen.page.evaluate(title))
    before = seen.page.evaluate(title)
    seen.page.emulate_media(color_scheme="dark")
    seen.page.wait_for_function(changed, arg=before)
    assert brightness(seen.page.evaluate(paper)) < 60 < 150 < brightness(seen.page.evaluate(title))


def test_without_scripts_everything_can_still_be_read(visit: Opener):
    seen = visit(java_script_enabled=False)
    assert len(seen.shown()) == len(runs.realistic_run().results)
    assert seen.page.locator("tr.details:visible").count() == len(runs.realistic_run().results)
