"""What a policy sees of a run: sums over layers, and the features made of them."""

DEFAULT_FEATURE = "log_update_over_weight"  # of layers, which pictures show unless told otherwise
