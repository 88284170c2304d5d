"""Tokens in, tokens out. A library that knows nothing of HTTP, processes or text.

`engine` is the step: plan (`scheduler`), encode (`source_queue`), decode (a `backend`), choose (`choosing`), commit. A
`sequence` holds all the state of a generation. `interface/` is what the engine shares with its callers, without torch;
`choice/` decides on tokens; `weights/` reads a model; `pytorch/` and `native/` compute; `machine/` describes the
hardware.
"""
