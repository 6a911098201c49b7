"""From which reuse ratio on: known answers from numbers that are made up."""

from __future__ import annotations

import pytest
from serving.verdict import Faster, Kind, verdict

RATIOS = (0.0, 0.1, 0.3, 0.5, 0.9, 1.0)


def around(value: float, width: float = 0.01) -> list[float]:
    """Some samples, the median of which is ``value``."""
    return [value * (1 + width * step) for step in (-1, -0.5, 0, 0.5, 1)]


def line(at_none: float, at_all: float, width: float = 0.01) -> dict[float, list[float]]:
    """Seconds that fall, or rise, in a straight line with the ratio."""
    return {ratio: around(at_none + ratio * (at_all - at_none), width) for ratio in RATIOS}


FLAT = line(1.0, 1.0)


@pytest.mark.parametrize("crossing", [0.05, 0.21, 0.4, 0.75, 0.94])
def test_finds_where_two_lines_cross(crossing: float) -> None:
    slope = -0.9
    found = verdict(line(1 - slope * crossing, 1 + slope * (1 - crossing)), FLAT)

    assert found.kind is Kind.FROM
    assert found.ratio == pytest.approx(crossing)
    assert found.low is not None and found.high is not None
    assert found.low < crossing < found.high
    assert {found.low, found.high} < set(RATIOS)
    assert f"from about {crossing * 100:.0f} % on" in str(found)


def test_a_crossing_is_interpolated_between_its_neighbours() -> None:
    mine = {0.0: around(1.1), 0.1: around(1.1), 0.3: around(0.7), 1.0: around(0.1)}
    found = verdict(mine, FLAT)

    # 0.1 too slow by 0.1, 0.3 faster by 0.3: a quarter of the way.
    assert found.ratio == pytest.approx(0.15)
    assert (found.low, found.high) == (0.1, 0.3)


def test_always() -> None:
    found = verdict(line(0.9, 0.1), FLAT)

    assert found.kind is Kind.ALWAYS
    assert found.ratio is None
    assert (
        str(found)
        == "at every ratio that was measured (measured: 0 %, 10 %, 30 %, 50 %, 90 %, 100 %)"
    )


def test_never() -> None:
    found = verdict(line(1.1, 10), FLAT)

    assert found.kind is Kind.NEVER
    assert str(found).startswith("at no ratio that was measured (slower at 0 %, 10 %")


def test_never_even_if_it_comes_near() -> None:
    found = verdict(line(2.0, 1.0), FLAT)

    assert found.kind is Kind.NEVER
    assert str(found).endswith("within the spread at 100 %)")


def test_noise_larger_than_the_difference_is_no_verdict() -> None:
    found = verdict(line(1.02, 0.98, width=0.2), line(1.0, 1.0, width=0.2))

    assert found.kind is Kind.UNCLEAR
    assert "cannot be told (within the spread at 0 %, 10 %" in str(found)


def test_noise_near_the_crossing_widens_what_is_said_about_it() -> None:
    mine = line(1.2, 0.2)
    mine[0.3] = around(0.9, width=0.3)
    found = verdict(mine, FLAT)

    assert found.kind is Kind.FROM
    assert (found.low, found.high) == (0.1, 0.5)
    assert found.points[0.3] is Faster.UNCLEAR
    assert found.ratio == pytest.approx(0.1 + 0.2 * 0.1 / 0.2)
    assert "slower at 0 %, 10 %; within the spread at 30 %; faster at 50 %" in str(found)


def test_nowhere_slower_is_not_always_faster() -> None:
    found = verdict(line(1.0, 0.2), FLAT)

    assert found.kind is Kind.FROM
    assert found.ratio is None and found.low is None and found.high == 0.1
    assert str(found).startswith("from 10 % on for certain; below it is not slower")


def test_faster_at_some_ratio_but_not_above_is_no_verdict() -> None:
    mine = line(1.2, 0.2)
    mine[1.0] = around(3.0)
    assert verdict(mine, FLAT).kind is Kind.UNCLEAR

    mine = line(0.9, 0.2)
    mine[0.3] = around(1.5)
    found = verdict(mine, FLAT)
    assert found.kind is Kind.UNCLEAR
    assert "faster at 0 %, 10 %; slower at 30 %; faster at 50 %" in str(found)


def test_recompute_that_is_not_flat_is_compared_ratio_by_ratio() -> None:
    recompute = line(1.0, 2.0)
    assert verdict({r: around(1.5) for r in RATIOS}, recompute).ratio == pytest.approx(0.5)


def test_ratios_that_one_side_lacks_do_not_count() -> None:
    mine = line(1.2, 0.2) | {0.2: around(0.01), 0.9: []}
    recompute = FLAT | {0.7: around(100)}
    assert list(verdict(mine, recompute).points) == [0.0, 0.1, 0.3, 0.5, 1.0]


def test_without_recompute_nothing_can_be_told() -> None:
    found = verdict(line(1.2, 0.2), {})

    assert found.kind is Kind.UNCLEAR
    assert "both were measured" in str(found)


def test_one_sample_each_is_said() -> None:
    mine, others = ({r: times[:1] for r, times in one.items()} for one in (line(1.2, 0.2), FLAT))
    assert "no spread is known of 1 samples each" in str(verdict(mine, others))
    assert "no spread" not in str(verdict(line(1.2, 0.2), FLAT))
