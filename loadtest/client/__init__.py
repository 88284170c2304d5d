"""The process that sends the requests: when, to which variant, and one raw row for each."""
