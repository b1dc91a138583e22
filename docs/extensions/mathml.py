r"""An extension of Python-Markdown: formulas of TeX as MathML, which browsers show without scripts.

`$…$` stands in a line, `$$…$$` by itself. `\norm{x}` and `\inner{u}{v}` grow with what they hold.
KaTeX would put a script, a style sheet and its fonts beside pages that load nothing from outside.
"""

import re

from latex2mathml import converter
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor

FORMULA = r"(?<![\\$])(\${1,2})(?!\s)([^$]+?)(?<!\s)\1(?!\d)"
PART = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
SHORT = {
    r"\\norm" + PART: r"\\left\\lVert \1 \\right\\rVert",
    r"\\inner" + PART + PART: r"\\left\\langle \1, \2 \\right\\rangle",
}


def mathml(tex: str, *, block: bool) -> str:
    """A formula as an element of HTML."""
    for pattern, long in SHORT.items():
        tex = re.sub(pattern, long, tex)
    made = converter.convert(tex, display="block" if block else "inline")
    return made.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")


class Formula(InlineProcessor):
    """Keeps the element away from whatever else looks for patterns."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        return self.md.htmlStash.store(mathml(m[2], block=m[1] == "$$")), m.start(0), m.end(0)


class MathML(Extension):
    """After code, before escapes: a formula is full of backslashes."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(Formula(FORMULA, md), "mathml", 185)


makeExtension = MathML
