"""Every law can fail: for each a wrong manifold that breaks it, and what is said about it.

A wrong manifold is a right one with one method exchanged, of itself or of one of its parts:

    wrong(SPHERES, "metric", component_inner=lambda self, x, u, v: …)
"""

import inspect
import math
from dataclasses import dataclass

import pytest
import torch

from manifoldnet.geometry import (
    Euclidean,
    Frame,
    Geodesic,
    Manifold,
    Oblique,
    ScaledEuclidean,
    Slices,
    register_manifold,
)
from manifoldnet.testing import ManifoldLaws

SHAPE, ROWS = (4, 3), Slices(0)
FLAT, SPHERES, SCALED = Euclidean(), Oblique(retraction="geodesic"), ScaledEuclidean()


def exchanged(value, **methods):
    """The same value with some methods exchanged."""
    kind = type(value)
    other = object.__new__(type(kind.__name__, (kind,), methods))
    vars(other).update(vars(value))
    return other


def wrong(manifold, part=None, **methods):
    """The manifold with some methods exchanged, or with some methods of one part."""
    if part is None:
        return exchanged(manifold, **methods)
    other = exchanged(manifold)
    vars(other)[part] = exchanged(getattr(manifold, part), **methods)
    return other


def unknown(self, x, y):
    """A formula that is not known."""
    raise NotImplementedError("no formula")


@dataclass(frozen=True, init=False)
class Forgetful(Manifold):
    """Its description leaves a field out."""

    retraction: Geodesic

    def __init__(self, retraction=SPHERES.retraction):
        spheres = SPHERES
        super().__init__(
            spheres.slices, spheres.metric, spheres.projection, retraction, spheres.geodesics
        )

    def __repr__(self):
        return "Forgetful()"

    def _fields(self):
        return {}


register_manifold("Forgetful", Forgetful)


def turned(x):
    """Another point of the same sphere."""
    return x.roll(1, 1)


def unit(x):
    return ROWS.normalize(x)


