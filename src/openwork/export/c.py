"""A perceptron as one C99 file: no allocation, nothing but libm, small enough for a router.

Where few weights are left the file is straight-line code, one line per neuron, which a person can read; otherwise
tables of the nonzero weights. With int8 weights the tables hold one byte per weight and one scale per neuron. A
detector's file takes rows as they are logged: it has the schema's scaling, categories and calibration in it. Compiled
with -DOPENWORK_MAIN it is a program that reads CSV lines; with -DOPENWORK_MANY it judges many rows side by side too.

Knows the parts of a perceptron. Does not know runs or compilers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from openwork.errors import UsageError
from openwork.export.parts import Layer, Parts
from openwork.tasks.flows.schema import CUT, HUGE, MISSING, Schema

SIDE = 16  # rows that are judged side by side
UNROLLED = 4_000  # nonzero weights up to which a file is straight-line code


def to_c(parts: Parts, int8: bool = False) -> str:
    """The file's text; UsageError for an activation that it cannot have."""
    if parts.activation not in ("relu", "silu"):
        raise UsageError(f"no C is written for the activation {parts.activation}; relu and silu can be exported.")
    blocks = [
        _head(parts, int8), _constants(parts), _activation(parts), *_layers(parts, int8), _logits(parts),
    ]  # fmt: skip
    blocks += [_many(parts)] if _is_unrolled(parts, int8) else []
    if parts.schema is not None:
        blocks += [_categories(parts.schema), _features(parts.schema)]
        blocks += [_judge(parts)] if parts.decision is not None else []
    blocks += [_reader(parts)]
    return "\n".join(b.strip("\n") + "\n" for b in blocks if b)


def _head(parts: Parts, int8: bool) -> str:
    said = [*parts.about, f"{parts.nonzero} weights" + (", stored in one byte each" if int8 else "")]
    lines = "\n".join(f" * {_comment(x)}" for x in said)
    return f"""
/* A network of {" - ".join(map(str, parts.sizes))} nodes, written by openwork.
{lines}
 * Digest of the model: {parts.digest}
 * Everything here is static and pure: it may be called from several threads. */
#include <math.h>
#include <stddef.h>
"""


def _comment(text: str) -> str:
    return " ".join(text.replace("*/", "* /").replace("/*", "/ *").split())


def _constants(parts: Parts) -> str:
    s = parts.schema
    lines = [f"enum {{ OPENWORK_FEATURES = {len(parts.inputs)}, OPENWORK_OUTPUTS = {len(parts.outputs)} }};"]
    lines.append(f"const char *const openwork_output[OPENWORK_OUTPUTS] = {{{', '.join(map(_string, parts.outputs))}}};")
    if s is not None:
        names = [c.name for c in s.used]
        lines.append(f"enum {{ OPENWORK_COLUMNS = {len(names)} }};")
        lines.append(f"const char *const openwork_column[OPENWORK_COLUMNS] = {{{', '.join(map(_string, names))}}};")
        lines.append(
            "/* A flow, column by column: a number (NAN where missing), or the place of a category's value as\n"
            " * openwork_category gives it. */\ntypedef struct { double value[OPENWORK_COLUMNS]; } openwork_flow;"
        )
    return "\n".join(lines)


def _string(x: str) -> str:
    """A C string literal: bytes other than plain ASCII become octal escapes, which cannot run on into what follows."""
    out = "".join(chr(b) if 32 <= b < 127 and b not in b'"\\?' else f"\\{b:03o}" for b in x.encode())
    return f'"{out}"'


def _activation(parts: Parts) -> str:
    if not any(len(b) for _, b in parts.layers[:-1]):
        return ""  # an unused function is an error to some compilers
    body = {"relu": "return z > 0.0f ? z : 0.0f;", "silu": "return z / (1.0f + expf(-z));"}[parts.activation]
    return f"static float openwork_bend(float z) {{ {body} }}"


def _number(v: float) -> str:
    text = repr(float(np.float32(v))) if np.float32(v) != 0 else "0.0"
    text = np.format_float_scientific(np.float32(v), unique=True) if "e" in text or len(text) > 12 else text
    text = text if "." in text or "e" in text else text + ".0"
    return text.replace("+", "") + "f"


