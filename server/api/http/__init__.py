"""What HTTP itself needs: keys, middleware, errors as answers, JSON, streams of events, clients that go away."""
