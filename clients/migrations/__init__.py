"""The schema's history, run by `clients.store.Store.open`."""
