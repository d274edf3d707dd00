"""Does the author `rules` name what every node of a planted circuit truly computes?

    python benchmarks/explain_planted.py [--seeds 0 1 2] [--half tuned|held_out|both] [--out runs/explain_planted.json]
    python benchmarks/explain_planted.py --from runs/explain_planted.json

Every planted case, every node of its true circuit: what it sends on the `explain` split is explained, what the
explanation expects on the `verify` split is held against the node's variable (`openwork.planted.variables`), by the
criterion of `openwork.planted.names`. The criterion stood before the search was written. The search was adjusted on the
half of the cases whose name (without what stands beside them) has an even SHA-256, with seed 0. Writes
docs/results/explain_planted.md; takes some minutes on one core.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quotes import table

from openwork import patching, store, threads  # noqa: F401  threads before torch
from openwork.explain.words.rules import Rules, RulesJudge
from openwork.explain.words.topic import Dossier, Observed, Sample, Topic
from openwork.files import write_text
from openwork.planted import BUSY, CASES, Case, make_case
from openwork.planted.names import ENOUGH, agreement, alike, match, named, varies
from openwork.planted.variables import Node, Variable, variables, words
from openwork.progress import Progress
from openwork.stats import bootstrap_mean, clopper_pearson, wilson

PAGE = Path(__file__).parents[1] / "docs" / "results" / "explain_planted.md"
COMMAND = "python benchmarks/explain_planted.py"
JUDGED = ("verify", "ood")
Result = dict[str, Any]


def main() -> None:
    """Explains the nodes of every case and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--half", choices=["tuned", "held_out", "both"], default="both")
    parser.add_argument("--out", type=Path, default=Path("runs/explain_planted.json"))
    parser.add_argument("--from", dest="file", type=Path, default=None)
    asked = parser.parse_args()
    if asked.file is not None:
        result = store.read_json(asked.file)
    else:
        jobs = [(n, seed) for seed in asked.seeds for n in CASES if asked.half in ("both", half(n))]
        with Progress() as progress:
            bar = progress.task("cases", len(jobs))
            rows = []
            for i, (name, seed) in enumerate(jobs):
                rows.append(explain_case(name, seed))
                bar.update(i + 1)
            bar.finish()
        result = {"seeds": asked.seeds, "half": asked.half, "cases": rows}
        store.write_json(asked.out, result)
    if result["half"] == "both":
        write_text(PAGE, page(result))
        print(PAGE)
    else:
        print(page(result))


def base_of(name: str) -> str:
    """The planted network in a case, whatever stands beside it."""
    return BUSY[name][0] if name in BUSY else name


def half(name: str) -> str:
    """Which half a case belongs to; one network with and without distractors is in one half."""
    even = int(hashlib.sha256(base_of(name).encode()).hexdigest(), 16) % 2 == 0
    return "tuned" if even else "held_out"


def sample_of(case: Case, base: str, split: str) -> Sample:
    """The examples of a split as the author sees them."""
    s = case.task.split(split)
    right = tuple(case.task.answers[i] for i in s.answer.tolist())
    x = s.inputs[0].numpy()
    if words(base):
        return Sample(split, words(base), x, s.inputs[1].numpy(), right=right)
    side = round(x.shape[1] ** 0.5) if case.family == "cnn" else 0
    names = tuple(f"x{i}" for i in range(x.shape[1]))
    asked = np.zeros(len(x), dtype=np.int64)
    return Sample(split, asked=asked, features=x, names=names, shape=(side, side, 1) if side else (), right=right)


def observe(case: Case, sample: Sample, nodes: Sequence[Node]) -> Observed:
    """What nodes send on a sample less what they send ablated; of a channel of maps, the largest value on its map."""
    sent = patching.record(case.model, case.task.split(sample.split).inputs[:1])
    out = []
    for site, i in nodes:
        h = sent[site].detach().movedim(case.truth.graph.site(site).axis, -1)[..., i]
        h = h if sample.is_text or h.dim() == 1 else h.flatten(1).amax(1)
        out.append(np.where(sample.counted, (h - case.reference[site][i]).numpy().astype(float), np.nan))
    topics = tuple(Topic(f"{s}:{i}", "node", ((s, i),)) for s, i in nodes)
    damage = np.zeros((len(nodes), len(sample)))  # no author of this page looks at it
    return Observed(sample, topics, np.stack(out), "sent less reference", damage)


