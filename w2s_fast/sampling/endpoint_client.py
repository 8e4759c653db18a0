"""Client of any OpenAI-compatible endpoint: OpenAI itself, vLLM, llama.cpp, TGI, Ollama."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.files import content_hash
from w2s_fast.sampling._cache import AnswerCache
from w2s_fast.sampling._http import request_text
from w2s_fast.sampling.endpoint_config import CHAT, EndpointConfig

# Longest answer per token asked for, in characters, far above that of any language; and what is
# always accepted. Some servers ignore max_tokens, and the judge's tokenizer reads all of an answer.
_TOKEN_CHARACTERS = 64
_SHORT_ANSWER = 10_000


class EndpointClient:
    """Requests several prompts in parallel and stores every answer immediately.

    A blank answer is not stored, as an overloaded server may send one: the next call asks again.

    Args:
        cfg: Address, model and how it samples.
        folder: Folder of answers; those already stored are not requested again.
        process: Number of this process among those that write into ``folder``.

    Raises:
        W2SError: The variable of the key is not set.
    """

    def __init__(self, cfg: EndpointConfig, folder: Path, process: int = 0) -> None:
        self.cfg = cfg
        self._key = cfg.key()
        self._cache = AnswerCache(folder, process)

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Write N texts for N prompts; a request that fails for good ends all others.

        Raises:
            W2SError: As ``request_text``, or an answer is far too long, or every answer is empty.
        """
        bodies = [self._body(p, s) for p, s in zip(prompts, seeds, strict=True)]
        stop = threading.Event()
        with ThreadPoolExecutor(self.cfg.workers) as pool:
            pending = [pool.submit(self._answer, body, stop) for body in bodies]
            try:
                for done in as_completed(pending):
                    done.result()
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        texts = [done.result() for done in pending]
        if texts and not any(text.strip() for text in texts):
            raise W2SError(
                f"{self.cfg.url} answered {len(texts)} prompts with empty texts; a model that "
                "thinks first may need more than "
                f"{self.cfg.setting}.max_tokens={self.cfg.max_tokens}"
            )
        return texts

    def _answer(self, body: dict[str, Any], stop: threading.Event) -> str:
        name = content_hash([self.cfg.url, body])
        text = self._cache.get(name) or ""
        if not text.strip():  # older versions stored blank answers too
            text = request_text(self.cfg, body, self._key, stop)
            self._check_length(text)
            if text.strip():
                self._cache.put(name, text)
        return text.encode("utf-8", "replace").decode()  # half a surrogate pair is no text

    def _check_length(self, text: str) -> None:
        longest = max(_SHORT_ANSWER, _TOKEN_CHARACTERS * self.cfg.max_tokens)
        if len(text) > longest:
            raise W2SError(
                f"{self.cfg.url} answered with {len(text)} characters although "
                f"{self.cfg.setting}.max_tokens={self.cfg.max_tokens}; expected at most {longest}, "
                "so check that the server heeds max_tokens"
            )

    def _body(self, prompt: str, seed: int) -> dict[str, Any]:
        cfg = self.cfg
        chat = cfg.url.partition("?")[0].endswith(CHAT)
        text: dict[str, Any] = {"prompt": prompt}
        if chat:
            text = {"messages": [{"role": "user", "content": prompt}]}
        settings = {"temperature": cfg.temperature, "max_tokens": cfg.max_tokens, "seed": seed}
        return {"model": cfg.model, **text, **settings}
