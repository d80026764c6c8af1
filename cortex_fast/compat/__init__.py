"""Drop-ins: the published CORTEX code's names and files, and Captum's names."""
