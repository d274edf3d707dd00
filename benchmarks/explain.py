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
from pathlib import Path
from statistics import median
from typing import Any

from quotes import table

from openwork import (
    patching,
    store,
    threads,  # noqa: F401  before torch
)
from openwork.circuit import HOLDS, Circuit, Explanation
from openwork.explain.words.rules import Rules, RulesJudge
from openwork.explain.words.scores import SCORES, support
from openwork.explain.words.topics import topics_of
from openwork.explained import Work, explain_circuit
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
    key = key_of(run.digest, name, nodes, SHUFFLE, store.files.VERSION)
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
    some = ("detection", "simulation", "damage")
    made = f"python benchmarks/explain.py --run {asked.run} --nodes {asked.nodes} --random {asked.random}"
    made += f" --circuits {' '.join(asked.circuits)}" if asked.circuits else ""
    return "\n\n".join([
        "# Circuits explained by rules, and tested",
        f"Made by `{made}` on the demo's sparse language model (one training seed; `benchmarks/evidence.py` makes it). "
        "The author `rules` searches a short predicate on the explain split; every figure is from the verify split. An "
        "explanation is *supported* where its trigger AUC is at least 0.75 and beats chance, the other topics' "
        f"descriptions, random parts of the same size and {DRAWS} models with random weights. What the scores mean: "
        "[Explaining](../explaining.md). Of each circuit the nodes that matter most are explained, all its modules "
        "(pieces that weights hold together) and itself.",
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
        "## What they lose to",
        "Triggers that reach 0.75 and are still not supported, by the nulls that they do not beat.",
        table(["null", "triggers"], [[n, str(k)] for n, k in lost(trained).most_common()] or [["none", "0"]]),
        "## The same author on random weights",
        "Scores that any network passes say nothing about what training made (Heap et al. 2025, arXiv 2501.17727, find "
        "this of the usual ones). So the same circuits' nodes in a copy of the model with every matrix shuffled were "
        f"explained and tested alike ({len(random)} circuits; on the left the same circuits of the trained model).",
        table(
            ["topics", "trained: supported", "random: supported", *(f"{c}: trained / random" for c in some)],
            [[
                f"{kind}s", share(marked(trained[: len(random)], kind)), share(marked(random, kind)),
                *(f"{holds(trained[: len(random)], kind, c)} / {holds(random, kind, c)}" for c in some),
            ] for kind in KINDS],
        ),
        "## The circuits in words",
        table(
            ["circuit", "by rules", "trigger AUC (best null)", "verdict"],
            [[r["circuit"], code(e["text"]), auc(e), MARKS[first_of(e)["verdict"]]]
             for r in trained for e in r["explanations"] if e["kind"] == "circuit"],
        ),
    ]) + "\n"  # fmt: skip


def by_claim(results: Sequence[Result], claim: str) -> list[str]:
    """One line of the table of claims."""
    found = [x for r in results for e in r["explanations"] for x in e["evidence"] if x["claim"] == claim]
    verdicts = Counter(x["verdict"] for x in found)
    known = [(x["value"], x["null_value"]) for x in found if x["value"] is not None and x["null_value"] is not None]
    middle = [f"{median(v):.2f}" for v in zip(*known, strict=True)] if known else ["-", "-"]
    return [claim, *(str(verdicts[v]) for v in MARKS), *middle]


def lost(results: Sequence[Result]) -> Counter[str]:
    """Nulls that were not beaten by triggers that reach their bar."""
    out: Counter[str] = Counter()
    for r in results:
        for e in r["explanations"]:
            x = first_of(e) if e["evidence"] else {}
            if x.get("verdict") == "fails" and (x["value"] or 0) >= x["details"].get("bar", 1):
                out.update(n for n, null in x["details"]["nulls"].items() if not null["beaten"])
    return out


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
