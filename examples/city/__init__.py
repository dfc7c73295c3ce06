"""The demo: a city's bank and three departments train a shared credit model."""
