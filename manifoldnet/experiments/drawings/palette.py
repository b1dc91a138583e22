"""Colours for light and for dark pages; an update keeps its hue in both."""

from __future__ import annotations

from dataclasses import dataclass

from manifoldnet.experiments.plotting import COLOURS, FAINT, INK, MUTED

__all__ = ["DARK", "LIGHT", "Palette"]


@dataclass(frozen=True)
class Palette:
    """What a picture is drawn with.

    Attributes:
        name: "light" or "dark", the page's.
        ink: text and what matters.
        muted: what is named in passing.
        faint: lines that only guide.
        sgd: plain gradient steps, and what is wrong.
        sm: the scaled metric.
        geodesic: exact curves.
        un: unit norms.
    """

    name: str
    ink: str
    muted: str
    faint: str
    sgd: str
    sm: str
    geodesic: str
    un: str


LIGHT = Palette(
    "light",
    ink=INK,
    muted=MUTED,
    faint=FAINT,
    sgd=COLOURS["b-sgd"],
    sm=COLOURS["sm"],
    geodesic=COLOURS["sm-geodesic"],
    un=COLOURS["un"],
)

# The same hues, as light as letters on a dark page have to be.
DARK = Palette(
    "dark",
    ink="#E8E8EC",
    muted="#A9ADB8",
    faint="#4A4E5C",
    sgd="#B8B8B8",
    sm="#5BB4F0",
    geodesic="#35C99B",
    un="#F58A4B",
)
