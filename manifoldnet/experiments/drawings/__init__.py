"""The documentation's pictures, each drawn by the library that it explains.

    sphere      a tangent step on the sphere, by both retractions
    cylinder    the scaled metric: spirals in the plane of a filter are straight on a cylinder
    paths       one loss, two lengths of the same filter: which optimizer sees the difference?
    verdicts    the table of symmetries and updates as a picture

    python -m manifoldnet.experiments.drawings --out docs/pictures

Each is a function that takes a `Palette` and gives a figure; there is one file for light pages and
one for dark ones.
"""
