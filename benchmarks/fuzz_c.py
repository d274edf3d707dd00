"""Looks for bytes that break the exported C of a detector, with libFuzzer under address and undefined-behaviour checks.

    python benchmarks/fuzz_c.py RUN [--seconds 600] [--keep DIR]

RUN is a run folder with a detector, or a folder of `openwork run flows`. Needs clang with its runtime (Debian: clang,
libclang-rt-14-dev). The first line of an input is taken as a header, every other as a flow, as the program does that
-DOPENWORK_MAIN makes; where the header is none, the lines are read by a right one, so that most inputs reach the
judge. Beside what the sanitizers see, it is an error when a feature leaves its range, a class or a category's place is
none of those there are, or a score is no probability. Prints one JSON object; exits with 1 where something was found.
The same seed starts the same way, but how far it comes depends on the machine.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from openwork import threads  # noqa: F401  before torch

import numpy as np  # isort: skip

from openwork.errors import RunError, UsageError
from openwork.export import Parts, to_c
from openwork.runs import open_run
from openwork.shipping import parts_of
from openwork.tasks.flows.schema import CUT, MISSING, Schema

CLANG = ("clang", "clang-19", "clang-18", "clang-17", "clang-16", "clang-15", "clang-14")
FLAGS = (
    "-std=c99", "-g", "-O1", "-fsanitize=fuzzer,address,undefined,float-cast-overflow",
    "-fno-sanitize-recover=all", "-DOPENWORK_MAIN", "-DOPENWORK_NO_MAIN",
)  # fmt: skip
LONGEST = 4096  # bytes of an input

TARGET = """
#include <stdint.h>
static void openwork_must(int good, const char *what) {
    if (!good) { fprintf(stderr, "BROKEN: %s\\n", what); abort(); }
}
static void openwork_one(char *line, const int *place, int fields) {
    openwork_flow flow;
    float x[OPENWORK_FEATURES], score;
    if (!openwork_parse(line, place, fields, &flow)) return;
    openwork_features(&flow, x);
    for (int i = 0; i < OPENWORK_FEATURES; i++)
        openwork_must(x[i] >= -@CUT@f && x[i] <= @CUT@f, "a feature left its range");
    int judged = openwork_judge(&flow, &score);
    openwork_must(judged >= 0 && judged < OPENWORK_OUTPUTS, "a class that there is not");
    openwork_must(score >= 0.0f && score <= 1.0f, "a score that is no probability");
    for (int c = 0; c < OPENWORK_COLUMNS; c++) /* of a category, the place, or NAN */
        openwork_must(openwork_category(c, "", 0) < 0 || !(flow.value[c] < 0), "a place that there is not");
}
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char header[] = @HEADER@;
    int place[OPENWORK_COLUMNS], fields = 0;
    for (size_t at = 0; at < size;) {
        size_t n = 0;
        while (at + n < size && data[at + n] != '\\n') n++;
        char *line = malloc(n + 1); /* of its own, so that a byte too far is seen */
        if (!line) abort();
        memcpy(line, data + at, n);
        line[n] = '\\0';
        at += n + 1;
        if (fields) openwork_one(line, place, fields);
        else if ((fields = openwork_header(line, place)) < 0) {
            char right[sizeof header];
            memcpy(right, header, sizeof header);
            fields = openwork_header(right, place);
            openwork_must(fields == OPENWORK_COLUMNS, "the right header is refused");
        }
        free(line);
    }
    return 0;
}
"""
NUMBERS = ("0", "-1", "1e300", "-1e300", "1e-320", "inf", "-inf", "nan(7)", "0x1p4", " 3", "3 ", "1e999", "T", "F", ".")


def main() -> int:
    """Builds the target, runs it, prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="where inputs that broke it are kept")
    asked = parser.parse_args()
    at = asked.run / "sparse" if (asked.run / "sparse" / "detector").is_dir() else asked.run
    with tempfile.TemporaryDirectory() as temp:
        result = fuzzed(parts_of(open_run(at)), asked.seconds, asked.seed, Path(temp), asked.keep)
    print(json.dumps(result, indent=2))
    return 1 if result["findings"] else 0


def fuzzed(parts: Parts, seconds: int, seed: int, temp: Path, keep: Path | None = None) -> dict[str, Any]:
    """What so many seconds of fuzzing came to: executions, coverage, findings (the first line of each).

    UsageError where the parts are no detector's, or there is no clang.
    """
    if parts.schema is None or parts.decision is None:
        raise UsageError("only the C of a detector reads flows; name a run of openwork run flows.")
    program = built(parts, parts.schema, temp)
    corpus, found = temp / "corpus", keep or temp / "found"
    corpus.mkdir()
    found.mkdir(parents=True, exist_ok=True)
    before = {p.name for p in found.iterdir()}
    for i, data in enumerate(seeds(parts.schema)):
        (corpus / f"seed{i}").write_bytes(data)
    (temp / "words").write_text("".join(f'"{_escaped(w)}"\n' for w in words(parts.schema)))
    command = [
        str(program), str(corpus), f"-dict={temp / 'words'}", f"-max_total_time={seconds}", f"-max_len={LONGEST}",
        f"-seed={seed}", f"-artifact_prefix={found}/", "-timeout=5", "-print_final_stats=1",
    ]  # fmt: skip
    print(f"fuzzing for {seconds} s", file=sys.stderr)
    ran = subprocess.run(command, capture_output=True, check=False)
    said = ran.stderr.decode(errors="replace")
    tell = re.compile(r"^(?:.*ERROR: .*|.*runtime error: .*|BROKEN: .*)$", re.MULTILINE)
    new = sorted(p.name for p in found.iterdir() if p.name not in before)
    findings = tell.findall(said)[:5]
    if ran.returncode and not findings:
        findings = [said.strip().splitlines()[-1] if said.strip() else f"ended with code {ran.returncode}"]
    status = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", said)
    stats = dict(re.findall(r"^stat::(\w+):\s+(\d+)$", said, re.MULTILINE))
    covered, features, inputs = map(int, status[-1]) if status else (0, 0, 0)
    return {
        "executions": int(stats.get("number_of_executed_units", 0)), "seconds": seconds,
        "per_second": int(stats.get("average_exec_per_sec", 0)), "edges_covered": covered, "features_covered": features,
        "edges": edges_of(said), "corpus": inputs, 
        "lines": None if findings else lines_covered(parts, corpus, temp),
        "findings": findings, "inputs": new,
    }  # fmt: skip


