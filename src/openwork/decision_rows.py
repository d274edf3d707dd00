"""The strongest reasons for every decision in a table: parquet in, parquet out, a batch in memory at a time.

    in    vectors: x0, x1, ... (one numeric column per feature) or `input` (lists of numbers);
          text: `prompt` (strings) or `tokens` (lists of ids); and, if there is one, `id`, which is handed on
    out   row, id, answer, against (texts), model_difference, circuit_difference, remainder (of the sum), constants,
          inputs: list of (place, contribution), with the token's id for text; nodes: list of (node, contribution)

The output is written beside its place and renamed when it is whole. Rows come out in the order in which they came in.

Knows run folders and pyarrow, which is imported when it is needed. Does not know how an account is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openwork.decisions import Setting, open_setting, read_ids, sequence
from openwork.errors import RunError, UsageError
from openwork.explain.accounts.decision import Reasons
from openwork.files import new_file
from openwork.patching import Inputs
from openwork.progress import Progress
from openwork.workers import Job, map_jobs, report

Result = dict[str, Any]
VECTORS, PROMPTS = 4096, 64  # rows in memory


def why_rows(path: Path, circuit: str, rows: Path, out: Path, top: int = 3) -> Result:
    """Writes the `top` strongest reasons of every row of a parquet file (a job); returns how many and how exact.

    UsageError for columns that do not fit, RunError for a row that cannot be read; then nothing is written.
    """
    pa, pq = _arrow()
    if not rows.is_file():
        raise UsageError(f"--rows {rows}: there is no such file.")
    if out.resolve() == rows.resolve():
        raise UsageError("--out names the file that --rows reads; give it another name.")
    setting = open_setting(path, circuit)
    try:
        table = pq.ParquetFile(rows)
    except (pa.ArrowException, OSError) as e:
        raise UsageError(f"--rows {rows}: it is not a parquet file ({e}).") from e
    form = _form(setting, table.schema_arrow, rows)
    total, done, worst = table.metadata.num_rows, 0, 0.0
    size = PROMPTS if setting.explainer.is_text else VECTORS
    columns = [*form, *(["id"] if "id" in table.schema_arrow.names else [])]
    writer = None
    with new_file(out) as temp:
        try:
            for batch in table.iter_batches(batch_size=size, columns=columns):
                inputs = _inputs(setting, batch, form, done)
                found = setting.explainer.reasons(inputs, top)
                result = _table(setting, inputs, found, batch, done)
                writer = writer or pq.ParquetWriter(temp, result.schema)
                writer.write_table(result)
                done += batch.num_rows
                worst = max(worst, float(found.remainder.abs().max()))
                report("rows", done, total)
            if writer is None:
                raise UsageError(f"--rows {rows}: it holds no rows.")
        except pa.ArrowException as e:
            raise RunError(f"{rows} cannot be read after row {done - 1}: {e}.") from e
        finally:
            if writer is not None:
                writer.close()
    return {
        "run": str(path), "circuit": setting.name, "rows": done, "out": str(out), "largest_remainder": worst,
    }  # fmt: skip


def why_table(
    path: Path, circuit: str, rows: Path, out: Path, top: int = 3, progress: Progress | None = None
) -> Result:
    """The same as `why_rows`, with progress told."""
    (result,) = map_jobs([Job("why", why_rows, (path, circuit, rows, out, top))], 1, progress or Progress(False))
    return result


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise UsageError('tables in parquet need pyarrow: pip install "openwork[data]"') from e
    return pyarrow, pyarrow.parquet


def _form(setting: Setting, schema: Any, rows: Path) -> list[str]:
    """The columns that hold the input; one refusal with everything that is wrong with the columns."""
    import pyarrow.types as kinds

    names, problems = list(schema.names), list[str]()
    problems += [f"{n} stands there {names.count(n)} times" for n in dict.fromkeys(names) if names.count(n) > 1]

    def numeric(t: Any) -> bool:
        return kinds.is_floating(t) or kinds.is_integer(t)

    def listed(t: Any) -> bool:
        return kinds.is_list(t) or kinds.is_large_list(t) or kinds.is_fixed_size_list(t)

    given = dict(zip(names, schema.types, strict=True))
    if setting.explainer.is_text:
        whole = {
            "prompt": (lambda t: kinds.is_string(t) or kinds.is_large_string(t), "strings"),
            "tokens": (lambda t: listed(t) and kinds.is_integer(t.value_type), "lists of whole numbers"),
        }
        wide: list[str] = []
    else:
        size = setting.data.inputs[0][0].numel()
        whole = {"input": (lambda t: listed(t) and numeric(t.value_type), "lists of numbers")}
        wide = [f"x{i}" for i in range(size)]
    here = [n for n in whole if n in given]
    some = [n for n in wide if n in given]
    if len(here) + bool(some) > 1:
        problems.append(f"{' and '.join([*here, *some[:1]])} are two ways of saying the same: keep one")
    elif not here and not some:
        ways = [*(f"{n} ({what})" for n, (_, what) in whole.items()), *([f"x0 to x{len(wide) - 1}"] if wide else [])]
        problems.append(f"the input is missing: {' or '.join(ways)}")
    for n in here:
        fits, what = whole[n]
        if not fits(given[n]):
            problems.append(f"{n} holds {given[n]}, not {what}")
    if some and not here:
        missing = [n for n in wide if n not in given]
        if missing:
            problems.append(f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''} missing of x0 to {wide[-1]}")
        problems += [f"{n} holds {given[n]}, not numbers" for n in some if not numeric(given[n])]
    strange = [n for n in given if n not in (*whole, *wide, "id")]
    if strange:
        problems.append(f"{', '.join(strange[:5])}{' ...' if len(strange) > 5 else ''} not known: only id is handed on")
    if problems:
        raise UsageError(f"--rows {rows}: the columns do not fit: {'; '.join(problems)}.")
    return here or wide


def _inputs(setting: Setting, batch: Any, form: list[str], before: int) -> Inputs:
    """The rows as the model takes them; RunError names the first row that cannot be."""
    for name in form:
        column = batch.column(name)
        if column.null_count:
            row = before + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise RunError(f"row {row} has no {name}.")
    if setting.explainer.is_text:
        return _prompts(setting, batch.column(form[0]).to_pylist(), before)
    like = setting.data.inputs[0]
    size = like[0].numel()
    if form == ["input"]:
        column = batch.column("input")
        lengths = column.value_lengths().to_numpy() if hasattr(column, "value_lengths") else np.full(len(column), size)
        if (lengths != size).any():
            row = int(np.flatnonzero(lengths != size)[0])
            raise RunError(f"row {before + row} has {lengths[row]} numbers; this model reads {size}.")
        x = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, size)
    else:
        x = np.stack([batch.column(n).to_numpy(zero_copy_only=False) for n in form], 1).astype(np.float32)
    bad = ~np.isfinite(x).all(1)
    if bad.any():
        raise RunError(f"row {before + int(np.flatnonzero(bad)[0])} holds numbers that are not finite.")
    return (torch.from_numpy(np.ascontiguousarray(x)).reshape(len(x), *like.shape[1:]),)


def _prompts(setting: Setting, given: list[Any], before: int) -> Inputs:
    rows: list[Inputs] = []
    for i, value in enumerate(given):
        try:
            if isinstance(value, list) and None in value:
                raise UsageError("one of its tokens is missing.")
            ids = value if isinstance(value, list) else read_ids(setting, value)
            rows.append(sequence(setting, ids))
        except UsageError as e:
            raise RunError(f"row {before + i}: {e}") from e
    if len(rows[0]) == 1:
        return (torch.cat([r[0] for r in rows]),)
    width = max(r[0].shape[1] for r in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)  # what stands after the position asked is not read
    for i, r in enumerate(rows):
        tokens[i, : r[0].shape[1]] = r[0][0]
    return tokens, torch.cat([r[1] for r in rows])


def _table(setting: Setting, inputs: Inputs, found: Reasons, batch: Any, before: int) -> Any:
    """The results of one batch as an Arrow table."""
    import pyarrow as pa

    words, n = setting.explainer.words, len(found.answer)
    columns: dict[str, Any] = {"row": pa.array(np.arange(before, before + n))}
    if "id" in batch.schema.names:
        columns["id"] = batch.column("id")
    for name, index in (("answer", found.answer), ("against", found.against)):
        columns[name] = pa.array([words.output(i) for i in index.tolist()])
    for name in ("model", "circuit"):
        columns[f"{name}_difference"] = pa.array(getattr(found, name).numpy())
    columns["remainder"] = pa.array(found.remainder.numpy())
    columns["constants"] = pa.array(found.constants.numpy())
    parts = {"place": pa.array(found.places.flatten().numpy().astype(np.int32))}
    if setting.explainer.is_text:
        parts["token"] = pa.array(inputs[0].gather(1, found.places).flatten().numpy().astype(np.int32))
    parts["contribution"] = pa.array(found.inputs.flatten().numpy())
    columns["inputs"] = _lists(parts, found.inputs)
    names = pa.array(setting.explainer.node_names, type=pa.string())
    through = pa.array(found.through.flatten().numpy())
    nodes = {"node": names.take(pa.array(found.nodes.flatten().numpy())), "contribution": through}
    columns["nodes"] = _lists(nodes, found.through)
    return pa.table(columns)


def _lists(parts: dict[str, Any], values: Tensor) -> Any:
    """Lists of (name, ..., contribution), those that contribute nothing left out."""
    import pyarrow as pa

    full = values != 0
    offsets = np.concatenate([[0], full.sum(1).cumsum(0).numpy()]).astype(np.int32)
    mask = pa.array(full.flatten().numpy())
    structs = pa.StructArray.from_arrays([p.filter(mask) for p in parts.values()], names=list(parts))
    return pa.ListArray.from_arrays(pa.array(offsets), structs)


__all__ = ["why_rows", "why_table"]
