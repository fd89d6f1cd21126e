"""The geometry of a decoder on flat batches of checked points; never sees Manifold."""
