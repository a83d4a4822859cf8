"""``python -m vibevoice_finetune``: the door for launchers, as in ``torchrun -m vibevoice_finetune train …``."""

import sys

from vibevoice_finetune.cli import main

if __name__ == "__main__":
    sys.exit(main())
