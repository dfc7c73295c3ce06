"""One file a revision; `clients.store.HEAD` names the newest."""
