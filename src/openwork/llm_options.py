"""How a language model is reached and what it may cost: an address, a name, numbers.

Knows strings and numbers; of a key it knows the name of an environment variable, never the key. Does not know what
is asked, and imports nothing that asks.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, Field

from openwork.errors import UsageError

LOCAL = "hf:"  # a model name that begins so is a folder (or a cached name) to run in this process
DEFAULT_KEY = "OPENAI_API_KEY"


class LLMOptions(BaseModel):
    """The language model that explains, and the bounds on asking it. On a command line every field is `--llm-FIELD`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str | None = Field(
        default=None, description="Address of an OpenAI-compatible endpoint, up to /v1. Nothing is sent anywhere else."
    )
    model: str | None = Field(
        default=None,
        description="Name of its model; or hf:FOLDER for a Hugging Face model to run here, without address.",
    )
    key_env: str | None = Field(
        default=None, description="Environment variable that holds the key; by default OPENAI_API_KEY where it is set."
    )
    concurrency: int = Field(default=4, ge=1, le=256, description="Requests under way at a time.")
    timeout: float = Field(default=120.0, gt=0, description="Seconds to wait for an answer before asking again.")
    retries: int = Field(
        default=8, ge=0, le=50, description="How often a request is repeated after 429, 5xx, cut lines and timeouts."
    )
    per_prompt: int = Field(default=5, ge=1, le=50, description="Questions of the judge that share one request.")
    logprobs: bool = Field(
        default=False,
        description="The endpoint tells probabilities: ask yes/no questions one by one and read them. Always with hf:.",
    )
    max_tokens: int = Field(
        default=1500, ge=16, description="Longest answer, in tokens; a model that thinks aloud needs more."
    )
    dry_run: bool = Field(default=False, description="Print the prompts and their estimated tokens; send nothing.")
    price_in: float | None = Field(default=None, ge=0, description="Price of a million tokens sent, to count the cost.")
    price_out: float | None = Field(default=None, ge=0, description="Price of a million tokens answered.")

    @property
    def is_local(self) -> bool:
        """Whether the model runs in this process."""
        return (self.model or "").startswith(LOCAL)

    def checked(self) -> LLMOptions:
        """The same options. UsageError where no model is named, or the address cannot be one."""
        if not self.model:
            raise UsageError(
                "the author llm needs a language model: give --llm-base-url URL and --llm-model NAME for an endpoint, "
                "or --llm-model hf:FOLDER for one that runs here."
            )
        if self.is_local:
            if self.base_url is not None:
                raise UsageError(
                    f"--llm-model {self.model} runs here and --llm-base-url {without_secrets(self.base_url)} is "
                    "elsewhere; give one of the two."
                )
            return self
        if self.base_url is None:
            raise UsageError(
                f"--llm-model {self.model} needs --llm-base-url, such as http://127.0.0.1:8000/v1; there is no default "
                "address, so that nothing is sent where you did not say."
            )
        url = _parts(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise UsageError(
                f"--llm-base-url {without_secrets(self.base_url)} is not an address; expected http(s)://HOST[:PORT]/v1."
            )
        if url.username or url.password or url.query or url.fragment:
            raise UsageError(
                f"--llm-base-url {without_secrets(self.base_url)} carries more than an address; a key belongs into an "
                "environment variable, named by --llm-key-env."
            )
        return self

    @property
    def endpoint(self) -> str:
        """Where answers come from, as ledgers and messages name it; never holds a secret."""
        return "this process" if self.is_local else without_secrets(self.base_url or "").rstrip("/")

    @property
    def may_send_default_key(self) -> bool:
        """Whether a key that nobody named may be sent there: encrypted, or not leaving this machine."""
        url = _parts(self.base_url or "")
        return url.scheme == "https" or _is_loopback(url.hostname or "")


def without_secrets(url: str) -> str:
    """The address without user, password, query and fragment."""
    parts = _parts(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where the port is no number
    except ValueError as e:
        raise UsageError(f"--llm-base-url is not an address ({e}); expected http(s)://HOST[:PORT]/v1.") from e
    return parts


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


__all__ = ["DEFAULT_KEY", "LOCAL", "LLMOptions", "without_secrets"]
