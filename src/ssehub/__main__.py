"""Runs the command as `python -m ssehub`."""

from .cli import main

if __name__ == "__main__":  # workers import this module too
    main()
