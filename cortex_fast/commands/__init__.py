"""The commands' arguments and output, one file per subject."""
