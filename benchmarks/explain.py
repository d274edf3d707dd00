"""How well the author `rules` explains every circuit of a run, beside the same model with random weights.

    python benchmarks/explain.py --run runs/evidence [--nodes 10] [--random 8] [--circuits A B ...]

Explains the circuits with `openwork explain RUN --circuit C --author rules --nodes N` where they are not explained yet;
then the same nodes in a copy of the model whose matrices are shuffled. Writes docs/results/explain.md.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isnan
from pathlib import Path
from statistics import median
from typing import Any

from quotes import table

from openwork import (
    patching,
    store,
    threads,  # noqa: F401  before torch
)
from openwork.circuit import FAILS, HOLDS, Circuit, Evidence, Explanation
from openwork.explain.words.rules import Rules, RulesJudge
from openwork.explain.words.scores import SCORES, Support, support
from openwork.explain.words.topics import topics_of
from openwork.explained import VERSION, Work, explain_circuit
from openwork.files import plain, write_text
from openwork.rivals import DRAWS
from openwork.runs import key_of, open_run
from openwork.searches import shuffled
from openwork.views.words import MARKS

PAGE = Path(__file__).parents[1] / "docs" / "results" / "explain.md"
SHUFFLE = 10_000  # seed of the model that is explained in the trained one's place; the nulls use others
Result = dict[str, Any]
KINDS = ("node", "module", "circuit")


def main() -> None:
    """Explains what is missing, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--nodes", type=int, default=10, help="of each circuit, those that matter most")
    parser.add_argument("--circuits", nargs="+", help="only these; by default all of the run")
    parser.add_argument("--random", type=int, default=8, help="circuits that are explained at random weights too")
    asked = parser.parse_args()
    names = [n for n in asked.circuits or open_run(asked.run).circuits() if nodes_of(asked.run, n)]
    trained = [explain_circuit(asked.run, name, "rules", asked.nodes) for name in told(names)]
    random = [of_random_weights(asked.run, name, asked.nodes) for name in told(names[: asked.random])]
    write_text(PAGE, page(asked, trained, random))
    print(PAGE)


def told(names: Sequence[str]) -> Iterator[str]:
    """The names, each said when its turn comes."""
    for name in names:
        print(name, flush=True)
        yield name


def nodes_of(path: Path, name: str) -> int:
    """How many nodes a circuit keeps; 0 where none was found."""
    folder = path / "circuits" / name
    there = (folder / "circuit.json").exists()
    return int(store.files.read_circuit_header(folder)["counts"]["nodes"]) if there else 0


def of_random_weights(path: Path, name: str, nodes: int) -> Result:
    """The same author, nodes, examples and tests in a model with the entries of every matrix in random order."""
    run = open_run(path)
    at = path / "controls" / f"{name}-explained-at-random.json"
    key = key_of(run.digest, name, nodes, SHUFFLE, store.files.VERSION, VERSION, DRAWS)
    if at.exists() and (have := store.read_json(at))["key"] == key:
        return have
    model = shuffled(run.model, SHUFFLE)
    other = replace(run)
    means = patching.mean_reference(model, run.subject.reference_inputs())
    vars(other).update(model=model, digest=store.model_digest(model), reference=means)
    found = store.read_json(path / "circuits" / name / "result.json")
    kept = store.load_circuit(path / "circuits" / name)
    circuit = Circuit.from_nodes(kept.graph, kept.nodes, patching.support(model))
    work = Work(other, run.task(found["task"]), circuit, found, name, topics_of(circuit, name), nodes, 0)
    work.look()
    explained = work.test(work.write(Rules()), RulesJudge(), DRAWS)
    result = plain({"key": key, "explanations": [as_data(e, work) for e in explained], "support": of_all(explained)})
    store.write_json(at, result)
    return result


def as_data(e: Explanation, work: Work) -> Result:
    """What the page needs of an explanation."""
    kind = next(t.kind for t in work.topics if t.name == e.subject)
    return {"subject": e.subject, "kind": kind, "text": e.text, "evidence": [vars(x) for x in e.evidence]}


def of_all(explanations: Sequence[Explanation]) -> Result:
    """The share that holds, claim by claim."""
    return {claim: vars(support(explanations, claim)) for claim in SCORES}


def marked(results: Sequence[Result], kind: str) -> Counter[str]:
    """How many explanations of a kind of topic have which verdict on the trigger."""
    return Counter(
        first_of(e)["verdict"] for r in results for e in r["explanations"] if e["kind"] == kind and e["evidence"]
    )


def first_of(e: Mapping[str, Any]) -> Mapping[str, Any]:
    """The evidence that decides."""
    return e["evidence"][0]


def share(count: Counter[str]) -> str:
    """How many are supported, of those that were decided and of all."""
    total = sum(count.values())
    if not total:
        return "-"
    return f"{count[HOLDS]} of {total} ({100 * count[HOLDS] / total:.0f} %)"


