"""What all tests share."""

from hypothesis import settings

# Times belong to benchmarks: a property does not fail because the machine was busy.
settings.register_profile("lianmo", deadline=None)
settings.load_profile("lianmo")