# Law, wrong manifold, and words of the message.
WRONG = [
    # --- values
    (
        "equal_to_its_copies",
        wrong(FLAT, __eq__=object.__eq__, __hash__=object.__hash__),
        "not equal",
    ),
    ("copies_step_alike", wrong(SPHERES, __copy__=lambda self: Oblique()), "retr of its copy"),
    ("frozen", wrong(FLAT, __setattr__=object.__setattr__), "'dim' can be set"),
    ("spec_survives_json", Forgetful(Oblique().retraction), "from_spec(spec) is Forgetful"),
    ("repr_is_the_call_that_makes_it", Forgetful(Oblique().retraction), "not equal to it"),
    (
        "arguments_are_not_changed",
        wrong(FLAT, "retraction", step=lambda self, manifold, x, u: x.add_(u)),
        "retr changes its arguments",
    ),
    (
        "results_have_the_type_of_the_point",
        wrong(FLAT, "metric", component_inner=lambda self, x, u, v: (u * v).double()),
        "component_inner of torch.float32 gives torch.float64",
    ),
    # --- points
    (
        "projection_is_on_the_manifold",
        wrong(SPHERES, "projection", to_set=lambda self, x: 1.1 * unit(x)),
        "violation(projx(z)) is 0.1",
    ),
    (
        "projection_is_idempotent",
        wrong(SPHERES, "projection", to_set=lambda self, x: unit(turned(x))),
        "projx(projx(z)) − projx(z)",
    ),
    (
        "projection_fixes_points",
        wrong(SPHERES, "projection", to_set=lambda self, x: -unit(x)),
        "projx(x) − x, relative, is 2",
    ),
    (
        "points_are_accepted",
        wrong(SPHERES, "projection", violation=lambda self, x: (ROWS.norm(x) - 1.01).abs()),
        "refuses projx(z) in torch.float64: the data is not on",
    ),
    (
        "non_points_are_refused",
        wrong(SPHERES, "projection", violation=lambda self, x: torch.zeros(4, 1)),
        "check_point_on_manifold accepts an entry nan",
    ),
    (
        "random_points_are_points",
        wrong(SPHERES, random=lambda self, *size, **options: torch.randn(*size, **options)),
        "violation(random(…)) in torch.float64",
    ),
    (
        "random_points_repeat",
        wrong(SPHERES, random=lambda self, *size, **_: self.projx(torch.randn(*size))),
        "two points for one seed",
    ),
    (
        "random_tangent_vectors_are_tangent",
        wrong(SPHERES, random_tangent=lambda self, x, generator: x + 0.0),
        "random_tangent is not tangent",
    ),
    (
        "random_points_have_both_signs",
        wrong(
            SPHERES, random=lambda self, *size, **options: SPHERES.random(*size, **options).abs()
        ),
        "12 of 12 entries have one sign in 64 random points",
    ),
    # --- tangent vectors
    (
        "tangent_violation_bounds_the_normal_part",
        wrong(SPHERES, "projection", tangent_violation=lambda self, x, u: torch.zeros(4, 1)),
        "the normal part of z, minus tangent_violation, is",
    ),
    (
        "dimension_is_that_of_tangent_spaces",
        wrong(SPHERES, "projection", codimension=lambda self, shape: 0),
        "dimension is 12, where tangent vectors span 8",
    ),
    (
        "tangent_projection_is_idempotent",
        wrong(
            SPHERES, "projection", to_tangent=lambda self, x, u: u - 1.1 * (x * u).sum(1, True) * x
        ),
        "proju(x, proju(x, z)) − proju(x, z)",
    ),
    (
        "tangent_projection_is_orthogonal",
        # Along the coordinates instead of along the point.
        wrong(
            SPHERES,
            "projection",
            to_tangent=lambda self, x, u: u - (x * u).sum(1, True) / x.sum(1, True),
        ),
        "⟨z − proju(x, z), v⟩",
    ),
    (
        "tangent_projection_fixes_tangent_vectors",
        wrong(FLAT, "projection", to_tangent=lambda self, x, u: u / 2),
        "proju(x, u) − u, relative, is 0.25",
    ),
    (
        "metric_is_symmetric",
        wrong(FLAT, "metric", component_inner=lambda self, x, u, v: u * (v + 0.1 * turned(v))),
        "⟨u, v⟩ − ⟨v, u⟩",
    ),
    (
        "metric_is_bilinear",
        wrong(FLAT, "metric", component_inner=lambda self, x, u, v: (u * v).abs()),
        "⟨cu + v, w⟩ − c⟨u, w⟩ − ⟨v, w⟩",
    ),
    (
        "metric_is_positive_definite",
        wrong(FLAT, "metric", component_inner=lambda self, x, u, v: u * turned(v) + u * v),
        "in one slice",
    ),
    (
        "inner_is_the_sum_of_its_components",
        wrong(
            FLAT,
            inner=lambda self, x, u, v=None, keepdim=False: (u * (u if v is None else v)).mean(),
        ),
        "inner − Σ component_inner",
    ),
    (
        "gradient_represents_the_differential",
        wrong(SCALED, "metric", sharp=lambda self, x, g: g),
        "⟨egrad2rgrad(x, g), v⟩ − g·v",
    ),
    (
        "frame_is_the_root_of_the_metric",
        wrong(SCALED, "metric", frame=lambda self, x: Frame(self.slices.norm(x).square())),
        "(u/q)·(v/q) − ⟨u, v⟩",
    ),
    (
        "gradient_is_tangent",
        wrong(SPHERES, egrad2rgrad=lambda self, x, g: g),
        "proju(x, gradient) − gradient",
    ),
    # --- geodesics
    (
        "geodesic_without_velocity_stays",
        wrong(FLAT, "geodesics", exp=lambda self, x, u: x + u + 1e-6),
        "exp(x, 0) − x",
    ),
    (
        "geodesic_starts_with_its_velocity",
        wrong(FLAT, "geodesics", exp=lambda self, x, u: x + 2 * u),
        "d/dt exp(x, tu) − u at t = 0, relative, is 1",
    ),
    (
        "geodesics_stay_on_the_manifold",
        wrong(SPHERES, "geodesics", exp=lambda self, x, u: x + u),
        "violation(exp(x, u))",
    ),
    (
        "geodesics_have_constant_speed_and_continue_each_other",
        wrong(SPHERES, "geodesics", exp=lambda self, x, u: unit(x + u)),
        "‖γ'(0.6)‖²/‖γ'(0)‖² − 1",
    ),
    (
        "log_inverts_exp",
        wrong(FLAT, "geodesics", log=lambda self, x, y: 1.1 * (y - x)),
        "log(x, exp(x, u)) − u is 0.1",
    ),
    (
        "exp_inverts_log",
        wrong(SPHERES, "geodesics", log=lambda self, x, y: y - x),
        "log(x, y) is not tangent",
    ),
    (
        "distance_is_the_length_of_the_geodesic",
        wrong(SPHERES, "geodesics", component_dist=lambda self, x, y: ROWS.norm(y - x)),
        "dist(x, y)/∫‖γ'‖ dt − 1",
    ),
    (
        "missing_formulas_say_so",
        wrong(FLAT, "geodesics", log=unknown),
        "logmap is not in `lacks` and has no formula",
    ),
    (
        "no_curve_is_shorter_than_the_distance",
        wrong(FLAT, "geodesics", component_dist=lambda self, x, y: (y - x).square()),
        "dist(x, y) − Σ dist(xᵢ, xᵢ₊₁)",
    ),
    (
        "distance_to_itself_is_zero",
        # What acos(⟨x, y⟩) makes of rounding.
        wrong(
            SPHERES,
            "geodesics",
            component_dist=lambda self, x, y: ROWS.inner(x, y).clamp(max=1 - 1e-15).acos(),
        ),
        "dist(x, x) is",
    ),
    (
        "distance_is_symmetric",
        wrong(FLAT, "geodesics", component_dist=lambda self, x, y: (y - x).abs() + 0.1 * (y - x)),
        "dist(x, y) − dist(y, x)",
    ),
    (
        "distance_obeys_the_triangle_inequality",
        wrong(FLAT, "geodesics", component_dist=lambda self, x, y: (y - x).abs() ** 3),
        "dist(x, y) − dist(x, z) − dist(z, y)",
    ),
    (
        "hessian_is_the_second_derivative_along_geodesics",
        # Without the curvature of the sphere.
        wrong(SPHERES, "geodesics", hessian=lambda self, x, g, h, u: SPHERES.proju(x, h)),
        "⟨Hess f[u], u⟩ − d²/dt² f(exp(x, tu)), relative,",
    ),
    # --- transport
    (
        "transport_is_isometric",
        # What geoopt's sphere and pymanopt's do.
        wrong(SPHERES, "geodesics", transport=lambda self, x, y, v: SPHERES.proju(y, v)),
        "the change of an inner product ⟨v, w⟩ by transp(x, y, v)",
    ),
    (
        "transport_back_undoes_transport",
        wrong(FLAT, "geodesics", transport=lambda self, x, y, v: 1.1 * v),
        "transp(y, x, transp(x, y, v)) − v",
    ),
    (
        "transport_follows_the_geodesic",
        wrong(FLAT, "geodesics", transport=lambda self, x, y, v: -v),
        "transp_follow_expmap(x, u, v) − transp(x, y, v), relative, is 2",
    ),
    (
        "transport_is_linear",
        wrong(FLAT, "geodesics", transport=lambda self, x, y, v: v.abs()),
        "transp(a v + b w) − a transp(v) − b transp(w)",
    ),
    (
        "transport_along_a_geodesic_is_isometric",
        wrong(FLAT, "geodesics", exp_transport=lambda self, x, u, v: (x + u, 1.1 * v)),
        "by expmap_transp(x, u, v)",
    ),
    (
        "transport_along_a_geodesic_keeps_its_velocity",
        wrong(FLAT, "geodesics", exp_transport=lambda self, x, u, v: (x + u, -v)),
        "transp_follow_expmap(x, u, u) − d/dt exp(x, tu)",
    ),
    (
        "transport_along_a_geodesic_has_no_torsion",
        wrong(
            FLAT,
            "geodesics",
            exp_transport=lambda self, x, u, v: (x + u, v + 0.1 * torch.linalg.cross(u, v)),
        ),
        "the length of d/dt (T(tu) v − T(tv) u)",
    ),
    (
        "transport_along_a_geodesic_composes",
        wrong(FLAT, "geodesics", exp_transport=lambda self, x, u, v: (x + u, v + u**2 * turned(v))),
        "v in two parts − v in one",
    ),
    # --- retractions
    (
        "retraction_of_zero",
        wrong(FLAT, "retraction", step=lambda self, manifold, x, u: x + u + 1e-6),
        "retr(x, 0) − x",
    ),
    (
        "retraction_starts_with_its_velocity",
        wrong(FLAT, "retraction", step=lambda self, manifold, x, u: x + 2 * u),
        "d/dt retr(x, tu) − u at t = 0, relative, is 1",
    ),
    (
        "retraction_agrees_with_the_geodesic_to_first_order",
        wrong(SPHERES, "retraction", step=lambda self, manifold, x, u: manifold.expmap(x, 1.1 * u)),
        "is O(t^1.00)",
    ),
    (
        "steps_end_on_the_manifold",
        wrong(SPHERES, "retraction", step=lambda self, manifold, x, u: x + u),
        "violation(retr(x, u)) is",
    ),
    (
        "steps_in_single_precision_end_on_the_manifold",
        wrong(
            SPHERES,
            "retraction",
            step=lambda self, manifold, x, u: (
                (1 + 1e9 * torch.finfo(x.dtype).eps ** 2) * unit(x + u)
            ),
        ),
        "violation of retr(x, u) in float32 is",
    ),
    (
        "transport_along_a_step_goes_with_it",
        wrong(
            SPHERES,
            "retraction",
            step_transport=lambda self, manifold, x, u, v: (manifold.retr(x, u), v),
        ),
        "not tangent",
    ),
    (
        "transport_along_a_step_is_linear",
        wrong(FLAT, "retraction", step_transport=lambda self, manifold, x, u, v: (x + u, v.abs())),
        "T(a v + b w) − a T(v) − b T(w)",
    ),
    (
        "transport_along_a_step_is_isometric",
        wrong(FLAT, "retraction", step_transport=lambda self, manifold, x, u, v: (x + u, 1.1 * v)),
        "by transp_follow_retr(x, u, v)",
    ),
]

