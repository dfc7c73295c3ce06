"""Party programs: what one party does in one task, as steps over channels."""
