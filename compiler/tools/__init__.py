"""Tools that execute programs: above the driver."""
