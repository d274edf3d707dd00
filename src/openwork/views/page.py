"""One self-contained HTML page of a run: its result, its circuits as layered graphs, the evidence for each.

Reads what other stages left in the run's folders and writes page.html beside it. The page asks nothing of any network:
script and style stand in it and are named by their hashes in its content security policy, data that the script needs
stands in it as gzip in base64 or as escaped JSON, and no text from a run is ever parsed as HTML.

Knows folders of JSON. Does not know torch, models, tasks, or how a circuit was found.

    a comparison     result.json, and one run folder per model: sparse/ dense/ dense_matched/ ...
    run flows        result.json and run.yaml, sparse/ dense/, and where there are some alerts.jsonl
    a run folder     circuits/<task>-<method>/ with circuit.json and, where there is one, dossier.json and result.json;
                     layout.json, the network in space, which is drawn to layout.svg too;
                     modules/modules.json, what modules the model has
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from openwork import files
from openwork.errors import RunError, UsageError
from openwork.views import explanations, flows, modules, wiring
from openwork.views.layout import Placed, place
from openwork.views.why import signed
from openwork.views.words import (
    EDGE_PRUNED,
    MODELS,
    MODULES,
    WIRING,
    Record,
    caveats,
    claim_words,
    columns,
    duration,
    headline,
    held_out_loss,
    interval,
    lede,
    mapping,
    model_words,
    number,
    percent,
    probability,
    ratio_rows,
    task_rows,
    task_words,
    times,
)

HERE = Path(__file__).parent
DOSSIER_VERSION = 1  # of dossier.json; newer ones are refused
WIRING_VERSION = 1  # of layout.json
MODULES_VERSION = 1  # of modules.json
VERDICTS = {"holds": "yes", "fails": "no", "too little data": "open"}  # verdict -> its icon
KINDS = {
    "read": "residual read",
    "query": "query channel",
    "key": "key channel",
    "value": "value channel",
    "write": "residual write",
    "neuron": "neuron",
    "embed": "embedding channel",
    "input": "input",
    "output": "answer",
}
ROWS = {  # what is written beside a row, by the end of its site's name
    "attn.in": "attention in",
    "attn.write": "attention out",
    "mlp.in": "MLP in",
    "mlp.act": "neurons",
    "mlp.write": "MLP out",
    "final.in": "final in",
    "embed": "embedding",
}
SENT = {  # what the script is told of a node
    *("id", "site", "index", "kind", "effect", "mean", "label", "head", "tokens", "positions", "top", "bottom", "task")
}
CHIP = 26.0  # height of a label and some room, in pixels
LABEL = 14  # characters of a token shown in the drawing
PANE = 260.0  # pixels that a narrow pane leaves for a row: labels keep their size when the drawing shrinks to fit


@dataclass
class Shown:
    """One circuit as the page shows it."""

    task: str
    model: str  # name of its run folder; "" for the circuits of a single run
    method: str
    facts: dict[str, Any]  # status, nodes, edges, loss, accuracy, as far as they are known
    evidence: list[Record] = field(default_factory=list)
    about: str = ""
    inputs: str = ""
    drawing: dict[str, Any] | None = None  # what the script draws
    note: str = ""  # why there is no drawing
    explanations: list[Any] = field(default_factory=list)

    variant: str = ""  # EDGE_PRUNED where single edges were pruned from the circuit

    @property
    def title(self) -> str:
        """The model in words, with the method where there is no model to tell circuits apart."""
        return model_words(self.model + self.variant) if self.model else self.method or "circuit"


def build_page(run: Path, log: Path | None = None) -> Path:
    """Writes page.html of a comparison or of a single run, and returns its path; layout.svg where layout.json is.

    log  of detectors of intrusions: alerts of which the first are shown

    Refuses a folder that holds no result.json, no circuit, no layout.json and no modules.
    """
    run = Path(run)
    if not run.is_dir():
        raise UsageError(f"there is no run folder {run}.")
    result = files.read_json(run / "result.json") if (run / "result.json").is_file() else {}
    circuits = [c for name, folder in _runs(run) for c in _circuits(name, folder)]
    network, parts = _network(run), _modules(run)
    if not result and not circuits and not network and not parts:
        raise UsageError(f"{run} holds nothing to show: no result.json and no circuits; discover a circuit first.")
    path = run / "page.html"
    detectors = flows.section(run, result, log) if result and flows.is_flows(run) else None
    html = _render(run, result, circuits, network, parts, detectors)
    files.write_text(path, html.encode("utf-8", "replace").decode())
    return path


# -- reading -----------------------------------------------------------------------------------------------------------


def _runs(run: Path) -> list[tuple[str, Path]]:
    """The run folders with circuits in this folder: itself, and its children in the order of MODELS."""
    order = {name: k for k, name in enumerate(MODELS)}
    children = [c for c in run.iterdir() if (c / "circuits").is_dir() and c.name != "random"]  # a control, not a claim
    children.sort(key=lambda c: (order.get(c.name, len(order)), c.name))
    own = [("", run)] if (run / "circuits").is_dir() else []
    return own + [(c.name, c) for c in children]


def _circuits(model: str, run: Path) -> list[Shown]:
    return [
        _circuit(model, folder)
        for folder in sorted((run / "circuits").iterdir())
        if folder.is_dir() and not folder.name.startswith(".") and any(folder.glob("*.json"))
    ]


def _circuit(model: str, folder: Path) -> Shown:
    """What is known of one circuit; an absent part is left out, a damaged one is refused."""
    header = files.read_circuit_header(folder) if (folder / "circuit.json").is_file() else {}
    result = _optional(folder / "result.json")
    dossier = _optional(folder / "dossier.json")
    if dossier.get("version", DOSSIER_VERSION) != DOSSIER_VERSION:
        raise RunError(
            f"{folder / 'dossier.json'} has version {dossier['version']} and this openwork reads version "
            f"{DOSSIER_VERSION}; write it again with this version."
        )
    origin = mapping(header.get("origin"))
    task, _, method = folder.name.rpartition("-")
    shown = Shown(
        task=str(dossier.get("task") or task or folder.name),
        model=model,
        method=str(origin.get("method") or method),
        facts=dict(mapping(header.get("counts"))),
        evidence=[e for e in header.get("evidence", []) if isinstance(e, Mapping)],
        about=str(dossier.get("about", "")),
        inputs=str(dossier.get("inputs", "")),
        explanations=explanations.of_header(header),
    )
    if not header:
        shown.facts = {"status": str(result.get("status", "no circuit"))}
        shown.note = _why_none(shown.facts, model)
        return shown
    _judge(shown, {"": mapping(result.get("node_based")), EDGE_PRUNED: mapping(result.get("edge_pruned"))})
    if dossier:
        try:
            shown.drawing = _drawing(dossier, explanations.said(shown.explanations))
        except (KeyError, TypeError, ValueError, IndexError) as e:
            raise RunError(f"{folder / 'dossier.json'} is damaged: {e!r}.") from e
    else:
        shown.note = "This circuit has no dossier yet, so it cannot be drawn."
    return shown


def _judge(shown: Shown, records: Mapping[str, Record]) -> None:
    """Gives a circuit the loss and accuracy of the record that has as many edges as it: the circuit is one of these."""
    for variant, r in records.items():
        if r.get("edges") is not None and r.get("edges") == shown.facts.get("edges"):
            shown.facts |= {k: r[k] for k in ("loss", "accuracy") if k in r}
            shown.variant = variant


def _optional(path: Path) -> dict[str, Any]:
    return files.read_json(path) if path.is_file() else {}


def _network(run: Path) -> dict[str, Any] | None:
    """The network in space as the page shows it, drawn to layout.svg too; None where no layout.json is."""
    path = run / "layout.json"
    layout = _optional(path)
    if not layout:
        return None
    if layout.get("version") != WIRING_VERSION:
        raise RunError(
            f"{path} has version {layout.get('version')} and this openwork reads version {WIRING_VERSION}; "
            "write it again with this version."
        )
    try:
        alone, within = wiring.draw(layout, alone=True), wiring.draw(layout)
        network = {"svg": Markup(within), "words": wiring.words(layout), "streams": bool(layout["threads"])}
    except (KeyError, TypeError, ValueError, IndexError) as e:
        raise RunError(f"{path} is damaged: {e!r}.") from e
    files.write_text(run / "layout.svg", alone.encode("utf-8", "replace").decode())
    return network


def _modules(run: Path) -> dict[str, Any] | None:
    """The modules as the page shows them; None where there are none. Refuses those of another model."""
    path = run / "modules" / "modules.json"
    result = _optional(path)
    if not result:
        return None
    if result.get("version") != MODULES_VERSION:
        raise RunError(
            f"{path} has version {result.get('version')} and this openwork reads version {MODULES_VERSION}; "
            f"write it again with: openwork modules {run}"
        )
    now = files.read_model_header(run / "model")["digest"] if (run / "model").is_dir() else result.get("model")
    if result.get("model") != now:
        raise RunError(f"{path} is about a model that is no longer here; write it again with: openwork modules {run}")
    try:
        return modules.section(result)
    except (KeyError, TypeError, ValueError, IndexError, StopIteration) as e:
        raise RunError(f"{path} is damaged: {e!r}.") from e


# -- a circuit as a drawing --------------------------------------------------------------------------------------------


def _drawing(dossier: Record, said: Record) -> dict[str, Any]:
    """A dossier as the script wants it: nodes with places, edges as positions in the list of nodes.

    said  node -> what is said of it
    """
    nodes = dossier["nodes"]
    at = {n["id"]: k for k, n in enumerate(nodes)}
    links = list(dict.fromkeys(e["link"] for e in dossier["edges"]))
    number = {name: k for k, name in enumerate(links)}
    edges = [[at[e["src"]], at[e["dst"]], e["weight"], number[e["link"]]] for e in dossier["edges"]]
    residual = [[at[e["src"]], at[e["dst"]]] for e in dossier.get("residual", [])]
    attends = [[at[e["src"]], at[e["dst"]]] for e in dossier.get("attends", [])]
    sites, layers = [n["site"] for n in nodes], [n["layer"] for n in nodes]
    pairs = [(a, b) for a, b, *_ in edges] + [(a, b) for a, b in residual]
    shrunk = place(sites, layers, pairs).width / PANE
    widths = [(min(LABEL, len(n["label"])) * 7.3 + 18.0) * shrunk if "label" in n else 0.0 for n in nodes]
    placed = place(sites, layers, pairs, widths, CHIP * shrunk)
    return {
        "inputs": dossier.get("inputs", "tokens"),
        "answers": dossier.get("answers", []),
        "prompts": dossier.get("prompts", []),
        "contexts_for": dossier.get("contexts_for", {}),
        "nodes": [
            {k: _lean(v) for k, v in n.items() if k in SENT}
            | {"x": round(x, 1), "y": round(y, 1), "words": _node_words(n)}
            | ({"said": said[n["id"]]} if n["id"] in said else {})
            for n, (x, y) in zip(nodes, _rounded(placed), strict=True)
        ],
        "edges": edges,
        "links": links,
        "residual": residual,
        "attends": attends,
        "rows": _rows(placed, nodes),
        "width": round(placed.width, 1),
        "height": round(placed.height, 1),
    }


def _rounded(placed: Placed) -> list[tuple[float, float]]:
    return [(round(x, 1), round(y, 1)) for x, y in placed.places]


def _lean(value: Any) -> Any:
    """The same data with lists of floats to three significant digits: enough for a colour."""
    if isinstance(value, list):
        return [float(f"{v:.3g}") if isinstance(v, float) else _lean(v) for v in value]
    if isinstance(value, dict):
        return {k: _lean(v) for k, v in value.items()}
    return value


def _rows(placed: Placed, nodes: Sequence[Record]) -> list[dict[str, Any]]:
    """The rows with what is written beside them; `block` groups the rows of one block."""
    kinds = {n["site"]: n["kind"] for n in nodes}
    out = []
    for row in placed.rows:
        first = next(iter(row.sites))
        block, part = _block(first)
        if len(row.sites) > 1 or kinds[first] in ("query", "key", "value"):
            label = " ".join(_block(s)[1].rpartition(".")[2] for s in row.sites)
        elif kinds[first] == "output":
            label = "answers"
        else:
            label = ROWS.get(part, part)
        out.append({"block": block, "label": label, "sites": list(row.sites), "top": row.top, "bottom": row.bottom})
    return out


def _block(site: str) -> tuple[str, str]:
    """ "block0.attn.in" as ("block 0", "attn.in"); other names as ("", name)."""
    m = re.fullmatch(r"block(\d+)\.(.+)", site)
    return (f"block {m[1]}", m[2]) if m else ("", site)


def _node_words(node: Record) -> str:
    """What a node is, in words: "neuron of the MLP, block 0"."""
    block, part = _block(node["site"])
    words = KINDS.get(str(node["kind"]), str(node["kind"]))
    if node["kind"] == "input":
        words = "input token" if "label" in node else "input value"
    elif node["site"] == "final.in":
        words = "residual read before the answer"
    elif part.startswith("attn."):
        words += f", attention head {node['head']}" if "head" in node else " of the attention"
    elif part.startswith("mlp."):
        words += " of the MLP"
    return words + (f", {block}" if block else "")


# -- rendering ---------------------------------------------------------------------------------------------------------


def _render(
    run: Path,
    result: Record,
    circuits: list[Shown],
    network: Record | None,
    parts: Record | None,
    detectors: Record | None = None,
) -> str:
    env = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for filter_ in (number, percent, probability, interval, times, model_words, claim_words, task_words, signed):
        env.filters[filter_.__name__] = filter_
    sheets = [
        "page.css",
        *(["wiring.css"] if network else []),
        *(["modules.css"] if parts else []),
        *(["flows.css"] if detectors else []),
    ]
    style = "".join((HERE / sheet).read_text(encoding="utf-8") for sheet in sheets)
    script = (HERE / "page.js").read_text(encoding="utf-8")
    tasks, blobs = _tasks(result, circuits)
    drawn = [t for t in tasks if any(p["blob"] is not None for p in t["panes"])]
    names = columns(result)
    told = mapping(result.get("models"))
    name = run.resolve().name
    preset = f"{result['preset']} preset" if result.get("preset") else ""
    seed = f"seed {result['seed']}" if "seed" in result else ""
    order = {m: k for k, m in enumerate(MODELS)}
    only_network = network is not None and not tasks
    only_modules = parts is not None and not tasks and network is None
    return env.get_template("page.html.j2").render(
        policy=f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        name=name,
        flows=detectors,
        facts=detectors["facts"]
        if detectors
        else [b for b in (preset, seed, duration(result.get("seconds")) if "tasks" in result else "") if b],
        headline=detectors["headline"]
        if detectors
        else f"{name} in space"
        if only_network
        else f"The modules of {name}"
        if only_modules
        else headline(result, name),
        ratio=result.get("ratio_geomean") if number(result.get("ratio_geomean")) != "–" else None,
        lede=detectors["lede"]
        if detectors
        else WIRING
        if only_network
        else MODULES
        if only_modules
        else lede(result, result.get("subject") == "digits" or any(c.inputs == "vectors" for c in circuits)),
        network=network,
        modules=parts,
        ratios=ratio_rows(result),
        caveats=detectors["caveats"] if detectors else caveats(result, names),
        columns=names,
        rows=task_rows(result, names),
        models=[(m, _figures(mapping(told[m]))) for m in sorted(told, key=lambda m: order.get(m, len(order)))],
        tasks=tasks,
        first=(drawn or tasks or [None])[0],
        blobs=blobs,
        verdicts=VERDICTS,
        data=Markup(embed({"tasks": [_for_script(t) for t in tasks]})),
    )


def _figures(model: Record) -> dict[str, Any]:
    """A model's row in the table of models; the account of the blocks' weights where the result gives that one."""
    return {
        "loss": held_out_loss(model),
        **{k: model.get(f"block_{k}", model.get(k)) for k in ("nonzero", "total", "density")},
    }


def _tasks(result: Record, circuits: list[Shown]) -> tuple[list[dict[str, Any]], list[Markup]]:
    """Per task its panes and evidence; and the drawings, packed, to which panes refer by number."""
    records = {str(t.get("task")): t for t in result.get("tasks", []) if isinstance(t, Mapping)}
    names = list(dict.fromkeys([*records, *sorted({c.task for c in circuits})]))
    blobs: list[Markup] = []
    out = []
    for k, task in enumerate(names):
        mine = [c for c in circuits if c.task == task]
        have = {c.model for c in mine}
        for m, fact in records.get(task, {}).items():
            if isinstance(fact, Mapping) and m in MODELS and m != "random" and m not in have:
                mine.append(Shown(task, m, "", dict(fact), note=_why_none(fact, m)))
        for c in mine:
            _judge(c, {v: mapping(records.get(task, {}).get(c.model + v)) for v in ("", EDGE_PRUNED)})
        order = {m: i for i, m in enumerate(MODELS)}
        mine.sort(key=lambda c: order.get(c.model, len(order)))
        panes = []
        for c in mine:
            blob = None
            if c.drawing is not None:
                blob = len(blobs)
                blobs.append(Markup(pack(c.drawing)))
            panes.append({"title": c.title, "facts": fact_words(c.facts), "note": c.note, "blob": blob})
        about = next((c.about for c in mine if c.about), "")
        groups = [(c.title, c.evidence) for c in mine if c.evidence]
        told = {(m, e.get("claim")) for c in mine for e in c.evidence for m in (c.model, None)}
        mentioned = [e for e in result.get("evidence", []) if isinstance(e, Mapping) and e.get("task") == task]
        rest = [e for e in mentioned if (e.get("model"), e.get("claim")) not in told]
        if rest:
            groups = _merge(groups, rest, mine[0].title if mine else "")
        told_of = [(c.title, explanations.rows(c.explanations), explanations.in_numbers(c.explanations)) for c in mine]
        out.append(
            {
                "id": f"t{k}",
                "name": task,
                "about": about,
                "panes": panes,
                "evidence": groups,
                "said": [(title, rows, nodes) for title, rows, nodes in told_of if rows or nodes],
            }
        )
    return out, blobs


def _merge(groups: list[tuple[str, list[Record]]], rest: list[Record], title: str) -> list[tuple[str, list[Record]]]:
    """Evidence that only the result holds joins the group of the first circuit."""
    if groups and groups[0][0] == title:
        return [(title, [*groups[0][1], *rest]), *groups[1:]]
    return [(title, rest), *groups]


def _why_none(fact: Record, model: str) -> str:
    if fact.get("status", "ok") == "ok":
        return "The circuit's folder is not here, so it cannot be drawn."
    reason = f" {fact['reason']}" if fact.get("reason") else ""
    where = f" in the {model_words(model)} model" if model else ""
    return f"No circuit: nothing that the search tried{where} met the target loss.{reason}"


def fact_words(facts: Record) -> str:
    """One line about a circuit: nodes, edges, loss, accuracy, as far as known."""
    if facts.get("status", "ok") != "ok":
        return str(facts["status"])
    out = [f"{number(facts[k])} {k}" for k in ("nodes", "edges") if number(facts.get(k)) != "–"]
    out += [f"{number(facts['loss'])} nats"] if number(facts.get("loss")) != "–" else []
    out += [f"{percent(facts['accuracy'])} right"] if percent(facts.get("accuracy")) != "–" else []
    return " · ".join(out)


def _for_script(task: Record) -> dict[str, Any]:
    return {k: task[k] for k in ("id", "name", "panes")}


def pack(data: Any) -> str:
    """JSON, gzipped, in base64: a third of the size, and safe inside any element."""
    return base64.b64encode(gzip.compress(json.dumps(data, separators=(",", ":")).encode(), mtime=0)).decode()


def embed(data: Any) -> str:
    """JSON that cannot end the script element it stands in: ASCII only, with <, > and & escaped."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
