"""Collect a model's activations on a text into HDF5, piece by piece."""

from __future__ import annotations

FILE = "activations.h5"
PARTS = "activations"
FORMAT = "sparsecc-activations"
VERSION = 1
