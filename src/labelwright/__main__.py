"""`python -m labelwright`: the command line."""

from labelwright.cli import main

if __name__ == "__main__":
    main()