SIZES = {"size": 1.0, "factor": 3.0, "a": 0.5, "b": -2.0}


def laws_of(wrong):
    radius = math.pi if wrong.slices == ROWS else math.inf
    fields = {"manifold": wrong, "shape": SHAPE, "injectivity": radius, "examples": 2}
    return type("Laws", (ManifoldLaws,), fields)


def check(laws, law):
    """The law at a few seeds and one ordinary size, without hypothesis."""
    test = getattr(laws, f"test_{law}")
    if not hasattr(test, "hypothesis"):
        test(laws())
        return
    inner = test.hypothesis.inner_test
    sizes = {key: SIZES[key] for key in inspect.signature(inner).parameters if key in SIZES}
    for seed in range(3):
        inner(laws(), seed=seed, **sizes)


@pytest.mark.parametrize(("law", "manifold", "words"), WRONG, ids=[law for law, *_ in WRONG])
def test_a_wrong_manifold_is_caught(law, manifold, words):
    torch.manual_seed(0)
    with pytest.raises(AssertionError) as error:
        check(laws_of(manifold), law)
    said = str(error.value)
    assert said.startswith(f"{manifold} with points of shape (4, 3) breaks the law test_{law} (")
    assert words in said


def test_each_law_has_its_wrong_manifold():
    laws = [name for name in dir(ManifoldLaws) if name.startswith("test_")]
    assert laws == sorted(f"test_{law}" for law, *_ in WRONG)


