"""Networks whose circuit is known by construction, to judge methods of discovery by: CASES, by name.

A new family is a new file and one entry of `BASES`; a new case of a family is a line in that file. Knows families and
names. Does not know methods.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from openwork.errors import UsageError, unknown
from openwork.planted import attention, boolean, patterns, programs
from openwork.planted.case import Case
from openwork.planted.components import at_components
from openwork.planted.distract import distract
from openwork.planted.score import row, score

BASES: dict[str, Callable[[int], Case]] = {
    **{n: partial(boolean.case, n) for n in boolean.FORMULAS},
    "constant_zero": partial(boolean.constant_case, "constant_zero", "zero"),
    "constant_mean": partial(boolean.constant_case, "constant_mean", "mean"),
    **{n: partial(patterns.case, n) for n in patterns.SCENES},
    **{n: partial(attention.case, n) for n in attention.HEADS},
    **{n: partial(programs.case, n) for n in programs.PROGRAMS},
}

# name of a case in a larger network -> (the case, noisy neurons per layer, decoys)
BUSY: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "xor+noise8": ("xor", 8, ()),
    "xor+noise64": ("xor", 64, ()),
    "majority5+noise32": ("majority5", 32, ()),
    "multiplexer4+noise32": ("multiplexer4", 32, ()),
    "parity3_deep+noise16": ("parity3_deep", 16, ()),
    "and_or_and+noise32": ("and_or_and", 32, ()),
    "parity3+decoys": ("parity3", 0, ("implications3", "multiplexer4")),
    "both_ors+decoys+noise16": ("both_ors", 16, ("parity3_deep",)),
    "cross_xor_frame+noise8": ("cross_xor_frame", 8, ()),
    "cross_without_frame+decoy": ("cross_without_frame", 0, ("cross_xor_frame",)),
    "roof_or_valley+noise8": ("roof_or_valley", 8, ()),
    "fraction_3x8+noise16": ("fraction_3x8", 16, ()),
    "seen_before_3x7+decoy": ("seen_before_3x7", 0, ("at_most_one_3x7",)),
    "seen_before_3x7+decoy+noise16": ("seen_before_3x7", 16, ("at_most_one_3x7",)),
    "same_as_first_3x6+decoys": ("same_as_first_3x6", 0, ("previous_3x6", "window_parity_3x6")),
    "previous_3x6+noise32": ("previous_3x6", 32, ()),
    "previous_twice_3x6+decoys+noise16": ("previous_twice_3x6", 16, ("same_as_first_3x6", "previous_3x6")),
    "induction_4x8+noise16": ("induction_4x8", 16, ()),
    "hand_first_4x8+decoy": ("hand_first_4x8", 0, ("third_4x8",)),
    "hand_induction_4x9+noise32": ("hand_induction_4x9", 32, ()),
    "hand_brackets_9_mean+noise16": ("hand_brackets_9_mean", 16, ()),
}


def _busy(name: str, seed: int) -> Case:
    base, noise, decoys = BUSY[name]
    others = [BASES[d](seed + 1 + i) for i, d in enumerate(decoys)]
    return distract(BASES[base](seed), name, seed, noise, others)


CASES: dict[str, Callable[[int], Case]] = {**BASES, **{n: partial(_busy, n) for n in BUSY}}


OF_HEADS = tuple(
    n for n in CASES if (BUSY[n][0] if n in BUSY else n) in attention.HEADS.keys() | programs.PROGRAMS.keys()
)  # the transformers, which have heads and MLPs as nodes too


def make_case(name: str, seed: int = 0, granularity: str = "weights") -> Case:
    """The case of that name; same seed, same case. Refuses an unknown name with the nearest one.

    granularity  "weights", or "components": heads and MLPs as nodes (`OF_HEADS`)
    """
    if name not in CASES:
        raise unknown("planted case", name, CASES)
    if seed < 0:
        raise UsageError(f"seed is {seed}; it must not be negative.")
    case = CASES[name](seed)
    return at_components(case) if granularity == "components" else case


__all__ = ["BASES", "BUSY", "CASES", "OF_HEADS", "Case", "distract", "make_case", "row", "score"]