def page(asked: argparse.Namespace, trained: list[Result], random: list[Result]) -> str:
    """The page as Markdown."""
    some = ("detection", "simulation", "damage", "interchange")
    made = f"python benchmarks/explain.py --run {asked.run} --nodes {asked.nodes} --random {asked.random}"
    made += f" --circuits {' '.join(asked.circuits)}" if asked.circuits else ""
    same = trained[: len(random)]
    return "\n\n".join([
        "# Circuits explained by rules, and tested",
        f"Made by `{made}` on the demo's sparse language model (one training seed; `benchmarks/evidence.py` makes it). "
        "The author `rules` searches a short predicate on the explain split; every figure is from the verify split. An "
        "explanation is *supported* where its trigger AUC is at least 0.75 and beats chance, the other topics' "
        f"descriptions, {DRAWS} random parts of the same size and {DRAWS} models with random weights, each with p of "
        "0.05 or less. What the scores mean: [Scores](../scores.md). Of each circuit the nodes that matter most are "
        "explained, all its modules (pieces that weights hold together) and itself.",
        "## How many of the supported may be false",
        false_ones(trained),
        table(
            ["explanations", "supported", "of these false, at most", "whatever the dependence", "q <= 0.05",
             "q <= 0.05, whatever the dependence", "Holm: not one false"],
            [
                *(rates(r["circuit"], support(restored([r]))) for r in trained),
                rates("all together", support(restored(trained))),
            ],
        ),
        "The bounds are Benjamini and Hochberg's false discovery rate and, whatever the dependence, Benjamini and "
        "Yekutieli's; the last column is Holm's correction. What they mean and assume: "
        "[Many explanations](../scores.md#many-explanations).",
        "## By circuit",
        table(
            ["circuit", "nodes explained", "nodes supported", "modules supported", "the circuit itself"],
            [[
                r["circuit"], f"{sum(marked([r], 'node').values())} of {nodes_of(asked.run, r['circuit'])}",
                share(marked([r], "node")), share(marked([r], "module")),
                ", ".join(MARKS[v] for v in marked([r], "circuit")),
            ] for r in trained],
        ),
        "## By claim",
        "How many explanations have the claim; the median of their figures, and that of the best null of each.",
        table(
            ["claim", "hold", "fail", "too little data", "median", "median of the best null"],
            [by_claim(trained, claim) for claim in SCORES],
        ),
        "The rules of `damage` and `interchange` were mended after figures of this run had been seen, and checked on "
        "networks whose truth is known ([Causal scores of perfect explanations](explain_scores.md)); for these two "
        "claims the run is not unseen.",
        "## Why claims fail",
        "Failing claims by what fails them: a figure below the bar, or the nulls that a figure above it does not beat "
        "(one claim may lose to several).",
        table(
            ["claim", "fail", "below the bar", *NULLS],
            [why(trained, claim) for claim in ("trigger", "damage", "interchange")],
        ),
        of_damage(trained),
        "## The same author on random weights",
        "Scores that any network passes say nothing about what training made (Heap et al. 2025, arXiv 2501.17727, find "
        "this of the usual ones). So the same circuits' nodes in a copy of the model with every matrix shuffled were "
        f"explained and tested alike ({len(random)} circuits; on the left the same circuits of the trained model).",
        table(
            ["topics", "trained: supported", "random: supported", *(f"{c}: trained / random" for c in some)],
            [[
                f"{kind}s", share(marked(same, kind)), share(marked(random, kind)),
                *(f"{holds(same, kind, c)} / {holds(random, kind, c)}" for c in some),
            ] for kind in KINDS],
        ),
        of_random(same, random),
        "## The circuits in words",
        table(
            ["circuit", "by rules", "trigger AUC (best null)", "verdict"],
            [[r["circuit"], code(e["text"]), auc(e), MARKS[first_of(e)["verdict"]]]
             for r in trained for e in r["explanations"] if e["kind"] == "circuit"],
        ),
    ]) + "\n"  # fmt: skip


NULLS = ("chance", "descriptions", "random parts", "random weights", "other topics")


def restored(results: Sequence[Result]) -> list[Explanation]:
    """The explanations of results, with their evidence."""
    found = [(e["subject"], e["evidence"]) for r in results for e in r["explanations"]]
    return [
        Explanation(subject, "rules", evidence=tuple(Evidence(**{**x, "p": or_nan(x["p"])}) for x in evidence))
        for subject, evidence in found
    ]


def or_nan(x: float | None) -> float:
    """A number as it was before it was written."""
    return float("nan") if x is None else x


def percent(x: float) -> str:
    """A share."""
    return "-" if isnan(x) else f"{100 * x:.1f} %"


def rates(name: str, s: Support) -> list[str]:
    """One line of the table of false discovery rates."""
    return [
        name, f"{s.holds} of {s.of}", percent(s.false_share), percent(s.false_share_any), str(s.kept), str(s.kept_any),
        str(s.corrected),
    ]  # fmt: skip


