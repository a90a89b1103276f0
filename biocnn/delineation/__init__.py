"""From a tubularity map to a graph: skeletons, gaps, candidate paths and the best of them."""
