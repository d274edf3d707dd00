"""The card of a topic: what an author is shown of it, as plain data within a fixed number of tokens.

A card is made from the explain split alone; examples of any other split are refused. Everything in it is bounded by
construction: texts are clipped, lists are cut to a most, and while the whole is longer than LIMIT tokens the last item
of the least important list that has one is dropped (LEAST_FIRST is the order). How many were dropped it says itself.

Activity is shown as whole numbers from 0 to 10, ten being its largest size on the split (Bills et al. 2023 map to the
same scale); what lies below the reference carries a minus sign, which is not theirs: they cut it off.

Knows observations and plain data. Does not know models, nor the examples on which an explanation will be scored.

Shapes: N examples, T positions, V outputs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from openwork.errors import UsageError
from openwork.explain.words.measure import Measured
from openwork.explain.words.topic import Topic
from openwork.explain.words.wires import Wire, Wires

VERSION = 1
SPLIT = "explain"
LIMIT = 6_000  # tokens of a card
BEFORE, AFTER = 20, 4  # tokens shown around the position with the largest activity
WORD, LABEL, ABOUT = 24, 120, 240  # characters of a token, of an explanation of a neighbour, of a task
SCALE = 10
ACTIVE = 0.3  # share of the largest size from which a place counts as active (delphi's threshold)
GRID = 8  # rows and columns of a mean image, at most


class Part(BaseModel):
    """Plain data, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Size(Part):
    """How large the topic is: nodes in all, and by site, the largest first."""

    nodes: int
    sites: list[tuple[str, int]]


class Edge(Part):
    """An edge across the topic's border: its own node, the node beyond, and what was said about that one before."""

    mine: str
    other: str
    joins: str
    weight: float
    label: str


class Activity(Part):
    """What the topic's activity is and how it is distributed: deciles of all places, and the share that is active."""

    unit: str
    ten: float = Field(description="activity that is shown as 10")
    mean: float
    deciles: list[float]
    active: float = Field(description=f"share of places with at least {ACTIVE} of the largest size")


class Example(Part):
    """One example of the explain split.

    text    its tokens around the largest activity; acts: 0..10 for each of them
    values  for vectors: the features that differ most from their mean, by name; act: 0..10 of the whole example
    """

    text: list[str] = []
    acts: list[int] = []
    values: list[tuple[str, float]] = []
    act: int = 0
    right: str
    wrong: str


class Answer(Part):
    """Examples by their right answer: how many, the mean activity (0..10) where asked, and the mean damage, nats."""

    answer: str
    n: int
    act: float
    damage: float


class Effects(Part):
    """What is lost without it: nats of task loss, and the outputs whose logits move most (mean over examples)."""

    damage: float
    hurt: float = Field(description="share of examples whose loss rises by more than 0.01 nats")
    of: float = Field(description="task loss of the circuit itself, nats")
    raised: list[tuple[str, float]]
    lowered: list[tuple[str, float]]


class Lens(Part):
    """Outputs that its write promotes and suppresses by the direct path, where it is most active."""

    promoted: list[tuple[str, float]]
    suppressed: list[tuple[str, float]]


class Feature(Part):
    """A feature of a vector: its correlation with the activity, its mean where active and elsewhere."""

    name: str
    r: float
    active: float
    else_: float = Field(alias="elsewhere")

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)


class Sibling(Part):
    """Another topic of the same kind: what was said of it, how its activity goes with this one's, where they differ."""

    name: str
    label: str
    r: float
    not_here: Example | None = Field(description="an example on which the sibling is active and this topic is not")


class Card(Part):
    """What an author is shown of one topic. `dropped`: items left out of each list to keep within LIMIT tokens."""

    version: int = VERSION
    subject: str
    kind: str
    task: str
    about: str
    answers: list[str]
    split: str = SPLIT
    size: Size
    activity: Activity
    top: list[Example]
    lowest: list[Example]
    effects: Effects
    lens: Lens
    by_answer: list[Answer]
    by_task: list[tuple[str, float]] = Field(
        description="tasks of the run and how much their loss rises, nats, when it is ablated in the whole model"
    )
    features: list[Feature]
    image: list[list[int]] = Field(description="mean of the most active images less that of all, -9 to 9, coarse")
    members: list[tuple[str, str]] = Field(description="of a module or circuit: its nodes or modules, with labels")
    reads: list[Edge]
    writes: list[Edge]
    silent: list[Example]
    middle: list[Example]
    siblings: list[Sibling]
    dropped: dict[str, int] = {}