def clang() -> str:
    """The name of a clang; UsageError where there is none."""
    found = next((c for c in CLANG if shutil.which(c)), None)
    if found is None:
        raise UsageError("fuzzing needs clang and its runtime: apt-get install clang libclang-rt-14-dev")
    return found


def target(parts: Parts, schema: Schema) -> str:
    """The C file with libFuzzer's entry."""
    header = json.dumps(",".join(f'"{c.name}"' for c in schema.used))
    return to_c(parts) + TARGET.replace("@HEADER@", header).replace("@CUT@", repr(CUT))


def built(parts: Parts, schema: Schema, temp: Path) -> Path:
    """The compiled target; RunError where clang refuses it."""
    (temp / "fuzz.c").write_text(target(parts, schema))
    command = [clang(), *FLAGS, str(temp / "fuzz.c"), "-o", str(temp / "fuzz"), "-lm"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise RunError(f"clang refuses the fuzzed C: {made.stderr.strip().splitlines()[0]}")
    return temp / "fuzz"


def edges_of(said: str) -> int:
    """How many edges there are to cover, as libFuzzer tells at its start."""
    told = re.search(r"Loaded \d+ modules\s+\((\d+) inline 8-bit counters\)", said)
    return int(told.group(1)) if told else 0


REPLAY = """
int main(int n, char **names) {
    for (int i = 1; i < n; i++) {
        static uint8_t data[1 << 20];
        FILE *f = fopen(names[i], "rb");
        if (!f) return 1;
        LLVMFuzzerTestOneInput(data, fread(data, 1, sizeof data, f));
        fclose(f);
    }
    return 0;
}
"""


def lines_covered(parts: Parts, corpus: Path, temp: Path) -> dict[str, Any] | None:
    """The share of the exported file's lines that the corpus executes, and those it does not, by gcov of gcc.

    None without gcc and gcov. No input of the corpus may break the target.
    """
    if not shutil.which("gcc") or not shutil.which("gcov") or parts.schema is None:
        return None
    here = temp / "lines"
    here.mkdir()
    own = len(to_c(parts).splitlines())
    (here / "fuzz.c").write_text(target(parts, parts.schema) + REPLAY)
    flags = ["-std=c99", "-O0", "--coverage", "-DOPENWORK_MAIN", "-DOPENWORK_NO_MAIN"]
    made = subprocess.run(["gcc", *flags, "fuzz.c", "-o", "replay", "-lm"], cwd=here, check=False)
    inputs = sorted(map(str, corpus.iterdir()))
    for i in range(0, len(inputs), 500):
        subprocess.run(["./replay", *inputs[i : i + 500]], cwd=here, check=made.returncode == 0)
    notes = next(here.glob("*.gcno"))
    subprocess.run(["gcov", notes.name], cwd=here, check=True, capture_output=True)
    seen, missed = 0, []
    for row in (here / "fuzz.c.gcov").read_text(errors="replace").splitlines():
        count, number, text = row.split(":", 2)
        if int(number) == 0 or int(number) > own or count.strip() == "-":
            continue
        if "#" in count:
            missed.append(text.strip())
        else:
            seen += 1
    return {"executed": seen, "of": seen + len(missed), "missed": missed[:20]}


def seeds(schema: Schema) -> list[bytes]:
    """Logs to begin with: flows with common values, by commas, by tabs, quoted, and odd ones."""
    names = [c.name for c in schema.used]
    rng = np.random.default_rng(0)

    def value(i: int) -> str:
        c = schema.used[i]
        if c.kind == "category":
            return str(rng.choice([*c.values, "never seen", "-"]))
        return f"{rng.uniform(c.low, c.high):.6g}"

    rows = [[value(i) for i in range(len(names))] for _ in range(8)]
    odd = [[str(NUMBERS[(i + k) % len(NUMBERS)]) for i in range(len(names))] for k in range(len(NUMBERS))]
    made = ["\n".join(s.join(r) for r in [names, *rows]) for s in (",", "\t")]
    made += ["\n".join(",".join(f'"{x}"' for x in r) for r in [names, *rows])]
    made += ["\n".join(",".join(r) for r in [names, *odd]), "x\n" + "\n".join(",".join(r) for r in rows)]
    made += ["\n".join(",".join([*r, "more"]) for r in [[*names[::-1]], *rows]), "," * 600, '"no end', ""]
    return [x.encode() for x in made]


def words(schema: Schema) -> list[str]:
    """What is worth putting into an input."""
    some = {*(c.name for c in schema.used), *(v for c in schema.used for v in c.values[:8]), *MISSING, *NUMBERS}
    return sorted(w for w in {*some, '"', ",", "\t", "\n", '","'} if w)


def _escaped(word: str) -> str:
    return "".join(f"\\x{b:02x}" for b in word.encode())


if __name__ == "__main__":
    sys.exit(main())
