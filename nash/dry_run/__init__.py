"""What a command would do: everything is read and checked, nothing is trained or written."""
