"""How features of layers are read by people."""

# Features of layers that are no plain numbers: what they are read as, and the factor and shift that lead there.
READABLE: dict[str, tuple[str, float, float]] = {
    "log_weight_rms": ("rms weight, log10", 1.0, -1.0),
    "log_gradient_rms": ("rms gradient, log10", 2.0, -3.0),
    "gradient_momentum_agreement": ("cosine of gradient and momentum", 1.0, 0.0),
    "log_gradient_signal_to_noise": ("signal over noise of the gradient, log10", 1.0, -1.0),
    "log_update_over_weight": ("update over weight, log10", 1.5, -3.0),
    "log_size": ("parameters, log10", 2.0, 3.0),
    "depth": ("depth", 0.5, 0.5),
}
