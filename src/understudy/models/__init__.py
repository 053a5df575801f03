"""Models: the zoo, taps, projectors, weights, saving and export."""
