"""``python -m riemae``: the same as the command ``riemae``."""

from riemae.cli import main

if __name__ == "__main__":
    main(prog_name="riemae")
