"""`python -m ssehub`."""

from .cli import main

if __name__ == "__main__":  # a worker imports this, too
    main()
