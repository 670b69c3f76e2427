"""The documentation site: it builds without a warning, names everything public, leads nowhere dead, and works in a browser."""

import functools
import html.parser
import http.server
import inspect
import json
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse

import pytest
from sphinx.util.inventory import InventoryFile

import ctld_optax
import ctld_optax.plotting
from tests.helpers import public_objects

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1440, "height": 900}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(out / "trees"), "docs", str(out / "html")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / "html"


def test_every_public_name_is_in_the_reference(site):
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    entries = {name for kind in inventory.data if kind.startswith("py:") for name in inventory.data[kind]}
    names = dict(public_objects()).keys()
    assert {"ctld_optax.ctld", "ctld_optax.CTLDState", "ctld_optax.posterior.Reservoir", "ctld_optax.posterior.sample"} <= names
    assert not names - entries


class Links(html.parser.HTMLParser):
    """The anchors a page has, and what it refers to."""

    def __init__(self, page):
        super().__init__()
        self.anchors, self.targets = set(), []
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs:
            self.anchors.add(attrs["id"])
        self.targets += [attrs[name] for name in ("href", "src") if attrs.get(name)]


def test_no_link_is_dead(site):
    pages = {page: Links(page) for page in site.rglob("*.html")}
    assert len(pages) > 10
    dead = []
    for page, links in pages.items():
        for target in links.targets:
            parts = urllib.parse.urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            path = (page.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else page
            path = path / "index.html" if path.is_dir() else path
            anchor = urllib.parse.unquote(parts.fragment)
            if not path.exists() or (anchor and path in pages and anchor not in pages[path].anchors):
                dead.append(f"{page.relative_to(site)} -> {target}")
    assert not dead


def test_readme_links_to_what_is_there():
    targets = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text())
    local = [target for target in targets if not target.startswith("http")]
    assert len(local) >= 3
    assert not [target for target in local if not (ROOT / target).exists()]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def browser_page(site):
    """A page of a headless Chromium that can reach nothing but the site, and the site's address."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=quiet)
        page = browser.new_page()
        troubles, answers, asked = [], [], []
        page.on("pageerror", lambda error: troubles.append(f"{page.url}: {error.stack}"))
        page.on("response", lambda response: answers.append((response.status, response.url)))
        page.on("request", lambda request: asked.append(request.url))
        yield page, address
        browser.close()
    server.shutdown()
    server.server_close()
    assert not troubles
    assert not [answer for answer in answers if answer[0] >= 400]
    assert not [url for url in asked if not url.startswith((address, "data:"))]  # the site needs no other host


def visit(page, address):
    """Opens a page, and waits until its formulas are drawn: left before that, MathJax finds its elements gone."""
    page.goto(address)
    page.wait_for_load_state()
    if page.evaluate("() => Boolean(window.MathJax)"):
        page.wait_for_function("() => MathJax.startup && MathJax.startup.promise")
        page.evaluate("() => MathJax.startup.promise")


def every_page(browser_page, site, size):
    """The browser's page and the file, at each file of the site in turn."""
    page, address = browser_page
    page.set_viewport_size(size)
    for path in sorted(site.rglob("*.html")):
        visit(page, f"{address}/{path.relative_to(site)}")
        yield page, path


def test_navigation_leads_to_every_page(browser_page, site):
    page, address = browser_page
    page.set_viewport_size(DESK)
    visit(page, f"{address}/index.html")
    links = page.locator(".sidebar-tree a.internal")
    targets = [links.nth(i).get_attribute("href") for i in range(links.count())]
    pages = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    made = {name for name in pages if not name.startswith(("_modules/", "genindex", "search"))}
    assert len(made) > 35
    assert made - set(targets) <= {"index.html"}
    page.locator(".sidebar-tree a.internal", has_text="Quick start").first.click()
    page.wait_for_url("**/quick_start.html")
    for target in targets:
        visit(page, f"{address}/{target}")
        assert page.locator("h1").first.inner_text().rstrip("¶#").strip()


@pytest.mark.parametrize(
    ("word", "target"),
    [
        ("reservoir", "posterior_samples"),
        ("gallery", "examples"),
        ("cite", "citing"),
        ("contributing", "contributing"),
        ("transformer", "examples/transformer"),
        ("R-hat", "examples/separated_modes"),
    ],
)
def test_search_finds(browser_page, word, target):
    page, address = browser_page
    visit(page, f"{address}/index.html")
    page.locator("input.sidebar-search").fill(word)
    page.locator("input.sidebar-search").press("Enter")
    page.locator(f"#search-results a[href^='{target}.html']").first.wait_for(timeout=10_000)


NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))


def test_the_gallery_shows_every_notebook(browser_page):
    page, address = browser_page
    visit(page, f"{address}/examples.html")
    cards = page.locator(".sd-card")
    shown = {}
    for number in range(cards.count()):
        link = cards.nth(number).locator("a").first.get_attribute("href")
        picture = cards.nth(number).locator("img")
        picture.scroll_into_view_if_needed()
        picture.evaluate("image => image.decode()")
        shown[link] = picture.evaluate("image => image.naturalWidth")
    assert len(NOTEBOOKS) >= 8
    assert set(shown) == {f"examples/{name}.html" for name in NOTEBOOKS}
    assert min(shown.values()) >= 400


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_has_its_outputs(browser_page, site, name):
    page, address = browser_page
    page.set_viewport_size(DESK)
    visit(page, f"{address}/examples/{name}.html")
    drawn = page.locator(".cell_output img")
    assert drawn.count() >= 3
    for number in range(drawn.count()):
        drawn.nth(number).scroll_into_view_if_needed()
        drawn.nth(number).evaluate("image => image.decode()")
        assert drawn.nth(number).evaluate("image => image.naturalWidth") > 200
    target = page.locator("a.download", has_text="Download this notebook").get_attribute("href")
    notebook = json.loads((site / "examples" / target).resolve().read_text())
    assert any(cell.get("outputs") for cell in notebook["cells"])
    assert not [output for cell in notebook["cells"] for output in cell.get("outputs", []) if output["output_type"] == "error"]


