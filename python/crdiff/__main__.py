"""`python -m crdiff ...` is `crdiff ...`."""

import os
import subprocess
import sys

from crdiff import find_program


def main():
    command = [find_program(), *sys.argv[1:]]
    if os.name == "nt":
        # There, a replaced process would leave the shell before it ends.
        try:
            sys.exit(subprocess.run(command).returncode)
        except KeyboardInterrupt:
            sys.exit(130)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
