"""One phase of training, for any module: the loop, the optimizer, the losses. `finetune` does the command's work."""
