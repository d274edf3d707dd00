"""What a circuit and its parts do, in words that are tested.

In order: `topic` what an explanation is about, `measure` what that does on examples, `wires` and `card` what an author
is shown of it, `rules` and `llm` who writes, `predicates` what is written so that it can be run, `scores` how good that
is.
"""
