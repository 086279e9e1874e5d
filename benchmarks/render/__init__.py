"""Pages made from records: bench_results/README.md, and docs/results.md with its charts."""
