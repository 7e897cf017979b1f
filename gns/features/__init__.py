"""What a policy sees of a run: sums over layers, and the features made of them."""