def test_the_explorer_moves(browser_page):
    page, address = browser_page
    page.set_viewport_size(DESK)
    visit(page, f"{address}/examples/explorer.html")
    sliders = page.locator(".ctld-explorer input[type=range]")
    assert sliders.count() == 6
    drawn = lambda: page.locator(".ctld-explorer .heat").get_attribute("d")
    seen = {drawn()}
    for number in range(sliders.count()):
        before = drawn(), page.locator(".ctld-explorer output").nth(number).inner_text()
        sliders.nth(number).focus()
        page.keyboard.press("ArrowRight")
        after = drawn(), page.locator(".ctld-explorer output").nth(number).inner_text()
        assert before[0] != after[0]
        assert before[1] != after[1]
        seen.add(after[0])
    assert len(seen) == 7  # each setting is another run
    assert "round trips" in page.locator(".ctld-explorer .readings").inner_text()


def test_a_picture_stands_beside_every_plotting_call(site):
    text = (site / "api" / "plotting.html").read_text()
    calls = [name for name in ctld_optax.plotting.__all__ if inspect.isfunction(getattr(ctld_optax.plotting, name))]
    assert len(calls) > 8
    for name in set(calls) - {"explorer"}:  # that one is a page of its own
        after = text.split(f'id="ctld_optax.plotting.{name}"')[1].split('<dl class="py')[0]
        assert re.search(rf'<img[^>]*src="[^"]*{name}\d*\.png"', after), name
    assert 'href="../examples/explorer.html"' in text


def test_the_reference_shows_no_private_path(site):
    pages = [site / "api.html", *(site / "api").glob("*.html")]
    assert len(pages) > 9
    shown = {page.name: re.sub(r"<[^>]+>", "", page.read_text().split("<article")[1].split("</article")[0]) for page in pages}
    assert not {name for name, text in shown.items() if re.search(r"ctld_optax(\.\w+)*\._", text)}


@pytest.mark.parametrize("name", ["method", "temperature", "api/noise", "examples/temperature_trajectories"])
def test_formulas_are_drawn(browser_page, name):
    page, address = browser_page
    visit(page, f"{address}/{name}.html")
    formulas = page.locator(".math").count()
    assert formulas > 3
    assert page.locator(".math mjx-container svg").count() >= formulas
    assert page.locator("[data-mml-node=merror], mjx-container [fill=red]").count() == 0  # red: a macro that TeX does not know


# What in the text ends right of the screen, but for what stands in a box of the text that scrolls by itself.
BEYOND_THE_EDGE = """() => {
  const article = document.querySelector("article");
  const scrolls = box =>
    article.contains(box) && box !== article
    && (/auto|scroll/.test(getComputedStyle(box).overflowX) || scrolls(box.parentElement));
  return [...article.querySelectorAll("*:not(mjx-assistive-mml, mjx-assistive-mml *)")]  // unseen: for screen readers
    .filter(element => element.getBoundingClientRect().right > window.innerWidth && !scrolls(element.parentElement))
    .map(element => element.outerHTML.slice(0, 80));
}"""


def test_no_page_is_wider_than_a_phone(browser_page, site):
    for page, path in every_page(browser_page, site, PHONE):
        assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"], path.name
        assert not page.evaluate(BEYOND_THE_EDGE), path.name


# Blocks of code of which something is beside its box, or (`whole`) whose lines go on in a second one.
CUT_CODE = """whole => [...document.querySelectorAll("article pre")].filter(block => {
  const lines = block.textContent.replace(/\\n$/, "").split("\\n").length, style = getComputedStyle(block);
  const height = block.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom);
  const broken = whole && !block.closest(".cell_output") && height > (lines + 0.5) * parseFloat(style.lineHeight);
  return broken || block.scrollWidth > block.clientWidth;
}).map(block => block.textContent.slice(0, 80))"""


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_code_fits_its_box(browser_page, site, size):
    seen = 0
    for page, path in every_page(browser_page, site, size):
        seen += page.locator("article pre").count()
        # On a desk only the modules' own source, which is wider than the column, and what a notebook printed go on in a second
        # line.
        whole = size == DESK and "_modules" not in path.parts
        assert not page.evaluate(CUT_CODE, whole), path.name
    assert seen > 50


# Cells that are not beside the other cells of their row, or too narrow to read.
LOST_CELLS = """() => [...document.querySelectorAll("article table.docutils tr")].filter(row => {
  const boxes = [...row.cells].map(cell => cell.getBoundingClientRect());
  return boxes.some((box, i) => box.width < 48 || (i && (box.left < boxes[i - 1].right - 1 || box.top !== boxes[0].top)));
}).map(row => row.textContent.slice(0, 80))"""


def test_tables_keep_their_columns_on_a_phone(browser_page, site):
    seen = 0
    for page, path in every_page(browser_page, site, PHONE):
        seen += page.locator("article table.docutils").count()
        assert not page.evaluate(LOST_CELLS), path.name
    assert seen > 10


def test_a_phone_can_open_the_navigation(browser_page):
    page, address = browser_page
    page.set_viewport_size(PHONE)
    visit(page, f"{address}/index.html")
    link = page.locator(".sidebar-tree a.internal").first
    assert link.bounding_box()["x"] < 0  # out of sight
    page.locator("label.nav-overlay-icon[for=__navigation]").first.click()
    page.wait_for_function("() => document.querySelector('.sidebar-tree a.internal').getBoundingClientRect().x >= 0")
