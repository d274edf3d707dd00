"""An OpenAI-compatible endpoint: patience with what passes, one clear sentence for what does not.

Repeated, with waits that double and jitter that follows from the seed: 429 and 5xx (honouring Retry-After), lines that
break, timeouts, bodies that are no JSON. Refused at once: no endpoint there, a wrong model, a wrong key, an empty
account. A parameter that an endpoint does not know (`seed`, `response_format`, ...) is left out from then on. The raw
answer is handed on as it came.

The key is read from the environment when the endpoint is first used and goes nowhere but into the request's header.
Knows the client `openai` (https://github.com/openai/openai-python, an extra) and HTTP. Does not know prompts.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import re
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from openwork.errors import RunError, UsageError, unknown
from openwork.explain.words.llm.ledger import Ledger
from openwork.explain.words.llm.request import Reply, Request
from openwork.llm_options import DEFAULT_KEY, LLMOptions

if TYPE_CHECKING:
    import openai

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds between tries: doubling from the first to the longest
PATIENCE = 300.0  # seconds: an endpoint that asks for a longer wait than this is left for another day
CONNECT = 15.0  # seconds to reach the endpoint at all
FEW_WORDS = 300  # characters of a server's own words in a message
PASSING = {408, 409, 425, 429}  # statuses besides 5xx that may be different next time
LEAVABLE = ("response_format", "seed", "temperature", "top_logprobs", "logprobs")  # an endpoint may not know these


class Passing(Exception):
    """A try that failed in a way that may be over next time.

    wait  seconds that the endpoint asked for, None where it did not say
    """

    def __init__(self, kind: str, said: str, wait: float | None = None) -> None:
        super().__init__(said)
        self.kind, self.wait = kind, wait


class Endpoint:
    """A backend (see `request.Backend`) behind an address."""

    def __init__(self, options: LLMOptions, ledger: Ledger, seed: int, key: str) -> None:
        self.name = name_of(options)
        self.logprobs = options.logprobs
        self._options, self._ledger, self._seed = options, ledger, seed
        self._client = make_client(options, key)
        self._has_key = bool(key)
        self._lock = threading.Lock()
        self._left_out: set[str] = set()
        self._not_before = 0.0  # on the clock `time.monotonic`: all threads wait when one is told to
        self._answered = False

    def answer(self, request: Request, key: str, stop: threading.Event) -> Reply:
        """The endpoint's raw answer. UsageError or RunError in one sentence where there is none."""
        o, attempt = self._options, 0
        jitter = random.Random(f"{self._seed}:{key}")
        while True:
            if stop.wait(max(0.0, self._not_before - time.monotonic())):
                raise RunError("stopped while waiting to ask again.")
            try:
                reply = self._once(request, key)
                self._answered = True
                return reply
            except Passing as e:
                wait = e.wait
                if wait is None:
                    wait = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * (0.5 + 0.5 * jitter.random())
                over = attempt >= o.retries or wait > PATIENCE
                self._ledger.fault(key, e.kind, str(e), attempt + 1, 0.0 if over else wait)
                kept = "Answers that arrived are kept: give the same command again to ask only what is missing."
                if wait > PATIENCE:
                    raise RunError(f"{o.endpoint} asks to wait {wait:,.0f} s ({e.kind}). {kept}") from e
                if over:
                    times = f"{attempt + 1} times" if attempt else "once"
                    raise RunError(
                        f"{o.endpoint} was asked {times} and failed: {e.kind}, {self._words(e)}. {kept}"
                    ) from e
                if e.wait is not None:
                    self._not_before = max(self._not_before, time.monotonic() + wait)
                elif stop.wait(wait):
                    raise RunError("stopped while waiting to ask again.") from e
                attempt += 1

    def _once(self, request: Request, key: str) -> Reply:
        """One try. Passing where another may go better. Causes are not chained: a server's words may hold the key."""
        import openai

        while True:
            sent = self._body(request)
            try:
                raw = self._client.chat.completions.with_raw_response.create(**sent)
                return self._parsed(raw.http_response.text)
            except openai.APITimeoutError as e:
                if not self._answered and _is_about_connecting(e):
                    raise self._not_there(e) from None
                raise Passing("timeout", f"no answer within {self._options.timeout:g} s") from None
            except openai.APIConnectionError as e:
                if not self._answered and _is_about_connecting(e):
                    raise self._not_there(e) from None
                raise Passing("connection", f"the line broke ({self._words(e.__cause__ or e)})") from None
            except openai.APIStatusError as e:
                if not self._leave_out(e, sent, key):
                    raise self._refusal(e) from None

    def _body(self, request: Request) -> dict[str, Any]:
        o = self._options
        body: dict[str, Any] = {
            "model": o.model, "messages": [{"role": r, "content": t} for r, t in request.messages],
            "temperature": 0, "seed": self._seed,
        }  # fmt: skip
        with self._lock:
            left_out = set(self._left_out)
        body["max_completion_tokens" if "max_tokens" in left_out else "max_tokens"] = request.max_tokens
        if request.schema:
            form = {"name": request.purpose, "schema": dict(request.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        if request.choices and self.logprobs:
            body |= {"logprobs": True, "top_logprobs": 5}
        return {k: v for k, v in body.items() if k not in left_out}

    def _parsed(self, text: str) -> Reply:
        try:
            reply = json.loads(text)
            if isinstance(reply["choices"][0]["message"], dict):
                return reply
        except (ValueError, RecursionError, KeyError, IndexError, TypeError):
            pass
        raise Passing("not a completion", f"the answer is no chat completion: {self._words(text)!r}")

    # -- saying no -----------------------------------------------------------------------------------------------------

    def _leave_out(self, e: openai.APIStatusError, sent: dict[str, Any], key: str) -> bool:
        """Whether the endpoint refused a parameter that can be left out; from now on it is, and the ledger says so."""
        if e.status_code not in (400, 422):
            return False
        said = _said(e)
        for name in (*LEAVABLE, "max_tokens"):
            if name in sent and re.search(rf"\b{name}\b", said):
                with self._lock:
                    self._left_out.add(name)
                self._ledger.fault(key, f"left out {name}", self._words(said), 1, 0.0)
                return True
        return False

    def _refusal(self, e: openai.APIStatusError) -> Exception:
        """What an error status means: Passing, or the refusal to raise."""
        o, status, said = self._options, e.status_code, _said(e)
        told = f"{status}: {self._words(said)}"
        if status == 429 and "insufficient_quota" in said:
            return RunError(f"the account at {o.endpoint} is used up ({told}).")
        if status in PASSING or status >= 500:
            return Passing(str(status), self._words(said), retry_after(e.response.headers))
        if status in (401, 403):
            name = o.key_env or DEFAULT_KEY
            has = "was refused" if self._has_key else "is not set"
            if not self._has_key and os.environ.get(name):
                has = "was not sent over plain http; name it with --llm-key-env to have it sent"
            told = f"the key in the environment variable {name} {has} ({told})"
            return UsageError(f"{o.endpoint} does not let us in: {told}.")
        about_model = str(o.model) in said or "model_not_found" in said
        if status == 404 and not about_model:
            return UsageError(
                f"there is no chat at {o.endpoint}/chat/completions ({told}); --llm-base-url usually ends in /v1."
            )
        if status in (400, 404) and about_model and "context" not in said:
            return self._no_such_model(told)
        return RunError(f"{o.endpoint} refused the request ({told}).")

    def _no_such_model(self, told: str) -> UsageError:
        o = self._options
        try:
            there = sorted(m.id for m in self._client.with_options(timeout=CONNECT).models.list())
        except Exception:  # a list that cannot be had is no reason to say less about the model
            there = []
        where = f"model at {o.endpoint}"
        return unknown(where, str(o.model), there) if there else UsageError(f'no {where} named "{o.model}" ({told}).')

    def _not_there(self, e: Exception) -> RunError:
        return RunError(
            f"there is no endpoint at {self._options.endpoint} ({self._words(e.__cause__ or e)}); "
            "start the server, or correct --llm-base-url."
        )

    def _words(self, said: object) -> str:
        """A server's words or an error's, short, on one line, without the key."""
        text = " ".join(str(self._ledger.scrubbed(str(said))).split()) or type(said).__name__
        return text[:FEW_WORDS] + ("..." if len(text) > FEW_WORDS else "")


def name_of(options: LLMOptions) -> str:
    """The endpoint's name in ledgers: address and model."""
    return f"{options.endpoint} {options.model}"


def key_for(options: LLMOptions) -> str:
    """The key from the environment; "" where none is asked for. UsageError where the variable named is not set.

    A key that nobody named is sent only over an encrypted line or to this machine.
    """
    if options.key_env is None:
        return os.environ.get(DEFAULT_KEY, "") if options.may_send_default_key else ""
    if not (key := os.environ.get(options.key_env, "").strip()):
        raise UsageError(
            f"--llm-key-env {options.key_env}: there is no environment variable of that name, or it is empty."
        )
    return key


def make_client(options: LLMOptions, key: str) -> openai.OpenAI:
    """The client of the endpoint, without retries of its own. UsageError where it is not installed."""
    try:
        import openai
    except ImportError as e:
        raise UsageError(
            "to ask an endpoint install its client: pip install 'openwork[llm]' (or: pip install openai)."
        ) from e
    patience = openai.Timeout(options.timeout, connect=min(CONNECT, options.timeout))
    return openai.OpenAI(base_url=options.base_url, api_key=key or "none", max_retries=0, timeout=patience)


def retry_after(headers: Any) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, section 10.2.3: seconds or a date); None without one."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):
            return None
    return max(0.0, seconds) if seconds == seconds else None


def _said(e: openai.APIStatusError) -> str:
    try:
        return e.response.text or str(e)
    except Exception:  # a body that was never read
        return str(e)


def _is_about_connecting(e: BaseException) -> bool:
    """Whether an endpoint was never reached, as against a line that broke later."""
    cause = e.__cause__
    return cause is not None and type(cause).__name__ in ("ConnectError", "ConnectTimeout", "UnsupportedProtocol")


__all__ = ["Endpoint", "Passing", "key_for", "make_client", "name_of", "retry_after"]
