"""Timings against plaintext and peers, as ratios of one run; never asserted in tests."""
