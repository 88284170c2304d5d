"""One phase of training, whatever it trains: the loop, the optimizer, the losses. `finetune` is the command's work."""
