"""What HTTP itself needs: keys, middleware, error responses, JSON, event streams, disconnecting clients."""
