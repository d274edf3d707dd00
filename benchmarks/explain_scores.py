"""Are the causal scores of explanations fair? Asked of planted networks, where the truth is known.

    python benchmarks/explain_scores.py [--seed 0] [--strangers 4] [--cases A B ...]

Every planted case, every node of its true circuit whose activity varies: the scores `damage` and `interchange` of the
node's own activity in place of what an explanation expects, as good as any description of it can be; and of the
activity of other nodes that act otherwise. Beside the verdict on damage what it would be if a description further down
the path, which foretells it better than the node's own activity does, were held against it. Writes
docs/results/explain_scores.md; takes some minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from explain_planted import base_of, sample_of
from quotes import table

from openwork import (
    stats,
    threads,  # noqa: F401  before torch
)
from openwork.circuit import HOLDS, UNDECIDED, Evidence, Explanation
from openwork.explain.words.interchange import interchanges
from openwork.explain.words.measure import measure
from openwork.explain.words.scores import Nulls, ScoreSettings, score
from openwork.explain.words.scoring import Hearing, Material
from openwork.explain.words.scoring.hearing import ALPHA
from openwork.explain.words.topic import Judge, Observed, Sample
from openwork.explain.words.topics import topics_of
from openwork.files import write_text
from openwork.planted import CASES, make_case
from openwork.progress import Progress
from openwork.stats import clopper_pearson

PAGE = Path(__file__).parents[1] / "docs" / "results" / "explain_scores.md"
SETTINGS = ScoreSettings(draws=499)
CLAIMS = ("damage", "interchange")
VARIES = 1e-6  # activity that varies by less is constant


@dataclass(frozen=True)
class Row:
    """One description of one node: a family of cases, and its evidence."""

    family: str
    evidence: Evidence

    @property
    def known(self) -> bool:
        """Whether there was data enough to decide."""
        return self.evidence.verdict != UNDECIDED

    @property
    def reaches(self) -> bool:
        """Whether the figure reaches the bar."""
        return self.known and self.evidence.value >= self.evidence.details["bar"]

    @property
    def strictly(self) -> bool:
        """Whether it would hold with every better description held against it."""
        d = self.evidence.details
        many = d.get("rivals", 0)
        null = d.get("nulls", {}).get("descriptions", {"as_good": 0.0})
        return self.holds and round(null["as_good"] * many) + d.get("beyond_reach", 0) <= ALPHA * many

    @property
    def holds(self) -> bool:
        """Whether it holds."""
        return self.evidence.verdict == HOLDS


def main() -> None:
    """Scores every case and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strangers", type=int, default=4, help="other nodes whose activity is tried on every node")
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    asked = parser.parse_args()
    own: list[Row] = []
    strange: list[Row] = []
    with Progress() as progress:
        bar = progress.task("cases", len(asked.cases))
        for i, name in enumerate(asked.cases):
            mine, others = of_case(name, asked.seed, asked.strangers)
            print(name, len(mine), len(others), flush=True)
            own += mine
            strange += others
            bar.update(i + 1)
        bar.finish()
    write_text(PAGE, page(asked, own, strange))
    print(PAGE)


def of_case(name: str, seed: int, strangers: int) -> tuple[list[Row], list[Row]]:
    """The node's own activity as its description, and that of other nodes."""
    case = make_case(name, seed)
    split = case.task.split("verify")
    sample = sample_of(case, base_of(name), "verify")
    nodes = [t for t in topics_of(case.truth, name) if t.kind == "node"]
    seen = measure(case.model, case.truth, case.reference, nodes, split, sample).observed
    flat = seen.activity.reshape(len(nodes), -1)
    keep = [k for k, row in enumerate(flat) if np.nanmax(row) - np.nanmin(row) > VARIES]
    if not keep:
        return [], []
    o = Observed(sample, tuple(nodes[k] for k in keep), seen.activity[keep], "", seen.damage[keep])
    clusters = stats.pair_clusters(split.pair)
    judge = by_activity(o)
    runs = interchanges(case.model, case.truth, case.reference, o.topics, split, seed)

    def scored(some: Sequence[Explanation], others: Sequence[Explanation] = ()) -> list[Row]:
        found = score(
            some, o, Nulls(), judge, seed, clusters=clusters, others=others, claims=CLAIMS, settings=SETTINGS,
            interchanges=runs,
        )  # fmt: skip
        return [Row(case.family, x) for e in found for x in e.evidence]

    right = [Explanation(t.name, "the truth", t.name, predicate={"activity of": k}) for k, t in enumerate(o.topics)]
    material = Material(right, (), o, Nulls(), judge, seed, clusters, SETTINGS, runs)
    strange: list[Row] = []
    for k, e in enumerate(right):
        rivals = Hearing(material, k).rivals()
        chosen = np.random.default_rng([seed, k]).permutation(rivals)[:strangers].tolist() if rivals else []
        for j in sorted(chosen):
            others = [x for i, x in enumerate(right) if i not in (j, k)]
            strange += scored([replace(e, predicate={"activity of": j})], others)
    return scored(right), strange


