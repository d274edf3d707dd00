"""What every expression of the language is: frozen plain data of some kind, with values, a sentence and a length.

Knows readings and numbers. Does not know the kinds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from openwork.explain.words.reading import Reading

Words = Annotated[tuple[str, ...], Field(min_length=1)]
Steps = Annotated[int, Field(ge=0)]
KIND_BITS = 4.0  # one of some thirty kinds, the common ones shorter
NUMBER_BITS = 4.0  # a place, a count, a threshold
SHOWN = 8  # words read out of a set; of a larger one the rest are counted


def quoted(words: Sequence[str], joint: str = "or") -> str:
    """Words as a person reads them, odd characters escaped."""
    shown = [json.dumps(w, ensure_ascii=False) for w in words[:SHOWN]]
    if len(words) > SHOWN:
        return f"one of {', '.join(shown)} and {len(words) - SHOWN} others"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {joint} {shown[-1]}"


def short(x: float) -> str:
    """A number as it is read out."""
    return f"{x:.3g}"


class Node(BaseModel):
    """One expression. `bits`: how long it is, as what it costs to write down, given what there is to choose from."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    holds: ClassVar[bool] = True  # a condition, not a number

    def on(self, reading: Reading) -> np.ndarray:
        """Its values on a sample."""
        raise NotImplementedError

    def says(self) -> str:
        """A clause ("the token is ..."), or of a number a noun ("the position")."""
        raise NotImplementedError

    def bits(self, words: int) -> float:
        """Length in bits, where a word is one of so many."""
        per_word = math.log2(max(2, words))
        return KIND_BITS + sum(_bits(getattr(self, f), per_word) for f in type(self).model_fields if f != "kind")


def _bits(value: Any, per_word: float) -> float:
    if isinstance(value, Node):
        return value.bits(round(2**per_word))
    if isinstance(value, tuple):
        return sum(_bits(v, per_word) for v in value)
    if isinstance(value, str):
        return per_word
    return 0.0 if value is None or isinstance(value, bool) or value == 0 else NUMBER_BITS


__all__ = ["KIND_BITS", "NUMBER_BITS", "Node", "Steps", "Words", "quoted", "short"]
