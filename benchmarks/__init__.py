"""Speed beside the peer's, and findings. From the root: `python -m benchmarks.awrs_step --help`."""
