"""Numbers have as many digits as their intervals support."""

import math

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cbir.reporting import measurements, numbers
from cbir.reporting.numbers import Estimate, PValue


# Computed by hand with the rule of the Particle Data Group.
@pytest.mark.parametrize(
    ("half", "expected"),
    [
        (0.0354, 3), (0.0356, 2), (0.01, 3), (0.0948, 2), (0.0951, 2), (0.0999, 2), (0.1, 2),
        (0.006, 3), (0.003, 4), (0.00095, 4), (0.4, 1), (3.0, 1), (1e-5, 4), (5.0, 0), (40.0, 0),
    ],
)  # fmt: skip
def test_digits_follow_half_of_the_interval(half, expected):
    assert numbers.decimals(half) == expected


@pytest.mark.parametrize("half", [0.0, 1e-16, math.nan, math.inf, -1.0])
def test_numbers_without_a_width_have_three_digits(half):
    assert numbers.decimals(half) == 3


@given(st.floats(1e-3, 0.5))
def test_rounding_errors_are_small_compared_with_the_interval(half):
    step = 10.0 ** -numbers.decimals(half)
    # From a 35.5th of half the interval to a 3.5th of it.
    assert half / 36 < step < half / 3.5


def test_an_estimate_is_written_with_its_interval_on_one_line():
    assert str(Estimate(0.91234, 0.9061, 0.9188)) == "0.912 [0.906,\u00a00.919]"
    assert str(Estimate(0.4, 0.31, 0.52)) == "0.40 [0.31,\u00a00.52]"
    assert f"{Estimate(0.05, -0.002, 0.09):+}" == "+0.05 [-0.00,\u00a0+0.09]"
    assert f"{-Estimate(0.05, 0.002, 0.09):+}" == "-0.05 [-0.09,\u00a0-0.00]"
    assert str(Estimate(0.5)) == "0.500"
    assert str(Estimate(math.nan, math.nan, math.nan)) == "–"


def test_the_number_of_a_row_is_an_estimate():
    row = pd.DataFrame([{"value": 0.5, "ci_low": 0.25, "ci_high": 0.75}])
    assert measurements.number(row) == Estimate(0.5, 0.25, 0.75)
    assert str(measurements.number(row.iloc[:0])) == "–"
    with pytest.raises(AssertionError, match="more than one number"):
        measurements.number(pd.concat([row, row]))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0496, "0.0496"), (0.04996, "0.04996"), (0.0504, "0.0504"), (0.05, "0.050"),
        (0.0489, "0.049"), (0.0512, "0.051"), (0.2, "0.200"), (1.0, "1.000"), (0.001, "0.001"),
        (0.0009996, "< 0.001"), (1e-9, "< 0.001"), (math.nan, "–"),
    ],
)  # fmt: skip
def test_a_p_value_has_three_digits_or_as_many_as_the_verdict_needs(value, text):
    assert str(PValue(value)) == text


@given(st.floats(0.001, 1) | st.floats(0.0494, 0.0506))
@example(math.nextafter(0.05, 0))
@example(math.nextafter(0.05, 1))
def test_verdict_and_printed_p_value_agree(value):
    printed = float(str(PValue(value)))
    assert (printed < 0.05) == (value < 0.05)
    assert (printed == 0.05) == (value == 0.05)
    assert printed == pytest.approx(value, abs=5e-4)
