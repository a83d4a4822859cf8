"""``python -m vibevoice_finetune``: the door for launchers, as in ``torchrun -m vibevoice_finetune train …``."""

from vibevoice_finetune.commands.table import program

if __name__ == "__main__":
    program()
