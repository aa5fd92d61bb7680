"""Two phases of a training as one optimizer."""
