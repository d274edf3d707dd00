"""Real language models as author and judge: one in this process, and one behind a real server, `transformers serve`.

The model is a Llama of random weights that is made here (small models that speak are used where they are at hand): it
explains nothing, so what is tested is that nothing it says is mistaken for an answer, that its probabilities are those
of its logits, and that a server with faults in front of it is asked no question twice.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llm_cases as cases
from llm_server import Proxy
from openwork.circuit import Explanation
from openwork.errors import RunError, UsageError
from openwork.explain.words.llm import LLMOptions, client, make_llm_author
from openwork.explain.words.llm.author import LLMAuthor
from openwork.explain.words.llm.huggingface import HuggingFace
from openwork.explain.words.llm.judge import LLMJudge
from openwork.explain.words.llm.request import Request

pytestmark = pytest.mark.slow
transformers = pytest.importorskip("transformers", reason="the extra hf is not installed: pip install 'openwork[hf]'")

SPEAKING = Path(os.environ.get("OPENWORK_TEST_LLM", "/nowhere"))  # folder of a model that speaks, where there is one
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}<|assistant|>"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of random weights and a tokenizer with a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [Path(__file__).read_text()],
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.2,
        eos_token_id=0, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


# -- in this process ---------------------------------------------------------------------------------------------------


def test_probabilities_are_those_of_the_models_logits(tiny: Path, tmp_path: Path) -> None:
    """P(1) of the judge against the model's own next-token distribution, worked out here from the written prompt."""
    import torch

    asked = cases.questions(cases.sample("verify", 1))[:6]
    _, judge, ledger = make_llm_author(LLMOptions(model=f"hf:{tiny}"), tmp_path)
    (answers,) = judge.answer([(Explanation("x", "llm", "Active on the token 'ash'."), asked)])
    assert answers.keys() == {q.id for q in asked} and len(set(answers.values())) > 3
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    expected = []
    for path in tmp_path.glob("??/*.json"):
        prompt = "".join(
            f"<|{m['role']}|>{m['content']}\n" for m in json.loads(path.read_text())["request"]["messages"]
        )
        ids = tokenizer(prompt + "<|assistant|>", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        zero, one = (logits[tokenizer.convert_tokens_to_ids(c)] for c in "01")
        expected.append(float(torch.sigmoid(one - zero)))
    np.testing.assert_allclose(sorted(answers.values()), sorted(expected), atol=1e-5)
    assert {n: c["unreadable"] for n, c in ledger.summary()["answers"].items()} == {
        "detection": 0, "fuzzing": 0, "trigger": 0
    }  # fmt: skip


def test_an_author_in_this_process_is_repeatable_and_what_it_babbles_claims_nothing(tiny: Path, tmp_path: Path) -> None:
    options = LLMOptions(model=f"hf:{tiny}", max_tokens=16)
    told = [cases.explained(options, tmp_path / name, 1) for name in "ab"]
    replies = [
        sorted((p.name, json.loads(p.read_text())["reply"]) for p in (tmp_path / n).glob("??/*.json")) for n in "ab"
    ]
    assert replies[0] == replies[1] and len(replies[0]) == 2  # asked, and asked to mend it
    assert told[0][0][0].text == "" and told[0][1] == [{}]
    assert told[0][2]["answers"]["author"]["unreadable_rate"] == 1.0
    usage = [reply["usage"] for _, reply in replies[0]]
    assert all(u["completion_tokens"] <= 16 < u["prompt_tokens"] for u in usage)


def test_a_prompt_that_does_not_fit_is_refused(tiny: Path) -> None:
    backend = HuggingFace(LLMOptions(model=f"hf:{tiny}"))
    with pytest.raises(RunError, match="does not fit"):
        backend.answer(Request("author", (("user", "hello " * 5000),), 16, {}), "", threading.Event())


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    for folder, said in ((tmp_path / "none", "no Hugging Face model in that folder"), (tmp_path, "has no config.json")):
        author, _, _ = make_llm_author(LLMOptions(model=f"hf:{folder}"), tmp_path / "answers")
        with pytest.raises(UsageError, match=said):
            author(cases.dossiers(1)[0])
    (tmp_path / "config.json").write_text("{}")
    author, _, _ = make_llm_author(LLMOptions(model=f"hf:{tmp_path}"), tmp_path / "answers")
    with pytest.raises(UsageError, match="cannot be loaded"):
        author(cases.dossiers(1)[0])


def test_another_model_in_the_same_folder_is_another_model(tiny: Path, tmp_path: Path) -> None:
    def name() -> str:
        return make_llm_author(LLMOptions(model=f"hf:{tiny}"), tmp_path)[0].name

    before = name()
    assert name() == before
    (tiny / "model.safetensors").touch()
    assert name() != before


# -- behind a server ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """`transformers serve` with the tiny model (or one that speaks): its base_url and the model's name."""
    pytest.importorskip("fastapi", reason="transformers serve needs pip install 'transformers[serving]'")
    pytest.importorskip("openai", reason="the extra llm is not installed")
    pytest.importorskip("uvicorn")
    program = Path(sys.executable).with_name("transformers")
    if not program.exists():
        pytest.skip("there is no program `transformers` beside this Python")
    model = str(SPEAKING if SPEAKING.is_dir() else tiny)
    home = tmp_path_factory.mktemp("home")
    (home / "hub").mkdir()  # without it /v1/models fails
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = (home / "log").open("w+")
    process = subprocess.Popen(
        [str(program), "serve", model, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu",
         "--dtype", "float32"], env=env, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        end = time.monotonic() + 180
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                if process.poll() is not None:
                    log.seek(0)
                    pytest.fail(f"transformers serve ended:\n{log.read()[-2000:]}")
                time.sleep(0.3)
        else:
            pytest.fail("transformers serve did not answer within three minutes")
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        process.terminate()
        process.wait(timeout=20)
        log.close()


def ask_everything(options: LLMOptions, folder: Path) -> tuple[LLMAuthor, LLMJudge, dict[str, Any], list[Any]]:
    """Two parts explained, questions and a simulation about an explanation in words, which this model cannot write."""
    author, judge, ledger = make_llm_author(options, folder)
    explanations = author.many(cases.dossiers(2))
    held_out = cases.sample("verify", 1, n=2)
    words = Explanation("block0.mlp.act:0", "llm", "Active on the token 'ash'.")
    answers = judge.answer([(words, cases.questions(held_out))])
    expected = judge(words, held_out)
    return author, judge, ledger.summary(), [explanations, answers, expected.tolist()]


def test_a_real_server_behind_faults(server: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot explain, so everything is unreadable and said to be; faults are met, and nothing is answered twice."""
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    url, model = server
    script = ["429", "", "500", "cut", "not json", "", "503"]
    with Proxy(upstream=url, known=(model,), script=script) as proxy:
        options = LLMOptions(base_url=proxy.url, model=model, max_tokens=24, timeout=60)
        _, _, summary, told = ask_everything(options, tmp_path)
        count = len(proxy.seen)
        _, _, again, told_again = ask_everything(options, tmp_path)
        assert len(proxy.seen) == count and again["asked_now"] == 0
        assert max(Counter(proxy.answered()).values()) == 1
    assert json.dumps(told_again, default=str) == json.dumps(told, default=str)
    assert summary["faults"] == {"429": 1, "500": 1, "503": 1, "connection": 1, "not a completion": 1}
    assert summary["asked_now"] == count - 5 and summary["estimated"] == 0
    print(json.dumps(summary["answers"]))
    for purpose in ("author", "trigger", "detection", "fuzzing", "simulation"):
        told_of = summary["answers"][purpose]
        assert told_of["wanted"] > 0
        if not SPEAKING.is_dir():
            assert told_of["unreadable_rate"] == 1.0, f"{purpose}: random weights answered as asked"
            assert [e.text for e in told[0]] == ["", ""] and told[1] == [{}]


def test_a_real_server_refuses_a_wrong_name(server: tuple[str, str], tmp_path: Path) -> None:
    author, _, _ = make_llm_author(LLMOptions(base_url=server[0], model="foo"), tmp_path)
    with pytest.raises(UsageError, match='"foo"'):
        author(cases.dossiers(1)[0])


def test_a_real_server_that_ignores_log_probabilities_is_read_by_its_words(
    server: tuple[str, str], tmp_path: Path
) -> None:
    """transformers serve takes `logprobs` and says nothing: its words count then, here none that are 0 or 1."""
    asked = cases.questions(cases.sample("verify", 1, n=1))
    _, judge, ledger = make_llm_author(LLMOptions(base_url=server[0], model=server[1], logprobs=True), tmp_path)
    (answers,) = judge.answer([(Explanation("x", "llm", "Active on the token 'ash'."), asked)])
    counts = ledger.summary()["answers"].values()
    assert len(answers) == len(asked) - sum(c["unreadable"] for c in counts)
    assert set(answers.values()) <= {0.0, 1.0}
    assert not any("logprobs" in json.dumps(json.loads(p.read_text())["reply"]) for p in tmp_path.glob("??/*.json"))
