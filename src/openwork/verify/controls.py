"""Controls: does the same search also find a circuit where there is nothing to find?

A search that is free enough explains anything. So it is run again, with the same settings and budget, on labels that
the inputs do not determine (nonsense), on labels that say the opposite of what the model computes (swapped) and on a
model with random weights, and the sizes are set beside each other.

Knows the results of both searches as plain numbers. Does not run them, and does not know the method.
"""

from __future__ import annotations

import math

from openwork import stats
from openwork.circuit import FAILS, HOLDS, UNDECIDED, Evidence
from openwork.errors import unknown

LARGER = 2.0  # times as many edges is clearly larger
AT_CHANCE = 0.9  # share of the chance loss from which a held-out loss counts as chance

FOUND, INFEASIBLE = "ok", "infeasible"

# claim -> what the search was run on, and whether a held-out loss at chance counts for the circuit. On shuffled labels
# it does not: nothing can predict them, so it would hold always.
CONTROLS: dict[str, tuple[str, bool]] = {
    "nonsense_control": ("shuffled labels", False),
    "swapped_control": ("swapped labels", True),
    "random_weights_control": ("a model with random weights", True),
}


def control(
    claim: str,
    real_edges: int | None,
    real_loss: float | None,
    status: str,
    edges: int | None,
    loss: float | None,
    *,
    n: int,
    split: str = "verify",
    chance: float = math.log(2),
    seed: int = 0,
    seconds: float = 0.0,
) -> Evidence:
    """The result of a search that should fail, beside the one that should not. One rule for all of CONTROLS.

    real_edges, real_loss  edges of the real circuit and its held-out loss in nats; None where none was found
    status, edges, loss    "ok" or "infeasible" of the control's search (anything else: it was not run), the edges of
                           its circuit, and that circuit's held-out loss in nats on the control's own labels
    n                      held-out examples behind the losses
    chance                 loss of a guess, nats: ln(number of answers)

    holds            the search on the control is infeasible; or its circuit has at least twice the edges of the real
                     one; or (not for shuffled labels) its held-out loss is at least 0.9 of the chance loss
    fails            none of these: the search finds about as small and as good a circuit where there is nothing to find
    too little data  no real circuit to compare with, or the control was not run
    value            edges of the control circuit per edge of the real one (nan where either was not found)

    One search is one draw: there is no p and no interval.
    """
    if claim not in CONTROLS:
        raise unknown("control", claim, CONTROLS)
    where, chance_counts = CONTROLS[claim]
    found = status == FOUND and edges is not None and loss is not None
    ratio = edges / real_edges if found and edges is not None and real_edges else float("nan")
    reasons = []
    if real_edges is not None and status == INFEASIBLE:
        reasons.append("infeasible")
    if real_edges is not None and found and loss is not None and edges is not None:
        if edges >= LARGER * real_edges and edges > real_edges:
            reasons.append("larger circuit")
        if chance_counts and loss >= AT_CHANCE * chance:
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
