"""`python -m circuitsieve` and the command `circuitsieve`."""

from circuitsieve.cli.app import main

if __name__ == "__main__":
    main()
