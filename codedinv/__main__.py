"""`python -m codedinv` is the command line `codedinv`."""

from codedinv.cli import main

if __name__ == "__main__":
    main()
