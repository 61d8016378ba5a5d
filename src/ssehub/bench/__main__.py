"""`python -m ssehub.bench`: a worker process of the load test, started by `ssehub bench`."""

from .worker import main

main()
