"""Programs for an accelerator with a scratchpad: launches to operators, a schedule to steps, and something to call."""
