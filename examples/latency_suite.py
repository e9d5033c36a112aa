"""Latencies of a model as tests, beside pytest-benchmark if that is installed.

    pytest examples/latency_suite.py --edlm-model edlm-tiny

Or as any script: python examples/latency_suite.py --help
"""

import sys

import pytest

PROMPTS = [
    f"Q: Sort [{n}] in ascending order.\nA: " for n in ("31, 4, 15", "92, 65, 35, 89", "79, 32, 38, 46")
]


@pytest.mark.parametrize("concurrency", [1, 4])
def test_latency(edlm_latency, concurrency):
    latencies = edlm_latency(PROMPTS, requests=32, concurrency=concurrency, max_new_tokens=64)
    assert not latencies.failures
    assert latencies.tokens_per_forward > 4
    assert latencies.percentile(90, "first_text_seconds") < 1.0  # the time that your users grant


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, *sys.argv[1:]]))
