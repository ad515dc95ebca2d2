"""The sparse operators: what they mean (definitions) and how they run fast on a CPU (cpu)."""
