"""How the server says what it does with requests: logs, and traces where they are asked for. Never a request's text."""
