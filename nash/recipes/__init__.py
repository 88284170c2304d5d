"""What a run is asked to do: TOML files, read strictly. Nothing here needs torch."""
