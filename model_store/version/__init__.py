"""What one version is: its name, its manifest, what may be published, its quality in each dtype."""
