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

# The reference is made from one template, and rows of a table are alike: some of each are enough.
FEWER_ENTRIES = """
const keep = (selector, n) => document.querySelectorAll(selector)
  .forEach((each, i) => i >= n && each.remove());
keep("details.mkdocstrings-source", 1);
keep(".doc-function, .doc-attribute", 6);
keep(".doc-class", 3);
keep(".doc-module", 5);
keep(".md-nav--secondary li", 10);
document.querySelectorAll("tr:nth-child(n+6)").forEach(each => each.remove());
"""


def violations(page: Page, **options: object) -> list[str]:
    """Violations of serious or critical impact found by axe."""
    page.evaluate(FEWER_ENTRIES)
    found = Axe().run(page, options={"resultTypes": ["violations"], **options}).response
    return [
        f"{page.url}: {each['id']}: {[node['html'][:160] for node in each['nodes'][:3]]}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]


def test_every_page_loads_without_complaints_and_fits_a_phone(
    context: MakeContext, address: str, pages: list[str]
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
    for name in pages:
        response = page.goto(address + name, wait_until="load")
        assert response is not None
        assert response.ok, name
        expect(page.locator("h1").first).to_be_attached()
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > PHONE["width"]:
            complaints.append(f"{name} is {width} wide on a phone")
        if not name.startswith("api/"):  # made from one template: `KINDS` has one of them
            complaints += violations(page, rules={"color-contrast": {"enabled": False}})
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
def test_each_kind_of_page_is_legible(context: MakeContext, address: str, scheme: str) -> None:
    page = context(color_scheme=scheme, reduced_motion="reduce").new_page()
    found = []
    for name in KINDS:
        page.goto(address + name)
        # On a wide screen there is more than on a phone: menus beside the text.
        found += violations(page)
    assert not found, "\n".join(found)


def test_the_check_of_accessibility_sees_what_is_wrong(context: MakeContext) -> None:
    page = context().new_page()
    page.set_content("<p style='color: #bbb; background: #fff'>pale</p><img src='x'>")
    assert {each.split(": ")[1] for each in violations(page)} >= {"color-contrast", "image-alt"}
