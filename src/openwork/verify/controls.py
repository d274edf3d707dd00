"""Controls: does the same search also find a circuit where there is nothing to find?

A search that is free enough explains anything. So it is run again, with the same settings and budget, on shuffled
labels (nonsense control) and on a model with random weights (random-weights control), and the sizes are set beside each
other. Knows the results of both searches as plain numbers. Does not run them, and does not know the method.
"""

from __future__ import annotations

import math

from openwork import stats
from openwork.circuit import FAILS, HOLDS, UNDECIDED, Evidence

LARGER = 2.0  # times as many edges is clearly larger
AT_CHANCE = 0.9  # share of the chance loss from which a held-out loss counts as chance

FOUND, INFEASIBLE = "ok", "infeasible"


def nonsense_control(
    real_edges: int | None,
    real_loss: float,
    control_status: str,
    control_edges: int | None,
    control_loss: float | None,
    *,
    n: int,
    split: str = "verify",
    chance: float = math.log(2),
    seed: int = 0,
    seconds: float = 0.0,
) -> Evidence:
    """The same search on shuffled labels (see `_control` for the rule).

    real_edges      edges of the real circuit; None where none was found
    real_loss       its held-out loss, nats
    control_status  "ok" or "infeasible" of the search on shuffled labels; anything else: it was not run
    control_edges   edges of the nonsense circuit, where one was found
    control_loss    its loss on held-out examples with shuffled labels, nats
    n               held-out examples behind the losses
    chance          loss of a guess, nats: ln(number of answers)

    Held-out labels that are shuffled cannot be predicted, so the third way to hold says only that the held-out check
    tells nonsense from sense; a small nonsense circuit still says that the search can fit noise. Read the sizes.
    """
    return _control(
        "nonsense_control", "shuffled labels", real_edges, real_loss, control_status, control_edges, control_loss,
        n=n, split=split, chance=chance, seed=seed, seconds=seconds,
    )  # fmt: skip


def random_weights_control(
    real_edges: int | None,
    real_loss: float,
    control_status: str,
    control_edges: int | None,
    control_loss: float | None,
    *,
    n: int,
    split: str = "verify",
    chance: float = math.log(2),
    seed: int = 0,
    seconds: float = 0.0,
) -> Evidence:
    """The same search on a model of the same shape and density whose weights are random (see `_control` for the rule).

    Arguments as in `nonsense_control`; here `control_loss` is on the real labels of the held-out examples.
    """
    return _control(
        "random_weights_control", "a model with random weights", real_edges, real_loss, control_status, control_edges,
        control_loss, n=n, split=split, chance=chance, seed=seed, seconds=seconds,
    )  # fmt: skip


def _control(
    claim: str,
    where: str,
    real_edges: int | None,
    real_loss: float,
    status: str,
    edges: int | None,
    loss: float | None,
    *,
    n: int,
    split: str,
    chance: float,
    seed: int,
    seconds: float,
) -> Evidence:
    """One rule for both controls.

    holds            the search on the control is infeasible; or its circuit has at least twice the edges of the real
                     one; or its held-out loss is at least 0.9 of the chance loss
    fails            none of these: the search finds about as small and as good a circuit where there is nothing to find
    too little data  no real circuit to compare with, or the control was not run
    value            edges of the control circuit per edge of the real one (nan where either was not found)

    One search is one draw: there is no p and no interval.
    """
    found = status == FOUND and edges is not None and loss is not None
    ratio = edges / real_edges if found and edges is not None and real_edges else float("nan")
    reasons = []
    if real_edges is not None and status == INFEASIBLE:
        reasons.append("infeasible")
    if real_edges is not None and found and loss is not None and edges is not None:
        if edges >= LARGER * real_edges and edges > real_edges:
            reasons.append("larger circuit")
        if loss >= AT_CHANCE * chance:
            reasons.append("held-out loss at chance")
    decided = real_edges is not None and (found or status == INFEASIBLE)
    verdict = UNDECIDED if not decided else HOLDS if reasons else FAILS
    if real_edges is None:
        sentence = f"No circuit was found for the task, so there is nothing to set beside {where}."
    elif not decided:
        sentence = f"The search on {where} was not run, so it says nothing about the circuit of {real_edges} edges."
    elif status == INFEASIBLE:
        sentence = (
            f"The same search finds no circuit on {where}; on the task it finds {real_edges} edges with a held-out "
            f"loss of {real_loss:.3f} nats."
        )
    else:
        sentence = (
            f"The same search finds {edges} edges on {where} with a held-out loss of {loss:.3f} nats (chance "
            f"{chance:.3f}), beside {real_edges} edges and {real_loss:.3f} nats on the task."
        )
    return Evidence(
        claim=claim,
        verdict=verdict,
        sentence=sentence,
        value=ratio,
        unit="edges per edge of the real circuit",
        interval=stats.NO_INTERVAL,
        null=f"the same search on {where}",
        null_value=1.0,
        p=float("nan"),
        n=n,
        split=split,
        seed=seed,
        seconds=seconds,
        details={
            "real_edges": real_edges,
            "real_loss": real_loss,
            "control_status": status,
            "control_edges": edges,
            "control_loss": loss,
            "chance_loss": chance,
            "reasons": reasons,
        },
    )
