"""The rules that decide whether a result is right must themselves be able to say no."""

import pytest
import torch
from tolerance import assert_same_formula, assert_within_budget, relative_error

EXACT = torch.linspace(1, 2, 64, dtype=torch.float64)


def test_budget_admits_the_plain_error_and_half_as_much_again() -> None:
    eager = EXACT * (1 + 1e-3)
    assert_within_budget("x", EXACT * (1 + 1.4e-3), EXACT, eager)
    with pytest.raises(AssertionError, match=r"x: relative error 0\.0016"):
        assert_within_budget("x", EXACT * (1 + 1.6e-3), EXACT, eager)


def test_budget_of_an_exact_composition_is_one_float32_rounding() -> None:
    assert_within_budget("x", EXACT * (1 + 0.9e-7), EXACT, EXACT)
    with pytest.raises(AssertionError, match="relative error"):
        assert_within_budget("x", EXACT * (1 + 1.1e-7), EXACT, EXACT)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_element_is_never_within_budget(poison: float) -> None:
    bad = EXACT.clone()
    bad[3] = poison
    assert relative_error(bad, EXACT) == float("inf")
    with pytest.raises(AssertionError):
        assert_within_budget("x", bad, EXACT, EXACT)
    with pytest.raises(AssertionError):
        assert_same_formula("x", bad, EXACT, 10**6)


def test_infinities_must_be_the_same_ones() -> None:
    exact = EXACT.clone()
    exact[5] = -float("inf")
    assert relative_error(exact.clone(), exact) == 0
    assert relative_error(EXACT, exact) == float("inf")
    assert relative_error(exact.abs(), exact) == float("inf")


def test_a_result_that_should_vanish_is_measured_absolutely() -> None:
    zero = torch.zeros(4, dtype=torch.float64)
    assert relative_error(torch.full((4,), 0.5), zero) == 1
    assert relative_error(zero.clone(), zero) == 0


def test_an_exact_result_with_nan_and_a_wrong_shape_are_errors() -> None:
    with pytest.raises(AssertionError, match="NaN"):
        relative_error(EXACT, EXACT * float("nan"))
    with pytest.raises(AssertionError, match="shapes differ"):
        relative_error(EXACT[None], EXACT)


def test_same_formula_grows_with_the_number_of_terms_and_with_eps() -> None:
    off = EXACT * (1 + 1e-13)
    assert_same_formula("x", off, EXACT, 100)
    with pytest.raises(AssertionError, match="relative error"):
        assert_same_formula("x", off, EXACT, 4)
    with pytest.raises(AssertionError, match="float32"):
        assert_same_formula("x", EXACT.float(), EXACT, 4)


def test_empty_results_are_equal() -> None:
    assert relative_error(torch.empty(0, 3), torch.empty(0, 3)) == 0