# --- what one wrong manifold for each law does not show -------------------------------------------

RELATIVE = ScaledEuclidean()


def inner(a, b):
    return ROWS.inner(a, b)


@pytest.mark.parametrize(
    ("manifold", "hessian"),
    [
        (FLAT, lambda self, x, g, h, u: 1.01 * h),
        (FLAT, lambda self, x, g, h, u: h + u),
        # Symmetric part right, a turn besides.
        (FLAT, lambda self, x, g, h, u: h + turned(u) - u.roll(-1, 1)),
        (SPHERES, lambda self, x, g, h, u: h - inner(x, g) * u),  # not tangent
        (SPHERES, lambda self, x, g, h, u: SPHERES.proju(x, h + inner(x, g) * u)),
        (RELATIVE, lambda self, x, g, h, u: h),
        (RELATIVE, lambda self, x, g, h, u: RELATIVE.metric.sharp(x, h)),
        (
            RELATIVE,
            # One sign of three.
            lambda self, x, g, h, u: (
                inner(x, x) * h + inner(x, u) * g + inner(x, g) * u - inner(u, g) * x
            ),
        ),
        (RELATIVE, lambda self, x, g, h, u: inner(x, x) * h + 2 * inner(x, u) * g),
    ],
)
def test_every_wrong_hessian_is_caught(manifold, hessian):
    right = laws_of(manifold)
    check(right, "hessian_is_the_second_derivative_along_geodesics")
    with pytest.raises(AssertionError, match="Hess f"):
        check(
            laws_of(wrong(manifold, "geodesics", hessian=hessian)),
            "hessian_is_the_second_derivative_along_geodesics",
        )


