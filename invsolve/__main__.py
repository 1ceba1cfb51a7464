"""`python -m invsolve` is the command `invsolve`."""

from invsolve.cli import main

if __name__ == "__main__":
    main()