def by_activity(o: Observed) -> Judge:
    """A judge that expects what some node does."""

    def judge(e: Explanation, _sample: Sample) -> np.ndarray:
        return o.activity[e.predicate["activity of"]].astype(np.float64)

    return judge


def page(asked: argparse.Namespace, own: Sequence[Row], strange: Sequence[Row]) -> str:
    """The page as Markdown."""
    command = f"python benchmarks/explain_scores.py --seed {asked.seed} --strangers {asked.strangers}"
    command += f" --cases {' '.join(asked.cases)}" if asked.cases != list(CASES) else ""
    (damage, lost), (moved, stray) = ([of(claim, rows) for rows in (own, strange)] for claim in CLAIMS)
    better = [r for r in damage if r.reaches and r.evidence.details.get("beyond_reach", 0)]
    failing = [r for r in moved if r.known and not r.holds]
    return "\n\n".join([
        "# Causal scores of perfect explanations",
        f"Made by `{command}` on {len(asked.cases)} planted cases ([Planted circuits](../planted.md)). What is scored "
        "is no explanation but the activity of a node of the true circuit itself, in place of what an explanation "
        "expects: no description of the activity can say more. The nulls are chance, the (equally perfect) "
        "descriptions of the other nodes and, for interchange, the patches of other nodes.",
        "## Damage",
        f"How much is lost without a node depends on what comes after it too. Of {len(damage)} nodes "
        f"{sum(r.reaches for r in damage)} tell by their activity where they are missed (rho at least 0.3); for "
        f"{len(better)} of these the activity of another node, which the score does not take for the same, tells it "
        f"better. Were such held against a description (*strictly*), {sum(r.strictly for r in damage)} perfect ones "
        f"would hold; as the score counts only those that get no further than the node's own activity, "
        f"{sum(r.holds for r in damage)} do. Activity of strangers holds in {sum(r.holds for r in lost)} of "
        f"{len(lost)} trials, strictly in {sum(r.strictly for r in lost)}. Where a node's own activity does not reach "
        "the bar, how active it is does not say where it is missed, and no description of its activity can.",
        "A node's own activity:",
        counted(damage),
        f"The activity of up to {asked.strangers} other nodes that act otherwise, drawn at random (a claim that holds "
        "is false here, or true by accident: some nodes are missed where another is active):",
        counted(lost),
        "## Interchange",
        f"Of {sum(r.known for r in moved)} nodes on which there is data enough, {len(failing)} fail with their own "
        "activity as the variable. So a failing interchange does not say that the words are wrong: it says that the "
        "variable, right or wrong, does not decide alone whether the output moves. A node that is read together with "
        "others (a gate, a key, one of several that vote) moves it only where these let it.",
        "A node's own activity:",
        counted(moved, strictly=False),
        "The activity of other nodes:",
        counted(stray, strictly=False),
    ]) + "\n"  # fmt: skip


def of(claim: str, rows: Sequence[Row]) -> list[Row]:
    """Those of one claim."""
    return [r for r in rows if r.evidence.claim == claim]


def counted(rows: Sequence[Row], strictly: bool = True) -> str:
    """One line per family: how many hold, and how many would, strictly."""
    lines = []
    for f in ("all", *sorted({r.family for r in rows})):
        some = [r for r in rows if f in ("all", r.family)]
        good, known = sum(r.holds for r in some), sum(r.known for r in some)
        low, high = clopper_pearson(good, known)
        line = [
            f, str(len(some)), str(len(some) - known), str(sum(r.reaches for r in some)),
            f"{good} ({100 * low:.1f} to {100 * high:.1f} % of those decided)",
        ]  # fmt: skip
        lines.append([*line, *([str(sum(r.strictly for r in some))] if strictly else [])])
    return table(
        ["cases", "tried", "too little data", "reach the bar", "hold (95 %)", *(["strictly"] if strictly else [])],
        lines,
    )


if __name__ == "__main__":
    main()
