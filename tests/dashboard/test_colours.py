"""Colours of tenants can be told apart and seen, by colour-blind people too, in both themes.

Colour blindness is simulated as by Machado, Oliveira and Fernandes (2009), severity 1; distances
are Euclidean in OKLab (Ottosson, 2020), where black and white are 1 apart.
"""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest

STYLE = (Path(__file__).parents[2] / "web/src/app.css").read_text()

Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]

EYES: dict[str, Matrix] = {
    "all three": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "no red": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "no green": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "no blue": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
TO_LMS: Matrix = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
TO_LAB: Matrix = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


def times(matrix: Matrix, vector: Vector) -> Vector:
    x, y, z = (sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix)
    return x, y, z


def linear(colour: str) -> Vector:
    """Light of `#rrggbb`, each part from 0 to 1."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return red, green, blue


def seen(colour: str, eye: Matrix) -> Vector:
    """Where it lies in OKLab for such an eye."""
    x, y, z = (math.cbrt(min(1.0, max(0.0, c))) for c in times(TO_LMS, times(eye, linear(colour))))
    return times(TO_LAB, (x, y, z))


def contrast(one: str, other: str) -> float:
    """As WCAG defines it."""
    lights = (
        sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear(c), strict=True))
        for c in (one, other)
    )
    low, high = sorted(lights)
    return (high + 0.05) / (low + 0.05)


def variable(name: str, theme: int) -> str:
    [pair] = re.findall(rf"--{name}: light-dark\((#\w{{6}}), (#\w{{6}})\);", STYLE)
    chosen: str = pair[theme]
    return chosen


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
class TestPalette:
    @pytest.mark.parametrize("eye", list(EYES))
    def test_any_two_differ(self, theme: int, eye: str) -> None:
        colours = [variable(f"h{i}", theme) for i in range(8)]
        near, *pair = min(
            (math.dist(seen(a, EYES[eye]), seen(b, EYES[eye])), a, b)
            for a, b in itertools.combinations(colours, 2)
        )
        assert near > 0.1, pair

    def test_each_stands_out_from_what_is_behind(self, theme: int) -> None:
        panel = variable("panel", theme)
        for i in range(8):
            # What WCAG asks of parts of pictures.
            assert contrast(variable(f"h{i}", theme), panel) >= 3, i
