"""The ranges that options of several algorithms share; what lies outside is an InputError that names the option."""

from __future__ import annotations

import math

from ilql.types import InputError


def share(option: str, value: float) -> None:
    """A number in [0, 1]."""
    if not 0 <= value <= 1:
        raise InputError(f"{option} is {value}, but must be in [0, 1]")


def not_negative(option: str, value: float) -> None:
    """A finite number of at least 0."""
    if not 0 <= value < math.inf:
        raise InputError(f"{option} is {value}, but must be 0 or more")


def positive(option: str, value: float) -> None:
    """A finite number above 0."""
    if not 0 < value < math.inf:
        raise InputError(f"{option} is {value}, but must be above 0")


def expectile(option: str, value: float) -> None:
    """A number in (0, 1]."""
    if not 0 < value <= 1:
        raise InputError(f"{option} is {value}, but must be in (0, 1]")


def finite(option: str, value: float) -> None:
    """Any finite number."""
    if not math.isfinite(value):
        raise InputError(f"{option} is {value}, but must be a finite number")


def calibration(section: str, calibrated: bool, weight: float) -> None:
    """A penalty to calibrate."""
    if calibrated and not weight:
        raise InputError(
            f"{section}.calibrated is true, but {section}.cql_weight is 0: there is no penalty to calibrate"
        )
