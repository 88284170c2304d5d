"""What a request may say: bodies and their parameters, validated strictly."""
