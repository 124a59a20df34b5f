"""How fast each stage is on this machine: `scgpt-ray benchmark`, and two programs for a bare GPU machine."""
