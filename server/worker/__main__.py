"""`python -m server.worker DESCRIPTOR PARENT`: what a supervisor starts."""

from server.worker.worker import main

if __name__ == "__main__":
    main()
