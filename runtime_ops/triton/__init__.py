"""The sparse operators on a GPU: Triton kernels for sparse projections, and what calls them."""