LEAST_FIRST = (
    "siblings", "middle", "size.sites", "by_task", "by_answer", "members", "reads", "writes", "features",
    "lens.suppressed", "lens.promoted", "effects.lowered", "effects.raised", "silent", "lowest", "image", "answers",
    "top",
)  # fmt: skip


# -- making ----------------------------------------------------------------------------------------------------------


def make_card(
    topic: Topic,
    measured: Measured,
    wires: Wires,
    *,
    task: str,
    about: str,
    answers: Sequence[str],
    outputs: Sequence[str],
    unit: str,
    labels: Mapping[str, str] | None = None,
    said_of_inputs: Mapping[str, str] | None = None,
    elsewhere: Mapping[str, float] | None = None,
    limit: int = LIMIT,
) -> Card:
    """The card of a topic; see the head of this file.

    measured        the topic and its siblings on the explain split; UsageError for another split
    outputs         V texts of the outputs
    unit            what the topic's activity is, in words
    labels          subject -> what was said of topics that were explained before
    said_of_inputs  what is known of nodes that are no topics, such as embedding channels, by name
    elsewhere       task -> mean rise of its loss, nats, when the topic is ablated in the whole model
    """
    seen = measured.observed
    if seen.sample.split != SPLIT:
        raise UsageError(
            f'a card is made from the split "{SPLIT}" alone, not from "{seen.sample.split}": what an explanation is '
            "scored on must not be seen by its author."
        )
    k, labels = seen.of(topic.name), dict(labels or {})
    known = {**(said_of_inputs or {}), **labels}
    for i, text in enumerate(outputs):
        known.setdefault(f"logits:{i}", f"output {text!r}")
    at = seen.activity[k]
    ten = _largest(at)
    order = _peaks(at)
    lows = -_peaks(-at)
    high_first = _distinct(measured, k, np.argsort(-order, kind="stable"), 6)
    low_first = [i for i in np.argsort(lows, kind="stable").tolist() if lows[i] < -ACTIVE * ten]
    size_of = np.maximum(order, -lows)
    silent = _distinct(measured, k, np.argsort(size_of, kind="stable"), 4)
    between = [i for i in np.argsort(-order, kind="stable").tolist() if 0.1 * ten < order[i]]
    middle = [between[int(len(between) * q)] for q in (0.2, 0.4, 0.6, 0.8)] if len(between) >= 8 else []

    def shown(chosen: Sequence[int], sign: int = 1) -> list[Example]:
        return [_example(measured, k, i, ten, sign) for i in chosen]

    card = Card(
        version=VERSION, split=SPLIT, dropped={},
        subject=clip(topic.name, LABEL), kind=topic.kind, task=clip(task, LABEL), about=clip(about, ABOUT),
        answers=[clip(a, WORD) for a in answers[:12]],
        size=Size(nodes=len(topic.nodes), sites=_sites(topic)),
        activity=_activity(at, ten, unit),
        top=shown(high_first),
        lowest=shown(_distinct(measured, k, low_first, 4), -1),
        silent=shown(silent), middle=shown([i for i in middle if i not in high_first]),
        effects=_effects(measured, k, outputs), lens=_lens(measured, k, topic, wires, outputs, ten),
        by_answer=_by_answer(measured, k, ten), by_task=_by_task(elsewhere or {}),
        features=_features(measured, k, ten), image=_image(measured, k),
        members=_members(topic, seen.topics, labels),
        reads=[_edge(w, known) for w in wires.reads[:10]], writes=[_edge(w, known) for w in wires.writes[:10]],
        siblings=_siblings(measured, k, ten, labels),
    )  # fmt: skip
    return trimmed(card, limit)


def trimmed(card: Card, limit: int = LIMIT) -> Card:
    """The card with items dropped, the least important first, until it has no more than `limit` tokens."""
    data, dropped = told(card), dict(card.dropped)
    for path in LEAST_FIRST:
        home = data
        *outer, name = path.split(".")
        for step in outer:
            home = home[step]
        while home[name] and count_tokens(as_json({**data, "dropped": dropped})) > limit:
            home[name] = home[name][:-1]
            dropped[path] = dropped.get(path, 0) + 1
    return Card.model_validate({**data, "dropped": dropped})


def told(card: Card) -> dict[str, Any]:
    """A card as plain data, without the fields that an example of its kind does not have."""
    return card.model_dump(mode="json", exclude_unset=True)


