"""Tests that run in the booted machine, as root."""
