"""Run the command line as `python -m patchindex`."""

from patchindex_cli import main

if __name__ == "__main__":
    main(prog_name="python -m patchindex")
