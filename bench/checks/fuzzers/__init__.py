"""What runs in processes with sanitizers: see `bench.checks.native`."""