def explain_case(name: str, seed: int) -> Result:
    """Every node of a case whose variable varies: whether it was named, and by how many explanations of other nodes."""
    case, base = make_case(name, seed), base_of(name)
    known = variables(case, base, seed)
    author, judge = Rules(), RulesJudge()
    truth = {s: {n: v.values(case.task.split(s)) for n, v in known.items()} for s in JUDGED}
    nodes = [n for n in known if all(varies(truth[s][n]) for s in JUDGED)]
    observed = observe(case, sample_of(case, base, "explain"), nodes)
    told = [author(Dossier({}, observed, topic)) for topic in observed.topics]
    samples = {s: sample_of(case, base, s) for s in JUDGED}
    expects = {s: [judge(e, samples[s]) for e in told] for s in JUDGED}
    anywhere = at_random(case, base, known, seed) if case.family == "boolean" else None
    rows = []
    for k, node in enumerate(nodes):
        row: Result = {
            "node": f"{node[0]}:{node[1]}", "variable": known[node].name, "relation": known[node].relation,
            "text": told[k].text, "explains": float(told[k].details.get("explains", 0.0)),
        }  # fmt: skip
        for s in JUDGED:
            mine, others = truth[s][node], [truth[s][n] for n in nodes]
            row[s] = {"match": match(expects[s][k], mine), "named": named(expects[s][k], mine, others)}
        if anywhere is not None:
            row["anywhere"] = named(
                judge(told[k], anywhere[0]), anywhere[1][node], [v for v in anywhere[1].values() if varies(v)]
            )
        mine = truth["verify"][node]
        strange = [
            x for n, x in zip(nodes, expects["verify"], strict=True) if not alike(truth["verify"][n], mine)
        ]  # explanations of nodes with another variable
        row["strangers"] = {
            "number": len(strange),
            "named": float(np.mean([match(x, mine) >= ENOUGH for x in strange])) if strange else None,
            "agreement": float(np.mean([agreement(x, mine) for x in strange])) if strange else None,
            "own": agreement(expects["verify"][k], mine),
        }
        rows.append(row)
    return {
        "case": name, "seed": seed, "family": case.family, "half": half(name), "constant": len(known) - len(nodes),
        "nodes": rows,
    }  # fmt: skip


def at_random(
    case: Case, base: str, known: Mapping[Node, Variable], seed: int
) -> tuple[Sample, dict[Node, np.ndarray]]:
    """Inputs drawn at random, of which a Boolean task shows only those on its border; and the variables there."""
    split = case.task.split("verify")
    drawn = torch.randint(2, split.inputs[0].shape, generator=torch.Generator().manual_seed(seed)).float() * 2 - 1
    new = replace(split, inputs=(drawn,))
    sample = replace(sample_of(case, base, "verify"), features=drawn.numpy())
    return sample, {n: v.values(new) for n, v in known.items()}


# -- the page --------------------------------------------------------------------------------------------------------


def page(result: Result) -> str:
    """The page as Markdown."""
    cases = result["cases"]
    groups = [("all", cases)]
    groups += [(f"seed {s}", [c for c in cases if c["seed"] == s]) for s in result["seeds"]]
    groups += [(f"{h.replace('_', ' ')} half", [c for c in cases if c["half"] == h]) for h in ("tuned", "held_out")]
    groups += [(f, [c for c in cases if c["family"] == f]) for f in sorted({c["family"] for c in cases})]
    groups = [(n, g) for n, g in groups if g]
    failed = [
        [
            c["case"], str(c["seed"]), c["half"].replace("_", " "), r["node"], r["variable"],
            f"{r['verify']['match']:.3f}", escaped(r["text"]),
        ]
        for c in cases for r in c["nodes"] if not r["verify"]["named"]
    ]  # fmt: skip
    examples = [[c["case"], r["node"], r["variable"], escaped(r["text"])] for c, r in shown(cases)]
    return "\n".join([
        "# Rules on planted circuits",
        "",
        f"Made by `{COMMAND}`: {len({c['case'] for c in cases})} planted cases ([Planted circuits](../planted.md)), "
        f"seeds {', '.join(map(str, result['seeds']))} (other examples, other places of the inputs that matter). The "
        "author `rules` sees what a node sends on the `explain` split and says in a predicate when it does; every node "
        "of every true circuit has a variable that is known (`src/openwork/planted/variables.py`).",
        "",
        "**Named** means: on the `verify` split, what the predicate expects is the node's variable up to a monotone "
        f"map (two values: balanced agreement at least {ENOUGH:g}; more: rank correlation at least {ENOUGH:g}), and "
        "no other variable of the case fits it better. It is judged where the variable has a value: a compiled program "
        "has none where a head looks at positions that differ. Nodes whose variable never changes are not judged. The "
        "criterion was fixed before the search was written (`src/openwork/planted/names.py`). *Out of distribution*: "
        "the same on the `ood` split. *On any inputs*: the same on inputs drawn at random, of the Boolean cases, whose "
        "tasks show only pairs on the border of the function.",
        "",
        "The search was adjusted on the tuned half of the cases, seed 0. The first look at the held-out half then "
        "found two faults, which are mended: examples were dealt alternately into the halves that fit and choose, so "
        "that where pairs of two kinds alternate one half had none of a kind; and pictures could not be asked for in "
        "some rows only. Gates of two inputs were named as either-or, so parities are now tried last. So the held-out "
        "half of seed 0 has been seen, and no half is unseen of which the rules were read; what the other seeds failed "
        "was not adjusted to.",
        "",
        table(
            ["", "cases", "nodes judged", "named", "share", "95 %", "by case", "95 % over networks",
             "out of distribution", "on any inputs", "never change"],
            [group_row(n, g) for n, g in groups],
        ),
        "",
        "The first interval is Wilson's and takes nodes as independent, which those of one case are not; the second is "
        "a bootstrap over networks of the mean share per case.",
        "",
        "## Explanations of other nodes",
        "",
        "The same criterion for the explanation of another node of the same case whose variable is another one (by the "
        "criterion: the position and its square are one), all pairs. *Networks* counts those in which any such "
        "explanation names a node's variable, with Clopper and Pearson's interval. Agreement is signed: balanced "
        "agreement (chance 0.5) of two values, (1 + rank correlation) / 2 of more; mean over nodes, then over cases, "
        "with a bootstrap over networks.",
        "",
        table(
            ["", "cases", "pairs", "named by a stranger", "networks", "95 %", "agreement of strangers", "95 %",
             "of its own"],
            [stranger_row(n, g) for n, g in groups],
        ),
        "",
        "",
        "## Not named",
        "",
        table(["case", "seed", "half", "node", "its variable", "fit", "what was said"], failed) if failed else "None.",
        "",
        "## One node of every network",
        "",
        "The one with the longest explanation that names its variable, of the first seed.",
        "",
        table(["case", "node", "its variable", "what was said"], examples),
        "",
    ])  # fmt: skip


