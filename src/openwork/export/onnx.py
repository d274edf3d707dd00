"""A perceptron as ONNX, with the scaling of a detector's rows in the graph.

A detector's inputs are `numbers`, float [N, columns of numbers] with nan where missing, and `categories`, strings [N,
columns of categories] with any text for a missing value; anything else's is `features`, float [N, F]. Outputs are
`logits` and, of a detector, `score`, the probability of an attack, and `class`, 0 where it is no alert. ONNX has no
sparse matrices that runtimes use: weights are dense, of the compacted network.

Needs onnx (the extra `edge`). Knows the parts of a perceptron. Does not know runs.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from openwork.errors import UsageError
from openwork.export.parts import Parts
from openwork.tasks.flows.schema import CUT

OPSET, ML_OPSET, IR = 17, 3, 8


def to_onnx(parts: Parts) -> bytes:
    """The file's content, checked by ONNX's own checker."""
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as e:
        raise UsageError('exporting to ONNX needs onnx: pip install "openwork[edge]".') from e
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=output, domain=domain, **attributes))
        return output

    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(parts.outputs)])]
    if parts.schema is None:
        inputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", len(parts.inputs)])]
        x = "features"
    else:
        numbers = [c for c in parts.schema.used if c.kind == "number"]
        categories = [c for c in parts.schema.used if c.kind == "category"]
        inputs = [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["N", len(numbers)])] if numbers else []
        if categories:
            inputs.append(helper.make_tensor_value_info("categories", TensorProto.STRING, ["N", len(categories)]))
        pieces = []
        for c in parts.schema.used:
            k = (numbers if c.kind == "number" else categories).index(c)
            source = "numbers" if c.kind == "number" else "categories"
            column = node("Gather", [source, constant(f"at {c.name}", np.array([k], np.int64))], f"{c.name}", axis=1)
            pieces += _number(c, column, node, constant) if c.kind == "number" else _category(c, column, node, constant)
        x = node("Concat", pieces, "features", axis=1)
    for i, (w, b) in enumerate(parts.layers):
        last = i == len(parts.layers) - 1
        z = "logits" if last else f"sum{i}"
        node("Gemm", [x, constant(f"weight{i}", w.astype(np.float32)), constant(f"bias{i}", b.astype(np.float32))], z,
             transB=1)  # fmt: skip
        if not last:
            x = node("Relu", [z], f"hidden{i}") if parts.activation == "relu" else _silu(z, i, node)
    if parts.decision is not None:
        d = parts.decision
        tempered = node("Div", ["logits", constant("temperature", np.float32(d.temperature))], "tempered")
        shifted = node("Add", [tempered, constant("offset", np.array(d.offset, np.float32))], "shifted")
        p = node("Softmax", [shifted], "probabilities", axis=1)
        rest = list(range(1, len(parts.outputs)))
        attacks = node("Gather", [p, constant("attacks", np.array(rest, np.int64))], "attack_probabilities", axis=1)
        node("ReduceSum", [attacks, constant("along", np.array([1], np.int64))], "score", keepdims=0)
        best = node("ArgMax", [attacks], "best", axis=1, keepdims=0)
        named = node("Add", [best, constant("one", np.int64(1))], "named")
        alert = node("GreaterOrEqual", ["score", constant("threshold", np.float32(d.threshold))], "alert")
        node("Where", [alert, named, constant("none", np.int64(0))], "class")
        outputs.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]))
        outputs.append(helper.make_tensor_value_info("class", TensorProto.INT64, ["N"]))
    graph = helper.make_graph(nodes, "openwork", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="openwork")
    helper.set_model_props(model, {"openwork": json.dumps(parts.metadata())})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _number(c: Any, x: str, node: Any, constant: Any) -> list[str]:
    n = c.name
    gone = node("Or", [node("IsNaN", [x], f"{n} nan"), node("IsInf", [x], f"{n} inf")], f"{n} gone")
    y = node("Asinh", [x], f"{n} asinh") if c.spread else x
    y = node("Sub", [y, constant(f"{n} centre", np.float32(c.centre))], f"{n} centred")
    y = node("Div", [y, constant(f"{n} scale", np.float32(c.scale))], f"{n} scaled")
    low, high = constant(f"{n} least", np.float32(-CUT)), constant(f"{n} most", np.float32(CUT))
    y = node("Clip", [y, low, high], f"{n} cut")
    y = node("Where", [gone, constant(f"{n} mean", np.float32(0)), y], f"{n} feature")
    return [y, node("Cast", [gone], f"{n} missing", to=1)] if c.missing else [y]


def _category(c: Any, x: str, node: Any, constant: Any) -> list[str]:
    n, values = c.name, list(c.values)
    keys = values or [""]
    place = node(
        "LabelEncoder", [x], f"{n} place", domain="ai.onnx.ml", keys_strings=keys,
        values_int64s=list(range(len(keys))) if values else [0], default_int64=len(values),
    )  # fmt: skip
    flat = node("Squeeze", [place, constant(f"{n} axis", np.array([1], np.int64))], f"{n} flat")
    depth = constant(f"{n} depth", np.int64(len(values) + 1))
    return [
        node("OneHot", [flat, depth, constant(f"{n} off on", np.array([0, 1], np.float32))], f"{n} feature", axis=-1)
    ]


def _silu(z: str, i: int, node: Any) -> str:
    return node("Mul", [z, node("Sigmoid", [z], f"gate{i}")], f"hidden{i}")


__all__ = ["to_onnx"]
