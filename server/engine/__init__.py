"""Tokens in, tokens out. A library: it knows no HTTP, no process and no text.

`engine` is the step: plan (`scheduler`), encode (`source_queue`), decode (a `backend`), choose (`choosing`), commit. A
`sequence` has all the state of a generation. `interface/` is what its callers share with it, without torch;
`choice/` decides on tokens; `weights/` reads a model; `pytorch/` and `native/` compute; `machine/` says what there is
to compute on.
"""
