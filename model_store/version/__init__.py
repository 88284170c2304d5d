"""What one version is: its name, its manifest, what may be published, what its dtypes are worth."""
