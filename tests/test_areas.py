"""MIB's areas against the anchors that MIB gives, and by hand."""

import numpy as np
import pytest

from circuitsieve.evaluation.areas import SIZES, cmd, cpr


def test_anchors():
    late = np.array([0.0] * 9 + [1.0])  # nothing up to half of the units
    assert cpr(late) == pytest.approx(0.25)
    assert cmd(late) == pytest.approx(0.749)
    assert cpr(np.ones(10)) == pytest.approx(0.999)
    assert cmd(np.ones(10)) == 0.0


def test_overshooting_raises_one_and_not_the_other():
    over = np.full(10, 1.2)
    assert cpr(over) == pytest.approx(1.2 * 0.999)
    assert cmd(over) == pytest.approx(0.2 * 0.999)


def test_areas_by_hand():
    f = [0.0, 0.1, 0.3, 0.2, 0.6, 0.9, 1.1, 0.8, 1.05, 1.0]
    by_hand = sum((b + a) / 2 * (high - low) for a, b, low, high in zip(f, f[1:], SIZES, SIZES[1:], strict=False))
    assert cpr(np.array(f)) == pytest.approx(by_hand)
    missed = [abs(1 - value) for value in f]
    by_hand = sum(
        (b + a) / 2 * (high - low) for a, b, low, high in zip(missed, missed[1:], SIZES, SIZES[1:], strict=False)
    )
    assert cmd(np.array(f)) == pytest.approx(by_hand)
