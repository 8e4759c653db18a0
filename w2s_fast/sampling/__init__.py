"""Samplers: n texts for each prompt, from a model, an endpoint or a file of finished generations.

All of them have one method, ``sample(prompts, n, seed=...)``; see `Sampler`.
"""

from w2s_fast.sampling.endpoint import EndpointSampler
from w2s_fast.sampling.endpoint_config import EndpointConfig
from w2s_fast.sampling.finished import FileSampler, write_samples
from w2s_fast.sampling.generated import GenerateSampler
from w2s_fast.sampling.protocol import Sampler, sample_seed

__all__ = [
    "EndpointConfig",
    "EndpointSampler",
    "FileSampler",
    "GenerateSampler",
    "Sampler",
    "sample_seed",
    "write_samples",
]
