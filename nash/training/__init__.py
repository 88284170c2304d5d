"""One phase of training, for any module: the loop, the optimizer, the losses, validation and what rows it reads."""
