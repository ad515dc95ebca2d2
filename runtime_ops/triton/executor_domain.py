"""The domain of operators that only the executor's own passes make, apart from those that a file may name."""

EXECUTOR_DOMAIN = "ai.sparsecc.executor"
