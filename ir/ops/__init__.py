"""The op set; `table.py` shows it whole."""
