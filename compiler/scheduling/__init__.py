"""Schedules for a small memory managed by software: operator order, residency, addresses and transfers, with a certificate."""
