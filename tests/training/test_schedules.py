"""Schedules of the learning rate equal their formulas."""

import math

import pytest

from fflm.training.schedules import rate_at
from fflm.training.settings import TrainingSettings


def test_constant_and_plateau_rates_do_not_depend_on_step():
    for schedule in ("constant", "plateau"):
        assert [rate_at(TrainingSettings(schedule=schedule, rate=0.5), step, 10) for step in (0, 9)] == [0.5, 0.5]


def test_inverse_schedule_equals_formula_of_bengio():
    settings = TrainingSettings(schedule="inverse", rate=1e-3, decay=1e-8, batch_size=100)
    assert rate_at(settings, 0, 10) == 1e-3
    assert rate_at(settings, 10**6, 10**7) == pytest.approx(1e-3 / (1 + 1e-8 * 10**8))


def test_cosine_schedule_warms_up_then_falls_to_zero():
    settings = TrainingSettings(schedule="cosine", rate=2.0, warmup=0.2)
    rates = [rate_at(settings, step, 100) for step in range(100)]
    assert rates[:20] == pytest.approx([2.0 * (step + 1) / 20 for step in range(20)])
    assert rates[19:] == pytest.approx([1 + math.cos(math.pi * step / 80) for step in range(81)])
    assert rates[-1] == pytest.approx(0, abs=1e-15)


def test_cosine_schedule_without_warmup_starts_at_full_rate():
    settings = TrainingSettings(schedule="cosine", rate=2.0, warmup=0.0)
    assert rate_at(settings, 0, 1000) == pytest.approx(2.0, rel=1e-5)
    assert rate_at(settings, 0, 1) == pytest.approx(0, abs=1e-15)
