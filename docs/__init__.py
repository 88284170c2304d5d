"""The pages about the project, and the scripts that draw and write parts of them from the source."""
