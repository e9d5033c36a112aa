"""`python -m edlm_engine` is `edlm`."""

from .tools.cli import main

if __name__ == "__main__":
    main()
