"""The study of a model's activations before it is compressed, after arXiv 2412.12178. One question a file.

:mod:`sparsecc.analysis.study` runs them; each writes tables beside the report, which reads nothing but them.
"""
