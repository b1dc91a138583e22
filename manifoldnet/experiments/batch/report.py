"""What was measured of batch solvers, as tables and pictures. Trains nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from manifoldnet.experiments.batch.rows import Contestant, Course, Point
from manifoldnet.experiments.plotting import COLOURS, INK, MUTED, new_figure, png, style
from manifoldnet.experiments.report import csv_text

_DASHES = {"trust-regions": "-", "conjugate-gradient": "--", "lbfgs": "-.", "sgd": ":"}


def contest_csv(runs: Mapping[Contestant, Sequence[Point]]) -> str:
    """A row for each moment of each run."""
    return csv_text(
        ("solver", "update", "lr", "seconds", "passes", "cost"),
        [
            {
                "solver": contestant.solver,
                "update": contestant.update,
                "lr": "" if contestant.solver != "sgd" else f"{contestant.lr:g}",
                "seconds": f"{point.seconds:.3f}",
                "passes": point.passes,
                "cost": f"{point.cost:.6g}",
            }
            for contestant, points in runs.items()
            for point in _thinned(points)
        ],
    )


def _thinned(points: Sequence[Point], most: int = 200) -> list[Point]:
    """At most so many of a course, evenly, the last among them."""
    step = -(-len(points) // most)
    return [*points[: len(points) - 1 : step], points[-1]]


def draw_contest(runs: Mapping[Contestant, Sequence[Point]]) -> bytes:
    """Cost against seconds and against passes over the data, as a PNG.

    Raises:
        MissingExtraError: without matplotlib.
    """
    figure = new_figure(10.5, 4.4)
    left, right = figure.subplots(1, 2, sharey=True)
    for contestant, points in runs.items():
        rate = f", λ = {contestant.lr:g}" if contestant.solver == "sgd" else ""
        how: dict[str, Any] = {
            "color": COLOURS[contestant.update],
            "linestyle": _DASHES[contestant.solver],
            "label": f"{contestant.solver}, {contestant.update}{rate}",
        }
        costs = [point.cost for point in points]
        left.plot([point.seconds for point in points], costs, **how)
        right.plot([point.passes for point in points], costs, **how)
    for axes, label in ((left, "seconds"), (right, "passes over the images")):
        style(axes)
        axes.set_yscale("log")
        axes.set_xlabel(label, color=INK)
    right.set_xscale("log")
    left.set_ylabel("training loss, the lowest so far", color=INK)
    right.legend(frameon=False, fontsize=8, labelcolor=INK)
    return png(figure)


def rescaling_csv(courses: Sequence[Course]) -> str:
    """A row for each point of each run."""
    return csv_text(
        ("update", "scaling", "point", "cost"),
        [
            {"update": c.update, "scaling": c.scaling, "point": i, "cost": repr(cost)}
            for c in courses
            for i, cost in enumerate(c.costs)
        ],
    )


def draw_rescaling(courses: Sequence[Course]) -> bytes:
    """A panel for each update, with the courses from all scalings, as a PNG.

    Raises:
        MissingExtraError: without matplotlib.
    """
    names = {"sm-geodesic": "scaled metric, exact geodesics", "b-sgd": "Euclidean weights"}
    figure = new_figure(9.0, 3.8)
    styles: dict[str, dict[str, Any]] = {
        "none": {"linewidth": 5, "alpha": 0.4},
        "powers of two": {"linewidth": 1.6, "linestyle": "--", "color": INK},
        "any": {"linewidth": 1.4, "linestyle": ":", "color": MUTED},
    }
    for axes, update in zip(figure.subplots(1, 2, sharey=True), names, strict=True):
        style(axes)
        for course in courses:
            if course.update == update:
                how = {"color": COLOURS[update], "label": course.scaling} | styles[course.scaling]
                axes.plot(course.costs, **how)
        axes.set_yscale("log")
        axes.set_title(names[update], loc="left", fontsize=10, color=INK)
        axes.set_xlabel("point of trust regions", color=INK)
    figure.axes[0].set_ylabel("training loss", color=INK)
    figure.axes[1].legend(
        title="filters scaled by 1/1000 … 1000:",
        title_fontsize=8,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
    )
    return png(figure)


def summary(
    runs: Mapping[Contestant, Sequence[Point]],
    courses: Sequence[Course],
    seconds: Mapping[str, float],
) -> str:
    """What came out, a line for each run."""
    lines = [
        f"{c.solver:18}  {c.update:11}  loss {points[-1].cost:.3g} after "
        f"{points[-1].seconds:.0f} s, {points[-1].passes:,} passes"
        for c, points in runs.items()
    ]
    for course in courses:
        own = next(c for c in courses if (c.update, c.scaling) == (course.update, "none"))
        if course is not own:
            both = zip(own.costs, course.costs, strict=False)
            apart = max(abs(a - b) / max(a, b) for a, b in both)
            lines.append(
                f"trust-regions, {course.update}, scaled by {course.scaling}: losses up to "
                f"{apart:.1e} apart, relatively; last {own.costs[-1]:.6g} and "
                f"{course.costs[-1]:.6g}, {len(own.costs)} and {len(course.costs)} points"
            )
    base = seconds["autograd"]
    lines += [
        f"cost and gradient, {name}: {1000 * value:.1f} ms, {value / base:.2f} times autograd"
        for name, value in seconds.items()
    ]
    return "\n".join(lines)
