"""A convolutional network's circuit as a program: maps that look for patterns, then a program of what they saw.

    look      convolutions, each with ReLU and max-pooling, channel by channel: from pixels to maps
    program   a `Program` whose features are the places of the last maps

A circuit keeps few kernels, so the maps are short to write; a place of a map is one number, so what follows them is a
program like any other. Masks and a fixed reference fold into kernels and biases, as in `models.folded`: convolutions
here have no padding, so that a constant map gives a constant. Nothing is approximated.

Knows the wiring of `models.cnn`, a circuit, a fixed reference, NumPy and C. Does not know tasks, data, or how the
circuit was found.

Shapes: N images, their pixels flat [N, channels * height * width].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.explain.programs.emit_c import array_of, emit_c_from, number_of
from openwork.explain.programs.lower_perceptron import Sent, pixel_names, sum_of, wanted_of
from openwork.explain.programs.program import Answer, Array, Bend, Feature, Program, Step, Sum, run
from openwork.models.cnn import CNN
from openwork.patching import Reference, graph_of, is_constant, masks_of, weight_of

Kernel = tuple[tuple[float, ...], ...]  # rows of weights


@dataclass(frozen=True)
class Look:
    """One map: the largest value within each `pool` x `pool` window of relu(bias + the sum of its convolutions).

    kernels  (channel of the image as its number, or the name of an earlier map; rows of weights)
    shape    rows and columns of the map after pooling
    """

    name: str
    kernels: tuple[tuple[int | str, Kernel], ...]
    bias: float
    stride: int
    pool: int
    shape: tuple[int, int]
    about: str = ""


@dataclass(frozen=True)
class ImageProgram:
    """Maps over an image and what is made of them.

    image    (channels, height, width)
    seen     per feature of `program`, the map (or channel of the image) and the place (row, column) that it is
    """

    image: tuple[int, int, int]
    looks: tuple[Look, ...]
    seen: tuple[tuple[int | str, int, int], ...]
    program: Program


def maps_of(looking: ImageProgram, x: NDArray[np.floating]) -> dict[str, Array]:
    """What every map of the program holds on images [N, pixels]: name -> [N, rows, columns]."""
    pixels = np.asarray(x, dtype=np.float64).reshape(len(x), *looking.image)
    out: dict[str, Array] = {}
    for look in looking.looks:
        total: Array = np.array(look.bias)
        for source, kernel in look.kernels:
            k = np.array(kernel)
            now = out[source] if isinstance(source, str) else pixels[:, source]
            windows = np.lib.stride_tricks.sliding_window_view(now, k.shape, (1, 2))[:, :: look.stride, :: look.stride]
            total = total + np.einsum("nrcij,ij->nrc", windows, k)
        rows, columns = look.shape
        cut = np.maximum(total, 0.0)[:, : rows * look.pool, : columns * look.pool]
        out[look.name] = cut.reshape(len(x), rows, look.pool, columns, look.pool).max((2, 4))
    return out


def run_image(looking: ImageProgram, x: NDArray[np.floating]) -> Array:
    """The logits of the answers [N, A] for images [N, pixels]."""
    maps = maps_of(looking, x)
    pixels = np.asarray(x, dtype=np.float64).reshape(len(x), *looking.image)
    places = [(maps[on] if isinstance(on, str) else pixels[:, on])[:, r, c] for on, r, c in looking.seen]
    return run(looking.program, np.stack(places, 1) if places else np.zeros((len(x), 0)))


# -- from a circuit --------------------------------------------------------------------------------------------------


def lower_cnn(
    model: CNN, circuit: Circuit | None, reference: Reference, ids: Sequence[int], texts: Sequence[str]
) -> ImageProgram:
    """The image program that computes what a circuit of a convolutional network computes, to rounding.

    circuit     None for the whole model
    reference   what ablated channels and neurons send: one value per node
    ids, texts  the output indices that are answers, and how each reads

    UsageError for AbsTopK and for a reference that differs by example.
    """
    c = model.config
    if c.abstopk < 1:
        raise UsageError(
            "under AbsTopK a channel depends on its neighbours: this network cannot be written as a program."
        )
    graph = graph_of(model)
    if any(not is_constant(s, reference[s.name]) for s in graph.sites if s.name in reference):
        raise UsageError("the reference has one value per image; a program needs one per node, as the mean has.")
    layers = _folded(model, circuit, reference)
    wanted = wanted_of([w for w, _ in layers], ids)
    maps = c.maps()
    looks: list[Look] = []
    sources: list[int | str | float] = list(range(c.image[0]))  # per node below: a channel, a map, or a constant
    for i, block in enumerate(c.blocks):
        new: list[int | str | float] = []
        for j, (kernels, bias) in enumerate(zip(*layers[i], strict=True)):
            bias = float(bias) + _constants(kernels, sources)
            live = [
                (s, _rows(k)) for k, s in zip(kernels, sources, strict=True) if k.any() and not isinstance(s, float)
            ]
            if not wanted[i + 1][j] or not live:
                new.append(max(bias, 0.0))
                continue
            shape = (maps[i + 1][1], maps[i + 1][2])
            looks.append(Look(f"conv{i}_{j}", tuple(live), bias, block.stride, block.pool, shape, f"conv{i}:{j}"))
            new.append(looks[-1].name)
        sources = new
    return _head(model, layers[len(c.blocks) :], wanted[len(c.blocks) :], sources, looks, ids, texts)


def _head(
    model: CNN,
    layers: Sequence[tuple[Array, Array]],
    wanted: Sequence[Array],
    sources: list[int | str | float],
    looks: list[Look],
    ids: Sequence[int],
    texts: Sequence[str],
) -> ImageProgram:
    """The layers that follow the maps, as steps over places of maps."""
    weights, biases = layers[0]
    steps: list[Step] = []
    seen: list[tuple[int | str, int, int]] = []
    place: dict[tuple[int, int, int], str] = {}
    pixels = pixel_names(*model.config.image)
    for k, source in enumerate(sources):
        if isinstance(source, float):
            continue
        for r, column in np.argwhere((weights[wanted[1].astype(bool)][:, k] != 0).any(0)).tolist():
            if isinstance(source, str):
                name = f"{source}_r{r}c{column}" if weights[0, k].size > 1 else f"{source}_seen"
            else:  # a network without convolutions: the layer reads the image itself
                name = pixels[(source * weights.shape[2] + r) * weights.shape[3] + column]
            steps.append(Step(name, Feature(len(seen)), f"{source}, row {r}, column {column}"))
            seen.append((source, r, column))
            place[k, r, column] = name
    names = [s.name for s in graph_of(model).sites][-len(layers) :]
    below: list[Sent] = []
    for depth, (w, b) in enumerate(layers):
        last = depth + 1 == len(layers)
        new: list[Sent] = []
        for j in range(len(w)):
            if not wanted[depth + 1][j]:
                new.append(0.0)
                continue
            if depth == 0:
                terms = tuple((n, float(weights[j][at])) for at, n in place.items() if weights[j][at])
                total = Sum(terms, float(biases[j]) + _constants(weights[j], sources))
            else:
                total = sum_of(w[j], float(b[j]), below)
            name = f"logit_{j}" if last else f"{names[depth]}_{j}"
            if last:
                steps.append(Step(name, total, f"output {j}"))
            elif total.terms:
                steps.append(Step(f"{name}_in", total, f"what {names[depth]}:{j} reads"))
                steps.append(Step(name, Bend(f"{name}_in", "relu"), f"{names[depth]}:{j}"))
            new.append(name if last or total.terms else max(total.bias, 0.0))
        below = new
    answers = tuple(Answer(t, i, str(below[i])) for i, t in zip(ids, texts, strict=True))
    return ImageProgram(model.config.image, tuple(looks), tuple(seen), Program("features", tuple(steps), answers))


def _folded(model: CNN, circuit: Circuit | None, reference: Reference) -> list[tuple[Array, Array]]:
    """Weights [dst, src, rows, columns] (the later ones [dst, src]) and biases per layer, with masks folded in."""
    nodes, edges = masks_of(model, circuit) if circuit is not None else ({}, {})
    out = []
    for link in graph_of(model).links:
        layer: nn.Module = model.get_submodule(link.module)
        w = weight_of(layer).detach().cpu().double().numpy()
        b = layer.bias.detach().cpu().double().numpy()  # type: ignore[union-attr,operator]
        keep = np.ones(link.shape, dtype=bool)
        if link.src in nodes:
            keep &= nodes[link.src].cpu().numpy()
        if link.name in edges:
            keep &= edges[link.name].cpu().numpy()
        if not keep.all():
            r = reference[link.src].detach().cpu().double().numpy()
            gone = w * (~keep).reshape(keep.shape + (1,) * (w.ndim - 2))
            w, b = w - gone, b + gone.reshape(*keep.shape, -1).sum(-1) @ r
        out.append((w, b))
    return out


def _constants(kernels: Array, sources: Sequence[int | str | float]) -> float:
    """What maps that are constant add to a sum."""
    return float(sum(k.sum() * s for k, s in zip(kernels, sources, strict=True) if isinstance(s, float)))


def _rows(kernel: Array) -> Kernel:
    return tuple(tuple(row) for row in kernel.tolist())


# -- as text ---------------------------------------------------------------------------------------------------------


def look_python(looking: ImageProgram) -> str:
    """Python (NumPy) of the maps: a function `look(pixels)` from one image, flat, to the features of the program."""
    height, width = looking.image[1:]
    lines = [
        "def found(kernels, bias, stride, pool):",
        '    """Largest values, window by window, of the places of a map; 0 where it is negative."""',
        "    total = bias",
        "    for on, kernel in kernels:",
        "        k = np.array(kernel)",
        "        windows = np.lib.stride_tricks.sliding_window_view(on, k.shape)[::stride, ::stride]",
        '        total = total + np.einsum("rcij,ij->rc", windows, k)',
        "    rows, columns = total.shape[0] // pool, total.shape[1] // pool",
        "    cut = np.maximum(total, 0.0)[: rows * pool, : columns * pool]",
        "    return cut.reshape(rows, pool, columns, pool).max((1, 3))",
        "",
        "",
        "def look(pixels):",
        f'    """From the {looking.image[0] * height * width} pixels of an image, the features that `decide` reads."""',
        f"    image = np.asarray(pixels, dtype=float).reshape({looking.image})",
    ]
    for m in looking.looks:
        on = [(s if isinstance(s, str) else f"image[{s}]", k) for s, k in m.kernels]
        lines.append(f"    {m.name} = found(")
        lines.append("        [")
        for source, kernel in on:
            lines += [f"            ({source}, ["]
            lines += [f"                [{', '.join(map(repr, row))}]," for row in kernel]
            lines += ["            ]),"]
        lines.append(f"        ], {m.bias!r}, {m.stride}, {m.pool})")
    places = [f"{on if isinstance(on, str) else f'image[{on}]'}[{r}, {c}]" for on, r, c in looking.seen]
    return "\n".join([*lines, f"    return np.array([{', '.join(places)}])"]) + "\n"


def emit_image_c(looking: ImageProgram, about: str = "") -> str:
    """One C99 file of an image program (see `emit_c`): main() reads the pixels of one image per line."""
    channels, height, width = looking.image
    sizes = {m.name: m.shape for m in looking.looks}
    tables, body = [], []
    for m in looking.looks:
        first = m.kernels[0]
        across = sizes[first[0]] if isinstance(first[0], str) else (height, width)
        rows = (across[0] - len(first[1])) // m.stride + 1
        columns = (across[1] - len(first[1][0])) // m.stride + 1
        body.append(f"    fill(sums, {rows * columns}, {number_of(m.bias)}); /* {m.name} */")
        for n, (source, kernel) in enumerate(m.kernels):
            name = f"{m.name}_kernel{n}"
            flat = [number_of(x) for row in kernel for x in row]
            tables.append(array_of(f"static const double {name}[{len(flat)}]", flat))
            here = source if isinstance(source, str) else f"pixels + {source * height * width}"
            body.append(
                f"    match({here}, {across[1]}, {name}, {len(kernel)}, {len(kernel[0])}, {m.stride}, sums, {rows}, "
                f"{columns});"
            )
        body.append(f"    pool(sums, {columns}, {m.pool}, {m.name}, {m.shape[0]}, {m.shape[1]});")
    for n, (on, r, c) in enumerate(looking.seen):
        at = f"{on}[{r * sizes[on][1] + c}]" if isinstance(on, str) else f"pixels[{(on * height + r) * width + c}]"
        body.append(f"    features[{n}] = {at};")
    if not looking.seen:
        body.append("    (void)features;")
    if not looking.looks and not looking.seen:
        body.append("    (void)pixels;")
    declared = [f"    static double {m.name}[{m.shape[0] * m.shape[1]}];" for m in looking.looks]
    if looking.looks:
        declared.append(f"    static double sums[{height * width}]; /* one map before pooling */")
    head = "/* What the maps see in an image: the features of the steps below. */"
    text = "\n".join([head, "static void look(const double *pixels, double *features)", "{", *declared, *body, "}"])
    parts = [*([PIECES] if looking.looks else []), *tables, text]
    return emit_c_from(looking.program, about, "\n\n".join(parts), channels * height * width, len(looking.seen))


PIECES = """static void fill(double *out, int n, double value)
{
    for (int i = 0; i < n; i++) out[i] = value;
}

/* Adds a kernel's match with a map at every place (rows x columns of them, `stride` apart). */
static void match(const double *map, int width, const double *kernel, int high, int wide, int stride, double *out,
                  int rows, int columns)
{
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++)
            for (int i = 0; i < high; i++)
                for (int j = 0; j < wide; j++)
                    out[r * columns + c] += kernel[i * wide + j] * map[(r * stride + i) * width + c * stride + j];
}

/* The largest value of each window, 0 where all are negative. */
static void pool(const double *map, int width, int side, double *out, int rows, int columns)
{
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) {
            double most = 0.0;
            for (int i = 0; i < side; i++)
                for (int j = 0; j < side; j++) {
                    const double x = map[(r * side + i) * width + c * side + j];
                    if (x > most) most = x;
                }
            out[r * columns + c] = most;
        }
}"""

__all__ = ["ImageProgram", "Look", "emit_image_c", "look_python", "lower_cnn", "maps_of", "run_image"]
