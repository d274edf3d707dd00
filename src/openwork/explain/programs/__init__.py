"""A circuit as code that runs: programs, how they come from weights, how they get short, how they are written down.

In order: `program` what a program is, `lower_*` a circuit as one that computes the same, `passes` and `simplify` make
shorter ones, `names`, `emit_*` source text. Beside these, other forms: rules, truth tables, formulas.
"""
