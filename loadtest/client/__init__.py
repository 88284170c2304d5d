"""The process that sends: when, to which variant, and one raw row for every answer."""