def _is_unrolled(parts: Parts, int8: bool) -> bool:
    return (parts.nonzero <= UNROLLED and not int8) or min(parts.sizes) == 0  # a table needs an entry


def _layers(parts: Parts, int8: bool) -> Iterator[str]:
    unrolled = _is_unrolled(parts, int8)
    for i, layer in enumerate(parts.layers):
        last = i == len(parts.layers) - 1
        yield _unrolled(i, layer, last, parts.inputs if i == 0 else ()) if unrolled else _tables(i, layer, last, int8)


def _unrolled(i: int, layer: Layer, last: bool, names: Sequence[str]) -> str:
    w, b = layer
    lines = [f"static void openwork_layer{i}(const float *x, float *y) {{"]
    lines += ["    (void)x;"] if not (w != 0).any() else []
    lines += ["    (void)y;"] if not len(b) else []
    for k in range(len(b)):
        places = np.flatnonzero(w[k]).tolist()
        terms = [f"{_number(w[k, j])} * x[{j}]" for j in places]
        total = " + ".join([_number(b[k]), *terms]).replace("+ -", "- ")
        note = f" /* {_comment(', '.join(names[j] for j in places))} */" if len(names) and len(places) else ""
        lines.append(f"    y[{k}] = {total if last else f'openwork_bend({total})'};{note}")
    return "\n".join([*lines, "}"])


def _tables(i: int, layer: Layer, last: bool, int8: bool) -> str:
    """Nonzero weights row after row (CSR)."""
    w, b = layer
    rows, columns = np.nonzero(w)
    values = w[rows, columns]
    starts = np.concatenate([[0], np.cumsum((w != 0).sum(1))])
    index = "unsigned char" if w.shape[1] <= 256 else "unsigned short"
    if w.shape[1] > 65_536:
        raise UsageError(f"layer {i} has {w.shape[1]:,} inputs; C is written for up to 65,536.")
    lines = [
        f"static const unsigned openwork_start{i}[{len(starts)}] = {{{_list(starts)}}};",
        f"static const {index} openwork_from{i}[{max(1, len(columns))}] = {{{_list(columns) or '0'}}};",
        f"static const float openwork_bias{i}[{len(b)}] = {{{', '.join(map(_number, b))}}};",
    ]
    scale = ""
    if int8:
        small, scales = quantised(w)
        lines.append(
            f"static const signed char openwork_weight{i}[{max(1, len(values))}] = "
            f"{{{_list(small[rows, columns]) or '0'}}};"
        )
        lines.append(f"static const float openwork_scale{i}[{len(b)}] = {{{', '.join(map(_number, scales))}}};")
        scale = f"openwork_scale{i}[k] * "
    else:
        said = ", ".join(map(_number, values)) or "0.0f"
        lines.append(f"static const float openwork_weight{i}[{max(1, len(values))}] = {{{said}}};")
    cast = "(float)" if int8 else ""
    value = f"openwork_bias{i}[k] + {scale}sum"
    lines.append(f"""static void openwork_layer{i}(const float *x, float *y) {{
    for (unsigned k = 0; k < {len(b)}u; k++) {{
        float sum = 0.0f;
        for (unsigned j = openwork_start{i}[k]; j < openwork_start{i}[k + 1]; j++)
            sum += {cast}openwork_weight{i}[j] * x[openwork_from{i}[j]];
        y[k] = {value if last else f"openwork_bend({value})"};
    }}
}}""")
    return "\n".join(lines)


def _list(values: np.ndarray) -> str:
    return ", ".join(str(int(v)) for v in values)