def as_json(card: Mapping[str, Any]) -> str:
    """A card as it is shown: JSON on one line, letters of all scripts as they are."""
    return json.dumps(card, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


_PIECES = re.compile(r"([A-Za-z]+)|(\d)|( +)|([^\x00-\x7f])|(.)", re.DOTALL)


def count_tokens(text: str) -> int:
    """At least as many tokens as byte-pair tokenizers of the usual sizes make of a text; never fewer than bytes / 3.

    Letters count a third each (rounded up per word), every digit and sign one, every byte of other scripts one; spaces
    count where there are several. Real tokenizers join signs and digits more often than not.
    """
    pieces = 0
    for letters, digit, spaces, other, _sign in _PIECES.findall(text):
        if letters:
            pieces += -(-len(letters) // 3)
        elif spaces:
            pieces += len(spaces) > 1
        elif other:
            pieces += len(other.encode("utf-8", "replace"))
        else:
            pieces += 1 if digit or _sign else 0
    return max(pieces, -(-len(text.encode("utf-8", "replace")) // 3))


def clip(text: str, most: int) -> str:
    """A text cut to so many characters, with a mark where it was; what cannot be written as UTF-8 is replaced."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= most else text[: most - 1] + "…"


# -- parts -----------------------------------------------------------------------------------------------------------


def _largest(at: np.ndarray) -> float:
    """The largest size of an activity; 1 where it is silent throughout, so that nothing is divided by 0."""
    sizes = np.abs(at[np.isfinite(at)])
    return float(sizes.max()) if sizes.size and sizes.max() > 0 else 1.0


def _peaks(at: np.ndarray) -> np.ndarray:
    """The largest activity of each example [N]; 0 where none counts."""
    rows = at.reshape(len(at), -1)
    filled = np.where(np.isfinite(rows), rows, -np.inf).max(1) if rows.shape[1] else np.zeros(len(rows))
    return np.where(np.isfinite(filled), filled, 0.0)


def _short(x: float) -> float:
    return float(f"{x:.3g}") if math.isfinite(x) else 0.0


def _scaled(x: float, ten: float) -> int:
    return round(SCALE * float(x) / ten) if math.isfinite(float(x)) else 0


def _sites(topic: Topic) -> list[tuple[str, int]]:
    count: dict[str, int] = {}
    for site, _ in topic.nodes:
        count[site] = count.get(site, 0) + 1
    return [(clip(s, LABEL), n) for s, n in sorted(count.items(), key=lambda e: -e[1])[:24]]


def _activity(at: np.ndarray, ten: float, unit: str) -> Activity:
    values = at[np.isfinite(at)]
    deciles = np.quantile(values, np.linspace(0, 1, 11)).tolist() if values.size else []
    return Activity(
        unit=clip(unit, LABEL), ten=_short(ten), mean=_short(float(values.mean())) if values.size else 0.0,
        deciles=[_short(d) for d in deciles],
        active=_short(float((np.abs(values) >= ACTIVE * ten).mean())) if values.size else 0.0,
    )  # fmt: skip


def _window(measured: Measured, k: int, i: int, sign: int) -> tuple[int, int, int]:
    """Begin, peak and end (past the last) of what is shown of an example of tokens."""
    seen = measured.observed
    last = int(seen.sample.asked[i])
    row = seen.activity[k, i, : last + 1]
    there = np.where(np.isfinite(row), sign * row, -np.inf)
    peak = int(there.argmax()) if np.isfinite(there).any() else last
    return max(0, peak - BEFORE), peak, min(last, peak + AFTER) + 1


def _distinct(measured: Measured, k: int, order: Sequence[int] | np.ndarray, most: int) -> list[int]:
    """The first examples of an order, of those that show the same text only one."""
    sample, out, known = measured.observed.sample, [], set()
    for i in np.asarray(order, dtype=np.int64).tolist():
        if sample.tokens is not None:
            begin, _, end = _window(measured, k, i, 1)
            text = tuple(sample.tokens[i, begin:end].tolist())
            if text in known:
                continue
            known.add(text)
        out.append(i)
        if len(out) == most:
            break
    return out


def _example(measured: Measured, k: int, i: int, ten: float, sign: int = 1) -> Example:
    seen = measured.observed
    sample, at = seen.sample, seen.activity[k, i]
    right = clip(sample.right[i], WORD) if sample.right else ""
    wrong = clip(sample.wrong[i], 2 * WORD) if sample.wrong else ""
    if sample.tokens is not None:
        begin, peak, end = _window(measured, k, i, sign)
        return Example(
            text=[clip(sample.words[t], WORD) for t in sample.tokens[i, begin:end].tolist()],
            acts=[_scaled(a, ten) for a in at[begin:end].tolist()], act=_scaled(at[peak], ten),
            right=right, wrong=wrong,
        )  # fmt: skip
    assert sample.features is not None
    x = sample.features
    far = np.abs(x[i] - x.mean(0)) / np.maximum(x.std(0), 1e-9)
    best = np.argsort(-far, kind="stable")[:8].tolist()
    values = [(clip(sample.names[f], WORD), _short(float(x[i, f]))) for f in best]
    return Example(values=values, act=_scaled(float(at), ten), right=right, wrong=wrong)


def _at_asked(measured: Measured, k: int) -> np.ndarray:
    """The activity [N] at the position asked, of vectors of the example."""
    seen = measured.observed
    at = seen.activity[k]
    return at if at.ndim == 1 else at[np.arange(len(at)), seen.sample.asked]


def _effects(measured: Measured, k: int, outputs: Sequence[str]) -> Effects:
    damage = measured.observed.damage[k]
    return Effects(
        damage=_short(float(damage.mean())), hurt=_short(float((damage > 0.01).mean())),
        of=_short(float(measured.base.mean())), **_ends_of(measured.shift[k], outputs, "raised", "lowered"),
    )  # fmt: skip


def _ends_of(values: np.ndarray, outputs: Sequence[str], up: str, down: str, most: int = 6) -> dict[str, Any]:
    """The outputs with the largest and the smallest values, in the direction that their sign says."""
    order = np.argsort(-values, kind="stable")

    def named(ids: Sequence[int]) -> list[tuple[str, float]]:
        return [(clip(outputs[i], WORD) if i < len(outputs) else str(i), _short(float(values[i]))) for i in ids]

    return {
        up: named([i for i in order[:most].tolist() if values[i] > 1e-6]),
        down: named([i for i in order[::-1][:most].tolist() if values[i] < -1e-6]),
    }


def _lens(measured: Measured, k: int, topic: Topic, wires: Wires, outputs: Sequence[str], ten: float) -> Lens:
    """The direct path of the topic's write where it is most active; of several nodes, of as much of each."""
    if wires.lens is None:
        return Lens(promoted=[], suppressed=[])
    seen, names = measured.observed, [t.name for t in measured.observed.topics]
    at = seen.activity[k]
    finite = np.isfinite(at)
    if not finite.any():
        return Lens(promoted=[], suppressed=[])
    where = finite & (np.abs(np.nan_to_num(at)) >= ACTIVE * ten)
    size = []
    for site, i in topic.nodes:
        name = f"{site}:{i}"
        at_node = seen.activity[names.index(name)] if name in names else at
        inside = at_node[where & np.isfinite(at_node)]
        size.append(float(inside.mean()) if inside.size else 0.0)
    return Lens(**_ends_of(np.asarray(size) @ wires.lens, outputs, "promoted", "suppressed"))


def _by_answer(measured: Measured, k: int, ten: float) -> list[Answer]:
    sample, damage, at = measured.observed.sample, measured.observed.damage[k], _at_asked(measured, k)
    right = np.asarray(sample.right, dtype=object)
    rows = []
    for answer in sorted(set(sample.right)):
        mine = right == answer
        act = at[mine & np.isfinite(at)]
        rows.append(
            Answer(
                answer=clip(answer, WORD),
                n=int(mine.sum()),
                damage=_short(float(damage[mine].mean())),
                act=_short(SCALE * float(act.mean()) / ten) if act.size else 0.0,
            )
        )
    return sorted(rows, key=lambda r: -abs(r.damage))[:12]


def _by_task(elsewhere: Mapping[str, float]) -> list[tuple[str, float]]:
    """The tasks that change most."""
    order = sorted(elsewhere, key=lambda name: (-abs(elsewhere[name]), name))
    return [(clip(name, LABEL), _short(elsewhere[name])) for name in order[:8]]


def _features(measured: Measured, k: int, ten: float) -> list[Feature]:
    """For vectors: the features that go with the activity, strongest first."""
    sample, at = measured.observed.sample, measured.observed.activity[k]
    if sample.features is None or at.ndim != 1 or len(at) < 2:
        return []
    x, active = sample.features, np.abs(at) >= ACTIVE * ten
    r = _correlations(x, at)
    rows = []
    for f in np.argsort(-np.abs(r), kind="stable")[:16].tolist():
        inside, outside = x[active, f], x[~active, f]
        rows.append(
            Feature(
                name=clip(sample.names[f], 2 * WORD),
                r=_short(float(r[f])),
                active=_short(float(inside.mean())) if inside.size else 0.0,
                elsewhere=_short(float(outside.mean())) if outside.size else 0.0,
            )
        )
    return rows


def _correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson correlation of each column [N, F] with [N]; 0 where either does not vary."""
    a, b = x - x.mean(0), y - y.mean()
    size = np.sqrt((a**2).sum(0) * (b**2).sum())
    return np.divide(b @ a, size, out=np.zeros(x.shape[1]), where=size > 0)


def _image(measured: Measured, k: int) -> list[list[int]]:
    """For images: the mean of the tenth with the largest activity less the mean of all, as a coarse picture."""
    sample, at = measured.observed.sample, measured.observed.activity[k]
    if sample.features is None or len(sample.shape) != 3 or at.ndim != 1 or not len(at):
        return []
    h, w, c = sample.shape
    best = np.argsort(-at, kind="stable")[: max(1, len(at) // 10)]
    picture = (sample.features[best].mean(0) - sample.features.mean(0)).reshape(h, w, c).mean(2)
    rows, columns = np.array_split(np.arange(h), min(GRID, h)), np.array_split(np.arange(w), min(GRID, w))
    coarse = np.asarray([[picture[np.ix_(r, s)].mean() for s in columns] for r in rows])
    most = np.abs(coarse).max()
    return [[round(9 * float(v) / most) for v in row] for row in coarse] if most > 0 else []


def _members(topic: Topic, topics: Sequence[Topic], labels: Mapping[str, str]) -> list[tuple[str, str]]:
    """What a module or circuit is made of and what was said of it: a circuit of its modules first, then of nodes."""
    if topic.kind == "node":
        return []
    mine = set(topic.nodes)
    inner = [t for t in topics if t.name != topic.name and t.kind != "circuit" and set(t.nodes) <= mine]
    inner.sort(key=lambda t: (t.kind != "module", t.name not in labels))  # stable: else in the order of the graph
    return [(clip(t.name, LABEL), clip(labels.get(t.name, ""), LABEL)) for t in inner[:40]]


def _edge(wire: Wire, known: Mapping[str, str]) -> Edge:
    return Edge(
        mine=clip(wire.mine, LABEL), other=clip(wire.other, LABEL), joins=wire.joins, weight=_short(wire.weight),
        label=clip(known.get(wire.other, ""), LABEL),
    )  # fmt: skip


def _siblings(measured: Measured, k: int, ten: float, labels: Mapping[str, str], most: int = 4) -> list[Sibling]:
    """The topics of the same kind whose activity is most like this one's, with a place that tells them apart."""
    seen = measured.observed
    me, at = seen.topics[k], seen.activity[k]
    others = [j for j, t in enumerate(seen.topics) if t.kind == me.kind and j != k]
    if not others or at.size < 2:
        return []
    places = np.isfinite(at)
    mine = at[places]
    rows = []
    for j in others:
        theirs = seen.activity[j][places]
        both = np.isfinite(theirs)
        r = float(_correlations(theirs[both, None], mine[both])[0]) if both.sum() > 1 else 0.0
        rows.append((-abs(r), j, r))
    out = []
    for _, j, r in sorted(rows)[:most]:
        size = _largest(seen.activity[j])
        gap = np.abs(np.nan_to_num(seen.activity[j])) / size - np.abs(np.nan_to_num(at)) / ten
        flat = gap.reshape(len(gap), -1).max(1) if gap.size else np.zeros(0)
        i = int(flat.argmax()) if flat.size else -1
        apart = _example(measured, j, i, size) if i >= 0 and flat[i] >= ACTIVE else None
        name = seen.topics[j].name
        label = clip(labels.get(name, ""), LABEL)
        out.append(Sibling(name=clip(name, LABEL), label=label, r=_short(r), not_here=apart))
    return out


__all__ = [
    "LIMIT", "VERSION", "Card", "Example", "as_json", "clip", "count_tokens", "make_card", "told", "trimmed",
]  # fmt: skip
