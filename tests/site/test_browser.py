"""The site in Chromium: it loads without complaints, is searched, read, copied from, by anyone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page, TimeoutError, expect

MakeContext = Callable[..., BrowserContext]
PHONE = {"width": 390, "height": 844}
SCHEMES = ["light", "dark"]

# Colours come from the theme, not from a page: one of each kind shows them all.
KINDS = [
    "index.html",
    "start.html",
    "choose.html",
    "concepts.html",
    "api/optim.html",
    "notebooks/5-wrong-labels.html",
    "results/table2.html",
]

# Elements of one place in the tree and one style look alike: some of each are enough.
FEWER_ALIKE = """
const seen = {}, paths = new Map();
for (const each of document.body.querySelectorAll("*")) {
  if (!each.isConnected) continue;
  const own = [each.tagName, each.getAttribute("class"), each.getAttribute("style")].join(".");
  const path = (paths.get(each.parentNode) ?? "") + "/" + own;
  paths.set(each, path);
  seen[path] = (seen[path] ?? 0) + 1;
  if (seen[path] > 4) each.remove();
}
"""


#: Rules about what a page says, apart from colours: images, links, lists, tables, areas to scroll.
CONTENT = {"runOnly": ["wcag2a"], "rules": {"link-in-text-block": {"enabled": False}}}


def violations(page: Page, **options: object) -> list[str]:
    """Violations of serious or critical impact found by axe."""
    page.evaluate(Axe().axe_script)
    found = page.evaluate(
        """options => axe.run(options).then(found => found.violations
            .filter(each => ["serious", "critical"].includes(each.impact))
            .map(({id, nodes}) => [id, nodes.slice(0, 3).map(node => node.html.slice(0, 160))]))""",
        {"resultTypes": ["violations"], **options},
    )
    return [f"{page.url}: {name}: {nodes}" for name, nodes in found]


@pytest.mark.parametrize("half", [0, 1])  # two processes share the pages
def test_every_page_loads_without_complaints_and_fits_a_phone(
    context: MakeContext, address_without_search: str, pages: list[str], half: int
) -> None:
    complaints: list[str] = []

    page = context(viewport=PHONE, reduced_motion="reduce").new_page()
    page.on("console", lambda m: m.type in ("error", "warning") and complaints.append(m.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "requestfailed",
        # What is still on its way when the next page is opened is given up.
        lambda request: (
            request.failure == "net::ERR_ABORTED" or complaints.append(f"{request.url} failed")
        ),
    )

    def watch(url: str) -> None:
        if urlsplit(url).hostname not in ("127.0.0.1", None):
            complaints.append(f"{page.url} asks for {url}")

    page.on("request", lambda request: watch(request.url))
    for name in pages[half::2]:
        response = page.goto(address_without_search + name, wait_until="load")
        assert response is not None
        assert response.ok, name
        expect(page.locator("h1").first).to_be_attached()
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > PHONE["width"]:
            complaints.append(f"{name} is {width} wide on a phone")
        # The reference is made from one template: `KINDS` has one of its pages.
        if not name.startswith("api/") or name in KINDS:
            complaints += violations(page, **CONTENT)
    assert not complaints, "\n".join(complaints)


def test_formulas_are_shown(context: MakeContext, address: str) -> None:
    page = context().new_page()
    page.goto(address + "concepts.html")
    formulas = page.locator("math")
    assert formulas.count() >= 8
    sizes = formulas.evaluate_all("all => all.map(x => x.getBoundingClientRect().height)")
    assert min(sizes) > 5
    fractions = page.locator("mfrac").evaluate_all(
        "all => all.map(x => x.children[1].getBoundingClientRect().top"
        " - x.children[0].getBoundingClientRect().top)"
    )
    assert min(fractions) > 5  # one above the other
    assert "\\" not in "".join(page.locator("article p").all_inner_texts())


def search(page: Page, words: str) -> str:
    """The page that the search lists first, with the sections that fit."""
    first = page.locator(".md-search-result__item").first
    for pause in (1_000, 3_000, 9_000, 20_000):
        page.reload()
        page.wait_for_timeout(pause)  # a question before the index is there ends the search
        page.locator(".md-search__input").click()
        page.locator(".md-search__input").press_sequentially(words)  # it listens to keys
        with suppress(TimeoutError):
            first.wait_for(timeout=5_000)
            return first.inner_html()
    raise AssertionError(f"nothing is found for {words}")


@pytest.mark.parametrize("where", ["served", "from disk"])
def test_search_finds_a_name(context: MakeContext, address: str, site: Path, where: str) -> None:
    page = context().new_page()
    page.goto((address if where == "served" else f"{site.as_uri()}/") + "index.html")
    assert "#manifoldnet.manifold_parameter.ManifoldParameter" in search(page, "ManifoldParameter")


#: Words that a reader looks for, and the pages of the guide one of which has the answer.
ANSWERS = {
    "orthogonal": ("choose", "recipes/networks"),
    "unit norm": ("choose", "recipes/networks", "recipes/index"),
    "FSDP": ("distributed",),
    "AMP": ("recipes/speed",),
    "Muon": ("recipes/published", "recipes/networks", "choose"),
    "LoRA": ("recipes/fine_tuning", "recipes/published", "choose"),
    "GPU": ("recipes/speed",),
    "learning rate": ("learning_rates",),
    "Trainer": ("recipes/trainers",),
}


def test_search_finds_the_pages_with_the_answers(context: MakeContext, address: str) -> None:
    page = context().new_page()
    page.goto(address + "index.html")
    search(page, "ManifoldParameter")  # the index is there
    missed = []
    for words, answers in ANSWERS.items():
        page.locator(".md-search__input").fill("")
        page.locator(".md-search__input").press_sequentially(words)
        page.wait_for_timeout(1_000)
        links = page.locator("a.md-search-result__link").evaluate_all(
            "all => all.slice(0, 12).map(x => x.pathname)"
        )
        shown = list(dict.fromkeys(link.strip("/").removesuffix(".html") for link in links))
        if not set(shown[:3]) & set(answers):
            missed.append(f"{words}: {shown[:3]}, none of {answers}")
    assert not missed, "\n".join(missed)


def test_code_is_copied_and_commands_without_their_prompt(
    context: MakeContext, address: str
) -> None:
    made = context(permissions=["clipboard-read", "clipboard-write"])
    page = made.new_page()

    def copied(name: str, block: str) -> str:
        page.goto(address + name)
        first = page.locator(block).first
        first.hover()
        first.locator(".md-clipboard, [data-clipboard-target]").first.click()
        return page.evaluate("navigator.clipboard.readText()")

    code = copied("index.html", ".language-python")
    assert code.startswith("import torch\nimport manifoldnet as mn\n")
    compile(code, "copied", "exec")
    assert copied("extend.html", ".language-console") == (
        "pip install pytest hypothesis\npytest test_positive.py"
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pictures_follow_the_scheme(context: MakeContext, address: str, scheme: str) -> None:
    page = context(color_scheme=scheme).new_page()
    page.goto(address + "concepts.html")
    seen = page.locator("article img").evaluate_all(
        "all => all.filter(x => x.offsetParent && x.naturalWidth).map(x => x.src)"
    )
    assert len(seen) == 3
    assert all(f"-{scheme}.svg" in source for source in seen)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_kind_of_page_is_legible(
    context: MakeContext, address_without_search: str, scheme: str
) -> None:
    page = context(color_scheme=scheme, reduced_motion="reduce").new_page()
    found = []
    for name in KINDS:
        page.goto(address_without_search + name)
        page.evaluate(FEWER_ALIKE)
        # On a wide screen there is more than on a phone: menus beside the text.
        found += violations(page, **({} if scheme == "light" else {"runOnly": ["color-contrast"]}))
    assert not found, "\n".join(found)


def test_the_check_of_accessibility_sees_what_is_wrong(context: MakeContext) -> None:
    page = context().new_page()
    page.set_content("<p style='color: #bbb; background: #fff'>pale</p><img src='x'>")
    assert {each.split(": ")[1] for each in violations(page)} >= {"color-contrast", "image-alt"}
