"""The search finds formulas that it has words for, says how well it does where it has none, and reads no test data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import sympy
import torch
from torch import nn

from openwork.errors import UsageError
from openwork.explain.programs.symbolic_formula import formulas_of, formulas_of_model, length_of, r2
from openwork.tasks.symbolic import FORMULAS, symbolic_data

NAMES = ("x1", "x2", "x3")
BOX = np.array([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
Function = Callable[[np.ndarray], np.ndarray]


def found(f: Function, seed: int = 0) -> tuple[str, float]:
    """The formula of a function of three inputs, and its R^2 on points that the search has not seen."""
    [(text, _, value)] = formulas_of(lambda x: f(x)[:, None], BOX, NAMES, seed=seed)
    x = np.random.default_rng(99).random((500, 3)) * 2 - 1
    names = dict(zip(NAMES, x.T, strict=True))
    said = eval(
        text, {"sin": np.sin, "cos": np.cos, "exp": np.exp, "sqrt": np.sqrt, "pi": np.pi, "tanh": np.tanh}, names
    )
    assert np.allclose(np.broadcast_to(said, 500), value(x), atol=1e-9), "the text is the function"
    return text, r2(value(x), f(x))


@pytest.mark.parametrize(
    "text",
    [
        "2", "5*x1/2 - 0.3", "x1**2 + x3**3", "x1*x2 + x3**2", "exp(x1 + x2)", "x1*sin(3*x2)", "1/(x1*x2 + 2)",
        "sqrt(x1**2 + x2**2)", "(x1 + 2*x2)**2", "cos(2*x3) + x1",
    ],
)  # fmt: skip
def test_formulas_that_the_search_has_words_for(text: str) -> None:
    expr = sympy.sympify(text)
    f = sympy.lambdify([*sympy.symbols(NAMES)], expr, "numpy")
    said, share = found(lambda x: np.broadcast_to(np.asarray(f(*x.T), dtype=float), (len(x),)))
    assert sympy.simplify(sympy.sympify(said) - expr) == 0, said
    assert np.isnan(share) or share > 1 - 1e-9


def test_what_has_no_formula_is_told_by_its_r2() -> None:
    """A function far from every curve of the library: the figure is low, and it is that of new points."""
    text, share = found(lambda x: np.sign(np.sin(17 * x[:, 0]) * np.sin(23 * x[:, 1])))
    assert share < 0.2, text


def test_noise_is_not_explained() -> None:
    _, share = found(lambda x: np.modf(np.abs(np.sin(1e5 * x[:, 0]) * 1e4))[0])
    assert share < 0.05


def test_same_seed_same_formula() -> None:
    f = lambda x: np.maximum(x[:, 0], x[:, 1])  # noqa: E731
    assert found(f) == found(f)


def test_a_price_is_a_price() -> None:
    """A small term is written where symbols are cheap, and left out where they are dear."""
    f = lambda x: (x[:, 0] + 0.05 * x[:, 1])[:, None]  # noqa: E731
    [(cheap, long, _)] = formulas_of(f, BOX, NAMES, price=1e-5)
    [(dear, short, _)] = formulas_of(f, BOX, NAMES, price=1e-2)
    assert "x2" in cheap and dear == "x1" and short < long


@pytest.mark.parametrize("name", FORMULAS)
def test_true_formulas_from_a_model_that_computes_them(name: str) -> None:
    data = symbolic_data(name)

    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return data.formula.value(x)

    names = [f"x{i + 1}" for i in range(data.formula.inputs)]
    accounts = formulas_of_model(Exact(), data, names)
    assert len(accounts) == data.formula.outputs
    for a in accounts:
        assert a.r2_model["verify"] > 0.999999 and a.r2_truth["verify"] > 0.999999 and a.length <= 12, a.text
        assert set(a.model_truth) == {"discover", "verify"}


def test_the_verify_points_do_not_enter_the_choice() -> None:
    """With other verify points the formula is the same; a model that is only wrong there is caught by R^2."""
    data = symbolic_data("feature_sharing")
    [((held,), _)] = data.held_out("verify")

    class Spoiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            there = torch.cdist(x.float(), held) < 1e-6
            return data.formula.value(x) + 5.0 * there.any(1, keepdim=True) * torch.sign(x[:, :1])

    first = formulas_of_model(Spoiled(), data, ("x1", "x2", "x3"))[0]
    assert first.text == "x1**2"
    assert first.r2_model["discover"] > 0.999 and first.r2_model["verify"] < 0.5


def test_lengths_count_symbols() -> None:
    x, y, c = sympy.symbols("x y c")
    assert length_of(x + y) == 3 and length_of(x - y) == 3
    assert length_of(2 * x) == 3 and length_of(-x) == 1
    assert length_of(sympy.sin(sympy.pi * x)) == 4
    assert length_of(c * x, [c]) == 6
    assert length_of(sympy.sqrt(x)) == 2 and length_of(sympy.Float(0.125)) == 3


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(UsageError, match="3 inputs, but 2 names"):
        formulas_of(lambda x: x, BOX, ("a", "b"))
    with pytest.raises(UsageError, match="no finite value"):
        formulas_of(lambda x: np.where(x > 0, x, np.inf), BOX, NAMES)