def quantised(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights [out, in] as int8 and one scale per row [out], symmetric: w is about scale * int8."""
    scales = np.abs(w).max(1, initial=0.0) / 127
    safe = np.where(scales > 0, scales, 1.0)
    small = np.round(w / safe[:, None])
    return np.clip(small, -127, 127).astype(np.int8), safe.astype(np.float32)


def _logits(parts: Parts) -> str:
    sizes = parts.sizes[1:-1]
    lines = ["/* Outputs of features x[OPENWORK_FEATURES] in y[OPENWORK_OUTPUTS]. */"]
    lines.append("void openwork_logits(const float *x, float *y) {")
    lines += [f"    float h{i}[{max(1, n)}];" for i, n in enumerate(sizes)]
    for i in range(len(parts.layers)):
        to = "y" if i == len(parts.layers) - 1 else f"h{i}"
        lines.append(f"    openwork_layer{i}({'x' if i == 0 else f'h{i - 1}'}, {to});")
    return "\n".join([*lines, "}"])


def _many(parts: Parts) -> str:
    """The same for rows side by side, which a compiler turns into vector instructions; left out of small devices."""
    sizes, first = parts.sizes, parts.layers[0][0]
    used = np.flatnonzero((first != 0).any(0)).tolist()
    place = {j: k for k, j in enumerate(used)}
    lines = [
        "#ifdef OPENWORK_MANY",
        f"enum {{ OPENWORK_SIDE = {SIDE} }};",
        "static void openwork_side(float (*x)[OPENWORK_SIDE], float (*y)[OPENWORK_SIDE]) {",
        *(f"    float h{i}[{n}][OPENWORK_SIDE];" for i, n in enumerate(sizes[1:-1]) if n),
    ]
    for i, (w, b) in enumerate(parts.layers):
        last = i == len(parts.layers) - 1
        source, to = "x" if i == 0 else f"h{i - 1}", "y" if last else f"h{i}"
        for k in range(len(b)):
            at = [(j, place[j] if i == 0 else j) for j in np.flatnonzero(w[k]).tolist()]
            terms = [f"{_number(w[k, j])} * {source}[{p}][r]" for j, p in at]
            total = " + ".join([_number(b[k]), *terms]).replace("+ -", "- ")
            value = total if last else f"openwork_bend({total})"
            lines.append(f"    for (int r = 0; r < OPENWORK_SIDE; r++) {to}[{k}][r] = {value};")
    lines += ["    (void)x;"] if not used else []
    return "\n".join([
        *lines,
        "}",
        "/* Outputs y[rows][OPENWORK_OUTPUTS] of features x[rows][OPENWORK_FEATURES]. */",
        "void openwork_logits_many(const float *x, float *y, size_t rows) {",
        f"    float in[{max(1, len(used))}][OPENWORK_SIDE], out[OPENWORK_OUTPUTS][OPENWORK_SIDE];",
        "    for (size_t at = 0; at < rows; at += OPENWORK_SIDE) {",
        "        size_t n = rows - at < OPENWORK_SIDE ? rows - at : OPENWORK_SIDE;",
        "        for (size_t r = 0; r < OPENWORK_SIDE; r++) { /* past the end, the last row again */",
        "            const float *row = x + (at + (r < n ? r : n - 1)) * OPENWORK_FEATURES;",
        *(f"            in[{k}][r] = row[{j}];" for k, j in enumerate(used)),
        *([] if used else ["            (void)row;"]),
        "        }",
        "        openwork_side(in, out);",
        "        for (size_t r = 0; r < n; r++)",
        "            for (size_t c = 0; c < OPENWORK_OUTPUTS; c++) y[(at + r) * OPENWORK_OUTPUTS + c] = out[c][r];",
        "    }",
        "}",
        "#endif",
    ])  # fmt: skip


# -- rows of flows -----------------------------------------------------------------------------------------------------


def _categories(schema: Schema) -> str:
    lines, cases = [], []
    for i, c in enumerate(schema.used):
        if c.kind == "category":
            lines.append(
                f"static const char *const openwork_value{i}[{max(1, len(c.values))}] = "
                f"{{{', '.join(map(_string, c.values)) or '0'}}};"
            )
            cases.append(f"    case {i}: values = openwork_value{i}; n = {len(c.values)}; break;")
    return "\n".join([
        *lines,
        "/* The place of a category's value, one past the last for any other value; -1 for a column of numbers. */",
        "int openwork_category(int column, const char *value, size_t length) {",
        "    const char *const *values = NULL;",
        "    int n = 0;",
        "    switch (column) {",
        *cases,
        "    default: (void)value; (void)length; return -1;",
        "    }",
        "    for (int k = 0; k < n; k++) {",
        "        size_t j = 0;",
        "        while (j < length && values[k][j] != '\\0' && values[k][j] == value[j]) j++;",
        "        if (j == length && values[k][j] == '\\0') return k;",
        "    }",
        "    return n;",
        "}",
    ])  # fmt: skip


def _features(schema: Schema) -> str:
    lines = [
        "static float openwork_scaled(double value, float centre, float scale, int spread) {",
        "    if (!(value - value == 0.0)) return 0.0f; /* missing: the mean */",
        f"    float v = value < -{HUGE} ? -{HUGE}f : value > {HUGE} ? {HUGE}f : (float)value;",
        "    float z = ((spread ? asinhf(v) : v) - centre) / scale;",
        f"    return z < -{CUT}f ? -{CUT}f : z > {CUT}f ? {CUT}f : z;",
        "}",
        "/* Features x[OPENWORK_FEATURES] of a flow. */",
        "void openwork_features(const openwork_flow *flow, float *x) {",
        "    for (int i = 0; i < OPENWORK_FEATURES; i++) x[i] = 0.0f;",
    ]
    at = 0
    for i, c in enumerate(schema.used):
        if c.kind == "number":
            told = f"{_number(c.centre)}, {_number(c.scale)}, {int(c.spread)}"
            lines.append(f"    x[{at}] = openwork_scaled(flow->value[{i}], {told});")
            if c.missing:
                lines.append(f"    x[{at + 1}] = flow->value[{i}] - flow->value[{i}] == 0.0 ? 0.0f : 1.0f;")
        else:
            n = len(c.values)
            lines.append(
                f"    x[{at} + (flow->value[{i}] >= 0 && flow->value[{i}] < {n} ? (int)flow->value[{i}] : {n})] = 1.0f;"
            )
        at += len(c.features)
    return "\n".join([*lines, "}"])


def _judge(parts: Parts) -> str:
    d = parts.decision
    assert d is not None
    return f"""
/* The class of a flow: 0 where it is no alert, else the likeliest attack. *score is the probability of an attack. */
int openwork_judge(const openwork_flow *flow, float *score) {{
    static const float offset[OPENWORK_OUTPUTS] = {{{", ".join(_number(v) for v in d.offset)}}};
    float x[OPENWORK_FEATURES], y[OPENWORK_OUTPUTS], top = -INFINITY, sum = 0.0f, attacks = 0.0f;
    int best = 1;
    openwork_features(flow, x);
    openwork_logits(x, y);
    for (int c = 0; c < OPENWORK_OUTPUTS; c++) {{
        y[c] = y[c] / {_number(d.temperature)} + offset[c];
        if (y[c] > top) top = y[c];
        if (c > 1 && y[c] > y[best]) best = c;
    }}
    for (int c = 0; c < OPENWORK_OUTPUTS; c++) {{
        float e = expf(y[c] - top);
        sum += e;
        if (c > 0) attacks += e;
    }}
    *score = attacks / sum;
    return *score >= {_number(d.threshold)} ? best : 0;
}}
"""


# -- a program ---------------------------------------------------------------------------------------------------------


def _reader(parts: Parts) -> str:
    if parts.schema is None or parts.decision is None:
        return _PLAIN_MAIN
    missing = ", ".join(_string(m) for m in MISSING)
    kinds = ", ".join("1" if c.kind == "category" else "0" for c in parts.schema.used)
    return _FLOW_MAIN.replace("@MISSING@", missing).replace("@MANY@", str(len(MISSING))).replace("@KINDS@", kinds)


_PLAIN_MAIN = """
#ifdef OPENWORK_MAIN
#include <stdio.h>
/* Reads features, separated by blanks or line ends, and prints a line of outputs for each OPENWORK_FEATURES of them. */
int main(void) {
    float x[OPENWORK_FEATURES], y[OPENWORK_OUTPUTS];
    for (;;) {
        for (int i = 0; i < OPENWORK_FEATURES; i++) {
            int got = scanf("%f", &x[i]);
            if (got == EOF && i == 0) return 0;
            if (got != 1) { fputs("a row is cut short, or holds something that is no number\\n", stderr); return 1; }
        }
        openwork_logits(x, y);
        for (int c = 0; c < OPENWORK_OUTPUTS; c++) printf(c ? " %.9g" : "%.9g", (double)y[c]);
        putchar('\\n');
    }
}
#endif
"""

_FLOW_MAIN = r"""
#ifdef OPENWORK_MAIN
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
enum { OPENWORK_LINE = 16384, OPENWORK_FIELDS = 512 };

/* Cuts a line into fields at commas (or at tabs, where it has one), in place; quotes around a field are dropped.
 * Returns how many there are, or -1 for too many or a quote without an end. */
static int openwork_split(char *line, char **field) {
    char at = strchr(line, '\t') ? '\t' : ',';
    int n = 0;
    for (char *p = line;;) {
        if (n == OPENWORK_FIELDS) return -1;
        if (*p == '"') {
            char *end = strchr(p + 1, '"');
            if (!end || (end[1] != at && end[1] != '\0')) return -1;
            field[n++] = p + 1;
            *end = '\0';
            if (end[1] == '\0') return n;
            p = end + 2;
        } else {
            char *end = strchr(p, at);
            field[n++] = p;
            if (!end) return n;
            *end = '\0';
            p = end + 1;
        }
    }
}

/* A field as the value of a column; 0 where text stands in a column of numbers. */
static int openwork_value(int column, const char *text, double *value) {
    static const char *const missing[@MANY@] = {@MISSING@};
    static const char category[OPENWORK_COLUMNS] = {@KINDS@};
    static const char blanks[] = " \t\r\n\v\f";
    int gone = 0;
    for (int k = 0; k < @MANY@; k++) gone = gone || strcmp(text, missing[k]) == 0;
    if (category[column]) {
        *value = gone ? NAN : openwork_category(column, text, strlen(text));
        return 1;
    }
    if (gone) { *value = NAN; return 1; }
    text += strspn(text, blanks);
    if ((text[0] == 'T' || text[0] == 'F') && text[1 + strspn(text + 1, blanks)] == '\0') {
        *value = text[0] == 'T';
        return 1;
    }
    if (strpbrk(text, "xX(")) return 0; /* strtod knows hexadecimals and nan(...), flow logs do not */
    char *end;
    *value = strtod(text, &end);
    return end != text && end[strspn(end, blanks)] == '\0';
}

/* One line of a log; place[column] is the field that holds it, fields how many a line has. 0 for a broken line. */
static int openwork_parse(char *line, const int *place, int fields, openwork_flow *flow) {
    char *field[OPENWORK_FIELDS];
    if (openwork_split(line, field) != fields) return 0;
    for (int c = 0; c < OPENWORK_COLUMNS; c++)
        if (!openwork_value(c, field[place[c]], &flow->value[c])) return 0;
    return 1;
}

/* The fields that hold the columns, as the header line names them, each once. Returns how many there are, or -1. */
static int openwork_header(char *line, int *place) {
    char *field[OPENWORK_FIELDS];
    int n = openwork_split(line, field);
    for (int c = 0; c < OPENWORK_COLUMNS; c++) {
        place[c] = -1;
        for (int k = 0; k < n; k++)
            if (strcmp(field[k], openwork_column[c]) == 0) {
                if (place[c] >= 0) return -1;
                place[c] = k;
            }
        if (place[c] < 0) return -1;
    }
    return n;
}

#ifndef OPENWORK_NO_MAIN
/* Reads a log with a header line and prints a line for every flow: its class, and the probability of an attack. */
int main(void) {
    static char line[OPENWORK_LINE];
    int place[OPENWORK_COLUMNS], fields = 0;
    unsigned long broken = 0;
    while (fgets(line, sizeof line, stdin)) {
        size_t n = strlen(line);
        if (n && line[n - 1] != '\n' && !feof(stdin)) { /* too long: the rest of it is read and left out */
            for (int c = getchar(); c != EOF && c != '\n'; c = getchar()) {}
            broken++;
            continue;
        }
        while (n && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = '\0';
        if (!n) continue;
        if (!fields) {
            fields = openwork_header(line, place);
            if (fields < 0) {
                fputs("the header line does not name every column that is needed, once\n", stderr);
                return 2;
            }
            continue;
        }
        openwork_flow flow;
        float score;
        if (!openwork_parse(line, place, fields, &flow)) { broken++; continue; }
        int judged = openwork_judge(&flow, &score);
        printf("%s %.9g\n", openwork_output[judged], (double)score);
    }
    if (broken) fprintf(stderr, "%lu broken lines were left out\n", broken);
    return 0;
}
#endif
#endif
"""

__all__ = ["UNROLLED", "quantised", "to_c"]
