"""Figures of matplotlib without windows, backends or global state, all in one style.

A figure is drawn once, in the colours of light pages; `svg_pair` writes it for dark pages too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from manifoldnet.experiments.errors import importing
from manifoldnet.experiments.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
GREY, BLUE, GREEN, RED, PINK, ORANGE, SKY = (
    *("#555555", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9"),
)
COLOURS = {"b-sgd": GREY, "sm": BLUE, "sm-geodesic": GREEN, "un": RED, "adamw": PINK}
INK, MUTED, FAINT = "#222222", "#666666", "#DDDDDD"
PAPER = "#FFFFFF"
"""The colour of the page, for hollow points."""

# From light to dark; colour-blind readers see the order.
SHADES = ("#9ECAE9", "#6FB0DC", "#4292C6", "#2171B5", "#08519C", "#08306B", "#03152F")

_PALETTE = (INK, MUTED, FAINT, PAPER, GREY, BLUE, GREEN, RED, PINK, ORANGE, SKY, *SHADES)
# The same hues, as light as letters on a dark page have to be; the shades from dark to light.
_ON_DARK = (
    *("#E8E8EC", "#A9ADB8", "#4A4E5C", "#1E2129"),
    *("#B4B8C4", "#5BB4F0", "#35C99B", "#F58A4B", "#E59CC4", "#F0B840", "#A8D8F8"),
    *("#33587C", "#3E74A6", "#4F91CB", "#6CADE2", "#92C6EF", "#BBDDF7", "#E6F4FF"),
)
_DARK = {light.lower(): dark for light, dark in zip(_PALETTE, _ON_DARK, strict=True)}


def new_figure(width: float, height: float, dpi: int = 160) -> Figure:
    """An empty figure, in inches."""
    with importing("matplotlib", "the picture"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a file, the same bytes for the same figure."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure as an SVG without a background, the same bytes for the same figure."""
    from matplotlib import rc_context
    from matplotlib.colors import to_hex
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if isinstance(text, Text) and to_hex(text.get_color()) == "#000000":  # the default
            text.set_color(INK)
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "manifoldnet"}):
        metadata = {"Date": None, "Creator": None}
        figure.savefig(stream, format="svg", transparent=True, metadata=metadata)
    # A hundredth of a point is finer than any screen.
    return re.sub(rb'(?<= d=")[^"]+', _rounded, stream.getvalue())


def _rounded(path: re.Match[bytes]) -> bytes:
    return re.sub(rb"-?\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}".encode(), path[0])


def on_dark(picture: bytes) -> bytes:
    """An SVG of `svg` in the colours of dark pages.

    Raises:
        ValueError: for a colour that is not of this module, which has no counterpart.
    """

    def dark(found: re.Match[str]) -> str:
        if found[0].lower() not in _DARK:
            raise ValueError(
                f"{found[0]} has no counterpart on dark pages: draw with the colours of this "
                f"module ({', '.join(_DARK)})"
            )
        return _DARK[found[0].lower()]

    return re.sub(r"(?<=: )#[0-9a-fA-F]{6}\b", dark, picture.decode()).encode()


def svg_pair(name: str, picture: bytes) -> dict[str, bytes]:
    """An SVG of `svg` by file name: ``NAME-light.svg`` and ``NAME-dark.svg``."""
    return {f"{name}-light.svg": picture, f"{name}-dark.svg": on_dark(picture)}


def write_svg_pair(figure: Figure, path: Path) -> None:
    """Write ``PATH-light.svg`` and ``PATH-dark.svg``; `path` has no ending."""
    for name, content in svg_pair(path.name, svg(figure)).items():
        write_bytes(path.with_name(name), content)


def style(axes: Axes, grid: Literal["x", "y", "both"] = "y") -> None:
    """No frame, faint lines across one axis or both."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis=grid, which="major", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelcolor=INK, labelsize=9)


def panel(axes: Axes, title: str, x: str) -> None:
    """The style, a title and the name of the horizontal axis."""
    style(axes)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(x, color=INK)


def scale(axes: Axes, values: Sequence[float], longest: int) -> None:
    """Epochs from 1 to ``longest``, and a logarithmic axis with room for ``values``."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    positive = [value for value in values if value > 0]
    bottom, top = (0.9 * min(positive), 1.1 * max(positive)) if positive else (0.1, 100.0)
    if len(positive) < len(values) or not values:
        axes.set_ylim(0, top)  # zero errors have no place on a logarithmic axis
    else:
        axes.set_yscale("log")
        axes.set_ylim(bottom, top)
        shown: list[float] = []
        for digits in ((1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)):
            if len(shown) < 4:  # a narrow range needs the denser ticks
                ticks = [digit * 10.0**power for power in range(-3, 3) for digit in digits]
                shown = [tick for tick in ticks if bottom <= tick <= top]
        axes.yaxis.set_major_locator(FixedLocator(shown))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(1 if longest > 1 else 0, max(longest, 2))
