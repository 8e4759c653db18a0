"""Samples of a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from w2s_fast.paths import user_path
from w2s_fast.sampling.endpoint_client import EndpointClient
from w2s_fast.sampling.endpoint_config import EndpointConfig
from w2s_fast.sampling.protocol import check_request, sample_seed


class EndpointSampler:
    """Samples by one request each, stored when it arrives, so none is requested twice unless blank.

    Every request has its own seed, a function of seed, prompt and the sample's number. Whether
    equal requests have equal answers is up to the server; stored answers stay as they are.

    Args:
        cfg: Address, model and how it samples.
        folder: Folder of the stored answers; debates share it.
        process: Number of this process among those that write into ``folder``.

    Raises:
        W2SError: The variable of the key is not set.
    """

    def __init__(self, cfg: EndpointConfig, folder: str | Path, process: int = 0) -> None:
        self._client = EndpointClient(cfg, user_path(folder, "folder"), process)

    def sample(self, prompts: Sequence[str], n: int, *, seed: int = 0) -> list[list[str]]:
        """Return n samples of each prompt; see `Sampler`.

        Raises:
            W2SError: A prompt or n does not fit, the endpoint rejects a request or is busy for all
                tries, or every answer is empty.
        """
        check_request(prompts, n)
        distinct = list(dict.fromkeys(prompts))
        # 31 bits, as servers refuse larger ones
        seeds = [sample_seed(seed, f"{p}\0{j}", 31) for p in distinct for j in range(n)]
        texts = self._client([p for p in distinct for _ in range(n)], seeds)
        samples = {p: texts[i * n : (i + 1) * n] for i, p in enumerate(distinct)}
        return [list(samples[p]) for p in prompts]
