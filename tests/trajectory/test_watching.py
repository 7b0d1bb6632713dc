"""What a trajectory matcher says of a run that leads nowhere, and that it keeps quiet of one that does not."""

from __future__ import annotations

import pytest

from ddbench.trajectory.watching import CLOSES, early_loss, stuck


def rows(losses, starts=None):
    starts = [0.0] * len(losses) if starts is None else starts
    return [{"loss": loss, "start": start, "lr": 0.03} for loss, start in zip(losses, starts, strict=True)]


def test_a_loss_that_stays_near_one_is_told_with_the_numbers_that_decide_it():
    """As measured on 45,000 images with experts that go 42 in a segment: 0.90 to 0.99 from beginning to end."""
    text = stuck(rows([0.97, 0.93, 0.95, 0.92] * 12), 42.2, 0.6)
    assert text
    assert "closes hardly any of the distance: after 48 iterations" in text
    assert "early segments is 0.94" in text
    assert "is 42.2 long (steps x lr), a student goes 0.6" in text
    assert "matcher.lr_init=auto" in text
    assert "matcher.span" in text


def test_a_loss_above_one_asks_for_smaller_student_steps():
    text = stuck(rows([1.3] * 20), 3.5, 4.0)
    assert text
    assert "moves away from where its expert goes" in text
    assert "a smaller matcher.lr_init or fewer matcher.syn_steps" in text


@pytest.mark.parametrize(
    "losses", [[1.1, 0.96, 0.85, 0.8, 0.78, 0.74, 0.72, 0.7] * 6, [CLOSES] * 50, [2.5, 1.1] + [0.8] * 48]
)
def test_a_loss_that_comes_down_is_nobodys_business(losses):
    assert stuck(rows(losses), 3.5, 0.6) is None


def test_late_segments_may_stand_near_one_where_early_ones_are_followed():
    """As measured on MNIST with starts below 16, in a run that is good."""
    starts = [float(k % 16) for k in range(64)]
    good = [0.6 if start < 4 else 0.97 for start in starts]
    assert stuck(rows(good, starts), 3.5, 0.6) is None
    assert early_loss(rows(good, starts)) == pytest.approx(0.6)
    assert stuck(rows([0.97] * 64, starts), 3.5, 0.6)


def test_the_mean_is_that_of_the_last_half_of_early_segments():
    losses, starts = [2.0, 9.0, 1.0, 9.0, 0.5, 9.0, 0.3, 0.1, 9.0, 0.2], [0, 8, 1, 7, 2, 8, 0, 1, 6, 2]
    early = [2.0, 1.0, 0.5, 0.3, 0.1, 0.2]
    assert early_loss(rows(losses, [float(s) for s in starts])) == pytest.approx(sum(early[3:]) / 3)


@pytest.mark.parametrize("known", [[], [{"lr": 0.1}], rows([0.99, 0.99])])
def test_of_too_few_losses_nothing_is_said(known):
    assert early_loss(known) is None
    assert stuck(known, 1.0, 1.0) is None


def test_rows_that_do_not_tell_where_a_segment_begins_all_count():
    assert early_loss([{"loss": loss} for loss in (1.0, 1.0, 1.0, 0.5, 0.5, 0.5)]) == pytest.approx(0.5)
