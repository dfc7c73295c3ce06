"""A department's heavy work on a Dask cluster: `python -m examples.dask.cluster`."""
