"""What `validate` says of clips, said before they become rows.

The checks and their thresholds are those of `validate --deep` (`validation/audio_checks.py`, `text_checks.py`). An
error, which `train` would refuse, leaves the clip out. Warnings are kept with the clip, counted, and shown in the
report; `--reject` names those that leave it out, too.
"""
