"""`python -m server.worker DESCRIPTOR PARENT`: the process that a supervisor starts."""

from server.worker.worker import main

if __name__ == "__main__":
    main()
