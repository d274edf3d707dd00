"""Flows made by documented rules, so that an explanation of an alert can be checked against what made it an attack.

Normal traffic is a mix of web, mail, name lookups, remote logins, file transfers and backups with long-tailed sizes and
a daily rhythm. Each attack is normal traffic of a fitting kind with the columns of its rule changed so that the rule
holds, and nothing else; and normal traffic has rows in which every condition but one of a rule holds, so that no single
column gives an attack away. A rule is a conjunction:

    scan          many ports asked of one source within a minute, and the connections refused or unanswered
    flood         many connections to one service within a minute, and hardly a byte in each
    brute_force   failed logins, one after the other, at a service that asks for them
    exfiltration  much more sent than received, to a port that serves nothing known, at night
    beacon        nearly equal gaps between connections, and every connection of nearly equal size

Knows NumPy and its own rules. Does not know models. Same seed, same flows, whatever the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from openwork.tasks.flows.schema import Batch

LABEL = "label"
BLOCK = 8_192  # rows drawn with one generator; a batch

SERVICES = ("http", "https", "dns", "smtp", "ssh", "ftp", "backup", "other")
SHARES = (0.22, 0.34, 0.20, 0.05, 0.06, 0.03, 0.02, 0.08)
PORT_OF = {"http": 80, "https": 443, "dns": 53, "smtp": 25, "ssh": 22, "ftp": 21, "backup": 873}
LOGIN = ("ssh", "ftp")
FAILED_STATES = ("S0", "REJ")
STATES = ("SF", "S0", "REJ", "RSTO", "OTH")


@dataclass(frozen=True)
class Rule:
    """What makes a flow an attack of one class.

    columns  that its conditions are about
    says     the conditions, in words
    share    of all flows
    """

    columns: tuple[str, ...]
    says: str
    share: float


RULES: Mapping[str, Rule] = {
    "scan": Rule(("ports_60s", "conn_state"), "at least 40 ports in 60 s, connections S0 or REJ", 0.03),
    "flood": Rule(("conns_60s", "orig_bytes"), "at least 300 connections in 60 s, under 64 bytes sent in each", 0.04),
    "brute_force": Rule(("failed_logins", "service"), "at least 6 failed logins at ssh or ftp", 0.02),
    "exfiltration": Rule(
        ("orig_bytes", "service", "hour"), "at least 20 MB sent to an unknown service between 0 and 5 h", 0.015
    ),
    "beacon": Rule(("gap_spread", "size_spread"), "gaps and sizes that differ by less than 3 %", 0.02),
}
SAME = {"id.resp_p": "service"}  # columns that say what another says: of generated flows, the port names the service
NEAR = 0.1  # share of normal flows in which all conditions of a rule but one hold


def holds(rule: str, batch: Batch) -> np.ndarray:
    """Which rows [N] a rule's conditions hold for."""
    b = batch
    if rule == "scan":
        return (b["ports_60s"] >= 40) & np.isin(b["conn_state"], FAILED_STATES)
    if rule == "flood":
        return (b["conns_60s"] >= 300) & (b["orig_bytes"] < 64)
    if rule == "brute_force":
        return (b["failed_logins"] >= 6) & np.isin(b["service"], LOGIN)
    if rule == "exfiltration":
        return (b["orig_bytes"] >= 2e7) & (b["service"] == "other") & (b["hour"] < 5)
    assert rule == "beacon", rule
    return (b["gap_spread"] < 0.03) & (b["size_spread"] < 0.03)


