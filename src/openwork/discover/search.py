"""What a method of discovery is asked and what it answers: one search, and the decision at a target loss.

A method is handed a `Search` and answers with a ranking (`Scores`), a decision (`Circuit`), or, where it judges its own
steps, a whole `Discovery`. A ranking is decided here: the fewest top-ranked nodes or edges that meet the target. A
user's own method is any callable `(run, split) -> Scores | Circuit`.

Examples are halved: a method learns on one half, and its result must meet the target on the other half and on both
together. Knows a patched run and one split's loss. Does not know the split that will judge the circuit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from openwork.circuit import Circuit, Scores
from openwork.errors import UsageError
from openwork.patched_run import PatchedRun
from openwork.tasks.task import Split

Progress = Callable[[int, int], None]
MetricName = Literal["loss", "logit_difference", "probability_difference", "kl"]  # of tasks.metrics.METRICS


class SearchSettings(BaseModel):
    """What every method is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: float = Field(0.15, gt=0, description="task loss in nats per example that the circuit must reach")
    control: bool = Field(
        False, description="search where there should be nothing to find: choose on the examples that taught"
    )
    seed: int = 0


@dataclass(frozen=True)
class Discovery:
    """What a search found.

    status     "ok", or "infeasible" when nothing met the target (then `circuit` is None)
    loss       task loss on the examples that chose (the other half, or all), nats; where infeasible the lowest reached
    full_loss  task loss of the whole model on the same examples
    scores     the ranking behind the decision, where there is one
    log        what happened, step by step, as plain data
    """

    status: Literal["ok", "infeasible"]
    circuit: Circuit | None
    loss: float
    full_loss: float
    scores: Scores | None = None
    log: tuple[dict[str, Any], ...] = ()
    origin: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Search:
    """One question: which part of this model does this task, at this loss?

    split    all examples that may be looked at
    learn    those to rank and to learn on; choose: those to decide on (both are `split` in a control)
    target   task loss in nats that the circuit must reach
    """

    run: PatchedRun
    split: Split
    learn: Split
    choose: Split
    target: float
    seed: int

    def judge(self, circuit: Circuit) -> float:
        """Task loss of a circuit that decides whether it meets the target, nats.

        On the examples that chose; where those meet the target, on all together if that is more.
        """
        unseen = self.run.loss(self.choose, circuit)
        if self.learn is self.choose or unseen > self.target:
            return unseen
        taught, n = self.run.loss(self.learn, circuit), len(self.choose)
        return max(unseen, (n * unseen + len(self.learn) * taught) / (n + len(self.learn)))

    def tidy(self, circuit: Circuit) -> Circuit:
        """The circuit without nodes that no input leads to, if it still meets the target.

        Under a fixed reference such nodes carry constants of their own, which a circuit may need.
        """
        trial = Circuit.from_edges(circuit.graph, circuit.edges, self.run.support, circuit.origin)
        if self.run.constants_are_lost or trial == circuit:
            return circuit
        return trial if self.judge(trial) <= self.target else circuit

    def fewest(self, scores: Scores, most: int | None = None) -> tuple[Circuit | None, list[dict[str, Any]]]:
        """The circuit of the fewest top-ranked nodes or edges that meets the target, by bisection, and what was tried.

        Loss is not monotone in the number kept, so the answer is a crossing, not the global least. Where all of them
        together do not meet the target, the sizes are halved until one does; None where none does.

        most   how many may be kept; by default all that exist
        """
        support = self.run.support
        if scores.of_edges:  # entries that are not edges of the model come last, whatever their score
            held = {n: v.masked_fill(~support[n].to(v.device), -float("inf")) for n, v in scores.values.items()}
            scores = replace(scores, values=held)
            total = sum(int(support[n].sum()) for n in held)
        else:
            total = sum(v.numel() for v in scores.values.values())
        tried: list[dict[str, Any]] = []

        def attempt(k: int) -> Circuit | None:
            circuit = scores.circuit(scores.top(k), support, reached=self.run.constants_are_lost)
            circuit = self.tidy(circuit) if scores.of_edges else circuit
            loss = self.judge(circuit)
            tried.append({"kept": k, "edges": circuit.counts()["edges"], "loss": loss})
            return circuit if loss <= self.target else None

        high = total if most is None else min(most, total)
        best = attempt(high)
        while best is None and high > 1:
            high //= 2
            best = attempt(high)
        low = 0
        while best is not None and high - low > 1:
            middle = (low + high) // 2
            found = attempt(middle)
            low, high, best = (low, middle, found) if found is not None else (middle, high, best)
        return best, tried


Answer = Scores | Circuit | Discovery
Method = Callable[..., Answer]  # (search, settings, progress, keeper); those of ONE_PASS without a keeper
OwnMethod = Callable[[PatchedRun, Split], Scores | Circuit]


def begin(run: PatchedRun, split: Split, settings: SearchSettings) -> Search:
    """The search that these settings ask for."""
    learn, choose = (split, split) if settings.control else split.halves()
    return Search(run, split, learn, choose, settings.target, settings.seed)


def finish(search: Search, answer: Answer, origin: Mapping[str, Any]) -> Discovery:
    """Decides what a method answered: the circuit that meets the target, or none."""
    if isinstance(answer, Discovery):
        return answer
    if not isinstance(answer, Scores | Circuit):
        raise UsageError(f"a method must return Scores or a Circuit; this one returned {type(answer).__name__}.")
    scores, full = (answer if isinstance(answer, Scores) else None), search.run.loss(search.choose)
    if scores is None:
        assert isinstance(answer, Circuit)
        loss = search.judge(answer)
        circuit, tried = (answer if loss <= search.target else None), [{"edges": len(answer), "loss": loss}]
    else:
        circuit, tried = search.fewest(scores)
    origin = {**answer.origin, **origin}
    if circuit is None:
        return Discovery("infeasible", None, min(t["loss"] for t in tried), full, scores, tuple(tried), origin)
    circuit = replace(circuit, origin=origin)
    return Discovery("ok", circuit, search.run.loss(search.choose, circuit), full, scores, tuple(tried), origin)


__all__ = [
    "Answer", "Discovery", "Method", "MetricName", "OwnMethod", "Progress", "Search", "SearchSettings", "begin",
    "finish",
]  # fmt: skip
