"""The commands' arguments and output, a file a subject."""
