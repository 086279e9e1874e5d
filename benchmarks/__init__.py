"""Benchmarks: ``bench_*.py`` measure and write records, ``render`` draws them, ``test_*.py`` are
those of pytest-benchmark."""
