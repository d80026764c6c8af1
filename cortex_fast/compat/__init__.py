"""Drop-ins: the published CORTEX code's names (`compat.cortex`), and Captum's (`compat.captum`)."""
