"""Scores from a server over HTTP."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.util import Retry

from rewards.environment import describe
from rewards.judge_sections import HTTPScorerConfig
from rewards.prompts import Prompt, columns_of
from rewards.scorers import NO_COLUMNS, PROBE_RESPONSE, Columns, ScorerError, as_scores, check_aligned

RETRY_STATUSES = (429, 500, 502, 503, 504)
BACKOFF_S = 0.25
"""Wait before the second retry; it doubles with every further one, up to ``BACKOFF_MAX_S``."""
BACKOFF_MAX_S = 30
PROBE_S = 2.0
"""Longest wait for the answer to the one response that a server is asked about before a run."""
MAX_REPLY_BYTES = 16 << 20
"""A longer answer is refused; a score takes some twenty bytes."""


class LateError(ScorerError):
    """A server that is there and did not answer in time."""


class HTTPScorer:
    """Posts batches of ``{"prompts": [...], "responses": [...]}`` and reads ``{"scores": [number or null, ...]}``.

    Columns of the data that it asks for go with them: ``"columns": {name: [...]}``.

    Refused connections, timeouts and the statuses in ``RETRY_STATUSES`` are tried again with growing pauses; when the
    retries are used up, or on any other bad answer, ScorerError names the server. The token is never shown.
    """

    def __init__(self, config: HTTPScorerConfig):
        self._config = config
        parts = urlsplit(config.url)
        # Without the query string, which may hold a key.
        self._where = f"scorer {parts.scheme}://{parts.netloc}{parts.path}"
        self._auth = _BearerToken.from_environment(config.token_env, self._where)
        self._session = requests.Session()
        retry = Retry(
            total=config.retries,
            status_forcelist=RETRY_STATUSES,
            allowed_methods=None,  # scoring has no side effects, so a POST may be repeated
            backoff_factor=BACKOFF_S,
            backoff_max=BACKOFF_MAX_S,
            retry_after_max=BACKOFF_MAX_S,
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))

    def score(self, prompts: Sequence[str], responses: Sequence[str], columns: Columns = NO_COLUMNS) -> np.ndarray:
        """float64 [N]. Raises ScorerError when the server is down after all retries or its answer is unusable."""
        check_aligned(prompts, responses)
        size = self._config.batch_size
        batches = []
        for start in range(0, len(responses), size):
            part = slice(start, start + size)
            asked: dict[str, Any] = {"prompts": list(prompts[part]), "responses": list(responses[part])}
            if self._config.columns:
                asked["columns"] = {name: list(columns[name][part]) for name in self._config.columns}
            batches.append(self._score_batch(asked, len(asked["responses"])))
        return np.concatenate(batches) if batches else np.empty(0)

    def _score_batch(self, asked: Mapping[str, Any], count: int) -> np.ndarray:
        tries = f"{self._config.retries + 1} tries" if self._config.retries else "1 try"
        try:
            reply = self._session.post(
                self._config.url,
                json=asked,
                timeout=self._config.timeout_s,
                auth=self._auth,
                allow_redirects=False,  # a redirect would turn the POST into a GET
                stream=True,  # the body comes in `_read`, which bounds it
            )
        except requests.RequestException as error:
            kind = LateError if _is_late(error) else ScorerError
            raise kind(f"{self._where} is unreachable after {tries} ({type(error).__name__})") from None
        with reply:
            if reply.status_code != 200:
                after = f" after {tries}" if reply.status_code in RETRY_STATUSES else ""
                raise ScorerError(f"{self._where} answered with status {reply.status_code}{after}, expected 200")
            text = self._read(reply)
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ScorerError(f"{self._where} did not answer with JSON: {describe(error)}") from None
        if not isinstance(body, dict) or "scores" not in body:
            raise ScorerError(f'{self._where} must answer with {{"scores": [...]}}')
        return as_scores(body["scores"], count, where=self._where)

    def _read(self, reply: requests.Response) -> bytes:
        """The whole body. `timeout_s` alone bounds only the wait for each next piece of it."""
        deadline = time.monotonic() + self._config.timeout_s
        text = b""
        try:
            # Not iter_content, which waits until a piece is full.
            while piece := reply.raw.read1(1 << 16, decode_content=True):
                text += piece
                if len(text) > MAX_REPLY_BYTES:
                    raise ScorerError(f"{self._where} answered with more than {MAX_REPLY_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise LateError(f"{self._where}: its answer took longer than {self._config.timeout_s:g} s")
        except HTTPError as error:
            kind = LateError if isinstance(error, ReadTimeoutError) else ScorerError
            raise kind(f"{self._where} broke off its answer ({type(error).__name__})") from None
        return text


def asked_once(config: HTTPScorerConfig, prompt: Prompt) -> str | None:
    """What is wrong with a server that cannot score a first response; None also where it takes its time.

    It is asked once, for at most `PROBE_S`: what is not there now would be missed by the first batch as well.
    """
    probe = config.model_copy(update={"retries": 0, "timeout_s": min(PROBE_S, config.timeout_s)})
    try:
        HTTPScorer(probe).score([prompt.plain], [PROBE_RESPONSE], columns_of([prompt]))
    except LateError:
        return None
    except ScorerError as error:
        return str(error)
    return None


def _is_late(error: requests.RequestException) -> bool:
    """Whether a server took a request and did not answer in time; the last retry's reason is what tells it."""
    return isinstance(getattr(error.args[0] if error.args else None, "reason", None), ReadTimeoutError)


class _BearerToken(requests.auth.AuthBase):
    """Sets the Authorization header. An auth object, since a netrc entry would replace a plain header."""

    def __init__(self, token: str | None):
        self._token = token

    @classmethod
    def from_environment(cls, variable: str | None, where: str) -> _BearerToken:
        token = os.environ.get(variable) if variable else None
        if variable and not token:
            raise ScorerError(f"{where} needs a token: environment variable {variable!r} is not set")
        return cls(token)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def __repr__(self) -> str:
        return "_BearerToken(***)" if self._token else "_BearerToken(None)"
