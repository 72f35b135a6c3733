"""The system tests: what boots the machine (here) and what runs in it (guest/)."""
