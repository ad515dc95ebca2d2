"""Checkpoints of real models' shapes with random weights: to measure speed on where no trained model is at hand."""

from sparsecc.synthetic.checkpoint import synthesize
from sparsecc.synthetic.shapes import SHAPES, Shape
from sparsecc.synthetic.stack import stack_layers

__all__ = ["SHAPES", "Shape", "stack_layers", "synthesize"]