def false_ones(results: Sequence[Result]) -> str:
    """What is to be said of all explanations together."""
    s = support(restored(results))
    return (
        f"Of {s.of} explanations {s.holds} are supported. Of these {s.holds} at most {percent(s.false_share)} are "
        f"expected to be no better than one of their nulls, {s.false_share * s.holds:.1f} explanations; "
        f"{percent(s.false_share_any)} if nothing is assumed of how they depend on each other. {s.kept} have q of 0.05 "
        f"or less: {s.holds - s.kept} of the supported would lose the mark if it asked for that of all together, "
        f"{s.holds - sum(support(restored([r])).kept for r in results)} if of each circuit's. Holm's correction, "
        f"which asks that not even one be false, leaves {s.corrected}: with {DRAWS} draws the smallest p is "
        f"{s.least_p:.2g}, and it needs {0.05 / s.of:.1g} of {s.of}."
    )


def of_damage(results: Sequence[Result]) -> str:
    """What is to be said of the claim `damage`."""
    found = [x for r in results for e in r["explanations"] for x in e["evidence"] if x["claim"] == "damage"]
    failing = [x for x in found if x["verdict"] == FAILS]
    low = [x for x in failing if x["value"] < x["details"]["bar"]]
    never = [x for x in low if x["details"]["by_measured_activity"] < x["details"]["bar"]]
    reaching = [x for x in failing if x not in low]
    drawn = [x for x in reaching if lost_to(x) and not {"descriptions", "chance"} & set(lost_to(x))]
    beyond = [x for x in found if x["verdict"] == HOLDS and x["details"].get("beyond_reach")]
    return (
        f"Of {len(low)} descriptions whose figure for `damage` is below the bar, {len(never)} are of topics whose "
        "measured activity, put in place of the expected one, does not reach it either: how active they are does not "
        "tell where they are missed, and no description of their activity could. "
        f"Of {len(reaching)} that reach the bar and fail, {len(drawn)} lose to random parts or random weights alone, "
        f"the others to another topic's description. {len(beyond)} of the {sum(x['verdict'] == HOLDS for x in found)} "
        "that hold would fail if descriptions that get further than the topic's own activity counted against them; why "
        "they do not: [Causal scores of perfect explanations](explain_scores.md)."
    )


def of_random(trained: Sequence[Result], random: Sequence[Result]) -> str:
    """What is to be said of random weights."""
    a, b = support(restored(trained)), support(restored(random))
    ours, theirs = (
        sum(x["verdict"] == HOLDS for r in some for e in r["explanations"] for x in e["evidence"]
            if x["claim"] == "damage") for some in (trained, random)
    )  # fmt: skip
    return (
        f"At random weights {b.holds} of {b.of} explanations are supported ({percent(b.holds / b.of)}; trained: "
        f"{percent(a.share)}), and of these at most {percent(b.false_share)} are expected to be false. "
        "The others need be no error. A node of a random network is still a function of the input, so a true "
        "description of it can be found. The "
        "null *random weights* asks whether a description fits the same part of *other* random networks as well, and a "
        "true one of this node does not. So *supported* means that the words are true of this part and of few others; "
        "it does not mean that training made the part, nor that it matters. That is asked by `damage`, which holds for "
        f"{ours} explanations of the trained model and {theirs} at random weights."
    )


def why(results: Sequence[Result], claim: str) -> list[str]:
    """How many claims fail by their figure, and by each of their nulls."""
    found = [x for r in results for e in r["explanations"] for x in e["evidence"]
             if x["claim"] == claim and x["verdict"] == FAILS]  # fmt: skip
    above = [x for x in found if x["value"] >= x["details"]["bar"]]
    count = Counter(n for x in above for n in lost_to(x))
    return [claim, str(len(found)), str(len(found) - len(above)), *(str(count[n]) for n in NULLS)]


def lost_to(x: Mapping[str, Any]) -> list[str]:
    """The nulls that a figure does not beat."""
    return [n for n, null in x["details"]["nulls"].items() if not null["beaten"]]


def by_claim(results: Sequence[Result], claim: str) -> list[str]:
    """One line of the table of claims."""
    found = [x for r in results for e in r["explanations"] for x in e["evidence"] if x["claim"] == claim]
    verdicts = Counter(x["verdict"] for x in found)
    known = [(x["value"], x["null_value"]) for x in found if x["value"] is not None and x["null_value"] is not None]
    middle = [f"{median(v):.2f}" for v in zip(*known, strict=True)] if known else ["-", "-"]
    return [claim, *(str(verdicts[v]) for v in MARKS), *middle]


def holds(results: Sequence[Result], kind: str, claim: str) -> str:
    """Share of a kind of topic whose explanations have a claim that holds."""
    found = [x["verdict"] for r in results for e in r["explanations"] if e["kind"] == kind
             for x in e["evidence"] if x["claim"] == claim]  # fmt: skip
    return f"{100 * found.count(HOLDS) / len(found):.0f} %" if found else "-"


def auc(e: Mapping[str, Any]) -> str:
    """The trigger's figure and its best null."""
    x = first_of(e)
    return "-" if x["value"] is None else f"{x['value']:.2f} ({x['null_value']:.2f})"


def code(text: str) -> str:
    """Text that a table of Markdown leaves as it is."""
    return "``" + text.replace("|", "\\|").replace("\n", " ").replace("`", "'") + "``"


if __name__ == "__main__":
    main()
