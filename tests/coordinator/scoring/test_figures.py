"""Figures and their standard errors, against what they should be."""

import math
import statistics

import pytest

from coordinator.scoring.figures import Figure, exponential, macro, mean, ratio


def test_a_mean_has_the_samples_standard_error() -> None:
    values = [0.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    found = mean(values)
    assert found.value == pytest.approx(4 / 6)
    assert found.error == pytest.approx(statistics.stdev(values) / math.sqrt(6))


def test_a_ratio_of_equal_weights_is_the_mean_of_the_quotients() -> None:
    values = [0.5, 0.25, 1.0, 0.75]
    found, plain = ratio([4 * v for v in values], [4] * 4), mean(values)
    assert (found.value, found.error) == pytest.approx((plain.value, plain.error))


def test_a_ratio_weighs_examples_by_their_tokens() -> None:
    assert ratio([1.0, 9.0], [1, 3]).value == pytest.approx(10 / 4)


def test_the_error_of_a_ratio_is_what_repeated_draws_show() -> None:
    import random

    draw = random.Random(5)

    def sample() -> tuple[list[float], list[float]]:
        weights = [float(draw.randint(1, 9)) for _ in range(60)]
        return [w * draw.gauss(2.0, 0.5) for w in weights], weights

    found = [ratio(*sample()) for _ in range(400)]
    spread = statistics.stdev(figure.value for figure in found)
    assert statistics.mean(figure.error for figure in found) == pytest.approx(spread, rel=0.15)


def test_a_single_example_has_no_error() -> None:
    assert math.isnan(mean([1.0]).error) and math.isnan(ratio([1.0], [2]).error)


def test_perplexity_follows_from_the_loss() -> None:
    assert exponential(Figure(1.0, 0.1)).value == pytest.approx(math.e)
    assert exponential(Figure(1.0, 0.1)).error == pytest.approx(0.1 * math.e)
    assert exponential(Figure(1000.0, 0.1)).value == math.inf


def test_parts_count_the_same_in_a_macro_mean() -> None:
    found = macro([Figure(0.2, 0.03), Figure(0.6, 0.04)])
    assert (found.value, found.error) == pytest.approx((0.4, 0.025))