@dataclass(frozen=True)
class Generated:
    """So many generated flows, in batches of BLOCK rows; can be iterated over again."""

    rows: int
    seed: int = 0

    def __iter__(self) -> Iterator[Batch]:
        for at in range(0, self.rows, BLOCK):
            n = min(BLOCK, self.rows - at)
            rng = np.random.default_rng([self.seed, at // BLOCK])
            yield {name: x[:n] for name, x in _block(rng).items()}


def _block(rng: np.random.Generator) -> dict[str, np.ndarray]:
    b = _normal(rng, BLOCK)
    label = rng.choice(
        ["normal", *RULES], BLOCK, p=[1 - sum(r.share for r in RULES.values()), *(r.share for r in RULES.values())]
    )
    near = (label == "normal") & (rng.random(BLOCK) < NEAR)
    which = rng.choice(list(RULES), BLOCK)
    u = rng.random(BLOCK)
    for name, rule in RULES.items():
        missed = (u * len(rule.columns)).astype(int)
        for condition in range(len(rule.columns)):
            _make(rng, b, name, condition, near & (which == name) & (missed != condition))
    for name in RULES:  # chance meets a rule now and then; such a normal flow is drawn out of it
        _unmake(b, name, holds(name, b) & (label == "normal"))
    for name, rule in RULES.items():
        for condition in range(len(rule.columns)):
            _make(rng, b, name, condition, label == name)
        for other in RULES:
            if other != name:
                _unmake(b, other, holds(other, b) & (label == name), spare=RULES[name].columns)
    b["label"] = label.astype(object)
    return b


def _normal(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    service = rng.choice(SERVICES, n, p=SHARES).astype(object)
    hour = np.clip(rng.normal(13.5, 5.0, n), 0, 23.99)
    hour = np.where(service == "backup", rng.uniform(0, 5, n), hour)
    scale = {"http": 6.2, "https": 6.8, "dns": 4.2, "smtp": 8.0, "ssh": 7.5, "ftp": 7.0, "backup": 15.0, "other": 6.0}
    middle = np.array([scale[s] for s in service])
    sent = np.exp(rng.normal(middle, 1.3))
    received = np.exp(rng.normal(np.where(service == "backup", 7.0, middle + 1.2), 1.6))
    login = np.isin(service, LOGIN)
    port = np.array([PORT_OF.get(s, 0) for s in service])
    strange = rng.integers(1024, 65_536, n)
    return {
        "hour": np.floor(hour),
        "proto": np.where(service == "dns", "udp", "tcp").astype(object),
        "service": service,
        "id.resp_p": np.where(port == 0, strange, port).astype(float),
        "duration": np.round(np.exp(rng.normal(np.where(service == "dns", -3.5, 0.4), 1.2)), 4),
        "orig_bytes": np.round(sent),
        "resp_bytes": np.round(received),
        "orig_pkts": np.ceil(sent / 700 + rng.poisson(3, n)),
        "resp_pkts": np.ceil(received / 900 + rng.poisson(2, n)),
        "conn_state": rng.choice(STATES, n, p=[0.88, 0.03, 0.03, 0.04, 0.02]).astype(object),
        "failed_logins": np.where(login, rng.poisson(0.25, n), 0).astype(float),
        "conns_60s": 1.0 + np.floor(np.exp(rng.normal(1.5, 1.1, n))),
        "ports_60s": 1.0 + rng.poisson(0.6, n),
        "gap_spread": np.round(rng.gamma(4.0, 0.22, n) + 0.03, 3),
        "size_spread": np.round(rng.gamma(3.0, 0.3, n) + 0.03, 3),
    }


def _make(rng: np.random.Generator, b: dict[str, np.ndarray], rule: str, condition: int, some: np.ndarray) -> None:
    """Changes some rows so that one condition of a rule holds."""
    column, n = RULES[rule].columns[condition], int(some.sum())
    if column in ("ports_60s", "conns_60s"):
        b[column][some] = np.floor({"ports_60s": 40, "conns_60s": 300}[column] * (1 + rng.gamma(1.5, 0.8, n)))
    elif column == "conn_state":
        b[column][some] = rng.choice(FAILED_STATES, n)
    elif column == "failed_logins":
        b[column][some] = 6.0 + rng.poisson(4, n)
    elif column == "hour":
        b[column][some] = np.floor(rng.uniform(0, 5, n))
    elif column in ("gap_spread", "size_spread"):
        b[column][some] = np.round(rng.uniform(0, 0.029, n), 3)
    elif column == "service":
        b[column][some] = rng.choice(LOGIN, n) if rule == "brute_force" else "other"
        ports = np.array([PORT_OF.get(s, 0) for s in b[column][some]])
        b["id.resp_p"][some] = np.where(ports == 0, rng.integers(1024, 65_536, n), ports)
        b["proto"][some] = "tcp"
    else:
        assert column == "orig_bytes"
        sent = rng.integers(0, 64, n) if rule == "flood" else np.round(2e7 * (1 + rng.gamma(1.5, 1.0, n)))
        b[column][some] = sent
        b["orig_pkts"][some] = np.ceil(sent / 700 + rng.poisson(3, n))


def _unmake(b: dict[str, np.ndarray], rule: str, some: np.ndarray, spare: tuple[str, ...] = ()) -> None:
    """Changes some rows, for which a rule holds by chance, so that it does not: by a column that is not spared."""
    column = next(c for c in RULES[rule].columns if c not in spare)
    value = {
        "ports_60s": 2.0, "conn_state": "SF", "conns_60s": 12.0, "orig_bytes": 640.0, "failed_logins": 1.0,
        "service": "https", "hour": 12.0, "gap_spread": 0.5, "size_spread": 0.5,
    }[column]  # fmt: skip
    b[column][some] = value


__all__ = ["LABEL", "RULES", "SAME", "Generated", "Rule", "holds"]
