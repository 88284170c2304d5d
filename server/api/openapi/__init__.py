"""What the routes take and give, for readers and for machines: `/openapi.json`, and the page `/docs` drawn from it."""
