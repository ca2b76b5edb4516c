"""`python -m selfdraft`: the same as the command `selfdraft`."""

from selfdraft.app.main import main

if __name__ == "__main__":
    main()
