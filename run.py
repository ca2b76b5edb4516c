"""The command `selfdraft` from a checkout: compose the configuration in conf/ and run one task (see `app.main`).

python run.py --help lists what there is to choose.
"""

from selfdraft.app.main import main

if __name__ == "__main__":
    main()
