"""`python -m ssehub`."""

from .cli import main

main()
