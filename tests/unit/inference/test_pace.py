"""What a model may take so that it keeps up with its cameras."""

import pytest

from skerry.inference.pace import Pace


def _paced(*models: tuple[float, float]) -> Pace:
    """Of each model, frames a second and milliseconds a frame, for four seconds."""
    pace = Pace()
    for n, (fps, ms) in enumerate(models):
        for k in range(round(4 * fps)):
            pace.came(n, k / fps)
            pace.took(n, ms)
    return pace


def test_a_model_may_take_the_time_between_two_frames():
    assert _paced((20, 10)).limit_ms(0, 4.0) == pytest.approx(47.5)


def test_what_other_models_take_is_not_its_own():
    assert _paced((20, 10), (10, 30)).limit_ms(0, 4.0) == pytest.approx(32.5)


def test_where_the_model_that_serves_is_too_slow_already_nothing_is_asked():
    assert _paced((20, 60)).limit_ms(0, 4.0) is None
    assert _paced((20, 10), (20, 40)).limit_ms(0, 4.0) is None


def test_nothing_is_asked_before_enough_is_known():
    assert Pace().limit_ms(0, 0.0) is None
    assert _paced((2, 10)).limit_ms(0, 4.0) is None
    assert _paced((20, 10)).limit_ms(1, 4.0) is None
    pace = _paced((20, 10))
    pace.changed(0)
    assert pace.limit_ms(0, 4.0) is None


def test_what_is_no_more_than_noise_is_allowed():
    assert _paced((20, 46)).limit_ms(0, 4.0) == pytest.approx(46 * 3)


def test_best_is_held_against_best():
    pace = _paced((20, 10))
    for n in range(101):
        pace.took(0, 20 if n % 3 else 5)  # much of the time taken by others: a median of 20, a best of 5
    assert pace.limit_ms(0, 4.0) == pytest.approx(5 * 3)


def test_frames_of_long_ago_do_not_count():
    assert _paced((20, 10)).limit_ms(0, 60.0) is None
