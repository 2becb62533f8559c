"""asv benchmarks of the kernels, and what `make bench` runs (`python -m benchmarks.run`)."""