def frame_turn(x, u, v):
    """`v` at x ∈ S³, parallel along u, with what is across turned by half the angle."""
    y, w = SPHERES.expmap_transp(x, u, v)
    ahead = SPHERES.expmap_transp(x, u, u)[1]
    angle = ROWS.norm(u)
    along = ahead / angle
    across = w - inner(along, w) * along
    # The vector that completes y, along, across to a right-handed frame of ℝ⁴.
    rows = [[y, along, across], [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]]
    minors = [torch.linalg.det(torch.stack([r[:, kept] for r in rows[0]], 1)) for kept in rows[1]]
    third = torch.stack([(-1) ** i * minor for i, minor in enumerate(minors)], 1)
    return y, w - across + (angle / 2).cos() * across + (angle / 2).sin() * third


def test_a_transport_with_torsion_is_caught_by_one_law_alone():
    """It is isometric, linear, undone on the way back, and carries velocities to velocities."""

    def transport(self, x, y, v):
        return frame_turn(x, SPHERES.logmap(x, y), v)[1]

    torsion = wrong(
        SPHERES,
        "geodesics",
        transport=transport,
        exp_transport=lambda self, x, u, v: frame_turn(x, u, v),
    )
    laws = laws_of(torsion)
    laws.shape = (3, 4)
    caught = []
    for name in (name for name, *_ in WRONG if name.startswith("transport_")):
        if "step" in name:
            continue
        try:
            check(laws, name)
        except AssertionError:
            caught.append(name)
    assert caught == ["transport_along_a_geodesic_has_no_torsion"]


def test_a_manifold_whose_opposite_points_are_none_may_be_one_sided():
    positive = wrong(
        SPHERES,
        "projection",
        to_set=lambda self, x: unit(x).abs(),
        violation=lambda self, x: torch.where((x < 0).any(1, True), 1.0, 0.0),
    )
    check(laws_of(positive), "random_points_have_both_signs")
