"""`POST /compare`: one request on several variants, one after the other, with the speed-up and the agreement.

Request: `{"inputs": str, "parameters"?: {...}, "models"?: [REF, ...], "stream"?: bool}`. Without `models` it is every
loaded variant of the first loaded model's family, in the order of the command line.

The document, which is the whole answer where `stream` is false:

    {"baseline": "g2p@dense",
     "results": [{"ref": "g2p@dense", "model": "g2p", "variant": "dense",
                  "generated_text": "HH AH L OW",
                  "timings": {"queue_ms", "encode_ms", "decode_ms", "total_ms",
                              "time_to_first_token_ms", "time_per_output_token_ms"},
                  "finish_reason": "eos_token", "generated_tokens": 5,
                  "speedup": 1.0,
                  "agreement": {"exact": true, "rouge_l": 1.0, "token_edit_distance": 0}},
                 ...]}

`results` stand in the order in which the variants ran. The baseline is the dense variant, else the first; its own
speedup is 1.0 and it agrees with itself. `speedup` = the baseline's (total - queue) over the variant's.
`time_per_output_token_ms` is null where there was one token. `rouge_l` is the F-measure over words parted by white
space, `token_edit_distance` counts the vocabulary's tokens (the end token is left out).

With `"stream": true` the answer is a stream of server-sent events, `data:{...}` and an empty line each. Which event
it is shows in its keys:

    has "token":          {"ref", "model", "variant", "index": 1,
                           "token": {"id": 12, "text": "HH", "logprob": -0.02, "special": false}}
                          one token of one variant; index counts from 1 within the variant; the texts of one variant,
                          joined, are its generated_text (the end token is special and has the text "")
    has "generated_text": {"ref", "model", "variant", "generated_text", "timings", "finish_reason",
                           "generated_tokens"}
                          this variant is done, once for each; the next one begins after it
    has "results":        the document above; the last event of a stream that went well
    has "error":          {"error", "error_type"} and, where it was one variant's, "ref", "model", "variant";
                          the last event of a stream that did not

A line that starts with a colon is a keep-alive comment. An error before the first event is an ordinary HTTP error.
"""
