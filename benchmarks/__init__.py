"""Benchmarks: interleaved, warm, medians. Records go to bench_results/."""
