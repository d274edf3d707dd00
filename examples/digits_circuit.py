"""From nothing to a checked circuit in Python: which part of a sparse network tells a 3 from an 8?"""

from __future__ import annotations

import tempfile
from pathlib import Path

import openwork as ow

model = ow.build(ow.MLPConfig(inputs=64, hidden=(48, 48), outputs=10), seed=0)
data = ow.digits_data(seed=0)
with tempfile.TemporaryDirectory() as folder:
    settings = ow.TrainSettings(steps=600, lr=5e-3)
    ow.train(model, data, (ow.make_regime("topk", {"density": 0.2}),), settings, Path(folder) / "run")

task = ow.make_digit_task("three_eight")
reference = ow.mean_reference(model, (data.batch(step)[0] for step in range(20)))  # what an ablated node sends
found = ow.find(model, reference, task.split("discover"), "masks", target=0.3, steps=100)
print(f"search: {found.status}, the whole model's loss is {found.full_loss:.3f} nats")

if found.circuit is not None:
    circuit = ow.trim(model, found.circuit, reference, task.split("discover"), target=0.3).circuit
    print(f"circuit: {circuit.counts()}")
    question = ow.Question(model, circuit, reference, task.split("verify"), task.split("ood"), target=0.3)
    for claim, check in ow.VERIFIERS.items():
        evidence = check(question)
        print(f"{claim}: {evidence.verdict}. {evidence.sentence}")