def escaped(text: str) -> str:
    """Text for a cell of a table; long ones cut."""
    return (text if len(text) <= 300 else text[:297] + "...").replace("|", "\\|").replace("<", "&lt;")


def shown(cases: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Of every network without distractors the named node with the longest explanation, of the first seed."""
    first = [c for c in cases if c["seed"] == cases[0]["seed"] and c["case"] not in BUSY]
    good = [(c, [r for r in c["nodes"] if r["verify"]["named"]]) for c in first]
    return [(c, max(rows, key=lambda r: len(r["text"]))) for c, rows in good if rows]


def clusters_of(cases: Sequence[Result]) -> list[int]:
    """A number per case, the same for one network with other seeds or with other things beside it."""
    bases = sorted({base_of(c["case"]) for c in cases})
    return [bases.index(base_of(c["case"])) for c in cases]


def group_row(name: str, cases: Sequence[Result]) -> list[str]:
    """One line of the first table."""
    rows = [r for c in cases for r in c["nodes"]]
    hits, ood = sum(r["verify"]["named"] for r in rows), sum(r["ood"]["named"] for r in rows)
    by_case = [float(np.mean([r["verify"]["named"] for r in c["nodes"]])) for c in cases]
    far = [r["anywhere"] for r in rows if "anywhere" in r]
    low, high = wilson(hits, len(rows))
    a, b = bootstrap_mean(by_case, clusters_of(cases))
    return [
        name, str(len(cases)), str(len(rows)), str(hits), f"**{hits / len(rows):.1%}**", f"{low:.1%} to {high:.1%}",
        f"{np.mean(by_case):.1%}", f"{a:.1%} to {b:.1%}", f"{ood / len(rows):.1%}",
        f"{np.mean(far):.1%} of {len(far)}" if far else "",
        str(sum(c["constant"] for c in cases)),
    ]  # fmt: skip


def stranger_row(name: str, cases: Sequence[Result]) -> list[str]:
    """One line of the second table."""
    with_some = [c for c in cases if any(r["strangers"]["number"] for r in c["nodes"])]
    some = [[r["strangers"] for r in c["nodes"] if r["strangers"]["number"]] for c in with_some]
    if not some:
        return [name, "0", "0", *[""] * 6]
    hits = [round(sum(s["named"] * s["number"] for s in c)) for c in some]
    networks = {base_of(c["case"]) for c in with_some}
    struck = {base_of(c["case"]) for c, h in zip(with_some, hits, strict=True) if h}
    low, high = clopper_pearson(len(struck), len(networks))
    fit = [float(np.mean([s["agreement"] for s in c])) for c in some]
    own = [float(np.mean([s["own"] for s in c])) for c in some]
    c, d = bootstrap_mean(fit, clusters_of(with_some))
    return [
        name, str(len(some)), str(sum(s["number"] for x in some for s in x)), str(sum(hits)),
        f"{len(struck)} of {len(networks)}", f"{low:.1%} to {high:.1%}", f"{np.mean(fit):.3f}", f"{c:.3f} to {d:.3f}",
        f"{np.mean(own):.3f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
