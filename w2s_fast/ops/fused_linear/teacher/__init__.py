"""Teachers that are sums of language-model heads: a target made chunk by chunk, never stored."""
