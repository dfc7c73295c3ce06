"""The cryptography of lianmo, pure: arrays and bytes in and out (PROTOCOLS of the design)."""
